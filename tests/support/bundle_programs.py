"""A bundle's infer.py as a module, and its command."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest

PARTS = {"shared", "show", "picture", "pixels", "sample", "panoptic", "runtime"}  # beside infer.py


@contextmanager
def program_of(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """infer.py of the bundle in `folder`, whose parts are forgotten afterwards: another bundle has others of the same names."""
    monkeypatch.syspath_prepend(str(folder))
    spec = importlib.util.spec_from_file_location("infer_of_bundle", folder / "infer.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    for name in PARTS:
        sys.modules.pop(name, None)


def run(program: ModuleType, monkeypatch: pytest.MonkeyPatch, *words: str | Path) -> int:
    """The exit code of infer.py with these words."""
    monkeypatch.setattr(sys, "argv", ["infer.py", *map(str, words)])
    return int(program.main() or 0)
