"""A made-up runtime whose kernels take channels in blocks of four, in place of a target's."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from compactmtl.config.target import Target
from compactmtl.latency import calibrate, measure
from compactmtl.latency.observe import Observed, widths_of


def cost(model: nn.Module) -> float:
    """Milliseconds: 10 µs, and 1 µs for each block of four outputs and four inputs of a layer."""
    blocks = 0
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            outputs, inputs = layer.weight.shape[:2]
            blocks += math.ceil(outputs / 4) * math.ceil(inputs / 4)
    return 1e-2 + 1e-3 * blocks


def _layers(widths: Mapping[str, tuple[int, int | None]]) -> dict[str, float]:
    return {
        name: 1e-3 * math.ceil(outputs / 4) * math.ceil((inputs or 1) / 4)
        for name, (outputs, inputs) in widths.items()
        if outputs
    }


def install(monkeypatch: pytest.MonkeyPatch, cache: Path, factor: float = 1.0) -> list[int]:
    """Time networks by `factor` times `cost`, with a cache of its own. One number a network that was timed, from now on."""
    found: list[int] = []

    def fake(model: nn.Module, inputs: Any, full: Any, target: Target, path: Path) -> Observed:
        torch.rand(3)  # a real measurement may draw, too
        found.append(1)
        widths = widths_of(model, full)
        layers = {name: factor * ms for name, ms in _layers(widths).items()}
        return Observed(widths, layers, factor * 1e-2, factor * cost(model), 0.0)

    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.setattr(measure, "observe", fake)
    monkeypatch.setattr(calibrate, "observe", fake)
    return found
