"""What is told of a piece of work: its steps while it goes on, and in its files when it was done."""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import UTC, datetime

Progress = Callable[[str], None]  # is told each step in a line


def tell(line: str) -> None:
    """Tell a step on the standard error, at once: a `Progress` for a terminal."""
    print(f"  {line} …", file=sys.stderr, flush=True)


def now() -> str:
    """The time as every file keeps it: UTC, to the second, by ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")
