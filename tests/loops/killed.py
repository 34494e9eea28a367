"""Trainings in processes of their own, one of which is killed, and what they end in."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).parents[2]
FINAL = "final.pt"


def process(module: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """`python -m module ARGUMENTS…` in the checkout."""
    words = [sys.executable, "-m", module, *map(str, arguments)]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=800, check=False)


def assert_equal(one: Path, other: Path) -> None:
    """The tensors and numbers that two trainings ended in are the same, bit for bit."""
    found, expected = (_flat(torch.load(folder / FINAL, weights_only=True)) for folder in (one, other))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        same = torch.equal(value, found[name]) if isinstance(value, Tensor) else value == found[name]
        assert same, name


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    if isinstance(value, (dict, list)):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {name: leaf for key, own in items for name, leaf in _flat(own, f"{path}/{key}").items()}
    return {path: value}
