"""Two runs that must be the same: weights to the last digits of float64, and all that their logs say."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from compactmtl.train import Run


def weights(path: Path, checkpoint: str = "last") -> dict[str, Tensor]:
    return load_file(path / "checkpoints" / checkpoint / "weights.safetensors")


def assert_same(path: Path, expected: Path) -> None:
    """Weights to 1e-10, and all that the log says, which has losses in float32."""
    for checkpoint in ("last", "best"):
        whole, found = weights(expected, checkpoint), weights(path, checkpoint)
        assert whole.keys() == found.keys()
        for name, value in whole.items():
            assert found[name].shape == value.shape
            torch.testing.assert_close(found[name], value, rtol=1e-10, atol=1e-10, msg=name)
    logs = [
        [event for event in Run.open(folder).log() if event["event"] in ("epoch", "end")]
        for folder in (path, expected)
    ]
    assert len(logs[0]) == len(logs[1])
    for mine, whole in zip(*logs, strict=True):
        assert_close(mine, whole)


def assert_close(mine: Any, whole: Any, name: str = "") -> None:
    if isinstance(whole, dict):
        assert mine.keys() == whole.keys(), name
        for key in whole.keys() - {"seconds"}:
            assert_close(mine[key], whole[key], f"{name}/{key}")
    elif isinstance(whole, float) and not math.isnan(whole):
        assert mine == pytest.approx(whole, rel=2e-6, abs=1e-9), name
    elif not isinstance(whole, float):
        assert mine == whole, name
