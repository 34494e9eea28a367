"""The names of the data sets: every module of this package that describes one. Importing this loads none of them."""

from __future__ import annotations

import re
from pathlib import Path

_DESCRIBES = re.compile(r"^DESCRIPTION\b", re.MULTILINE)  # what only a data set's module has at its top level


def dataset_names(folder: Path = Path(__file__).parent) -> tuple[str, ...]:
    """Every data set of a folder of modules, sorted."""
    modules = folder.glob("*.py")
    return tuple(sorted(path.stem for path in modules if _DESCRIBES.search(path.read_text(encoding="utf-8"))))


DATASETS = dataset_names()
