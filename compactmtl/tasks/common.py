"""What kinds of tasks share without torch: hints for a misspelled word, the error of an empty split."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches

from compactmtl.errors import DataError


def nearest(word: str, choices: Sequence[str]) -> str:
    """A hint that names the choice most like `word`, or all of them."""
    close = get_close_matches(word, choices, n=1)
    return f"did you mean {close[0]!r}?" if close else f"choose one of {', '.join(sorted(choices))}"


def nothing_valid(name: str) -> DataError:
    """The error of a split in which no element of a task's target counts."""
    return DataError(
        f"task {name!r}: not one element of the split has a known target, so it has no metrics",
        "run `compactmtl data check NAME root=FOLDER` and look at this target's labels",
    )
