"""The names of the data sets: every module of this package that describes one. Importing this loads none of them."""

from __future__ import annotations

import re
from pathlib import Path

_DESCRIBES = re.compile(r"^DESCRIPTION\b", re.MULTILINE)  # what only a data set's module has at its top level


def dataset_names() -> tuple[str, ...]:
    """Every data set, sorted."""
    modules = Path(__file__).parent.glob("*.py")
    return tuple(sorted(path.stem for path in modules if _DESCRIBES.search(path.read_text(encoding="utf-8"))))


DATASETS = dataset_names()
