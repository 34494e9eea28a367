"""What is told of a piece of work while it goes on."""

from __future__ import annotations

import sys
from collections.abc import Callable

Progress = Callable[[str], None]  # is told each step in a line


def tell(line: str) -> None:
    """Tell a step on the standard error, at once: a `Progress` for a terminal."""
    print(f"  {line} …", file=sys.stderr, flush=True)
