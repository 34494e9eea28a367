"""A made-up runtime whose kernels take channels in blocks of four and whose cache may not hold all weights, in place of a target's."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from compactmtl.config.target import Target
from compactmtl.latency import PairedClock, calibrate, measure
from compactmtl.latency.observe import Observed, widths_of


@dataclass(frozen=True)
class Waiting:
    """How many weights the made-up cache holds, and milliseconds for each further one."""

    held: float
    ms: float


def cost(model: nn.Module, waiting: Waiting | None = None) -> float:
    """Milliseconds: 10 µs, and 1 µs for each block of four outputs and four inputs of a layer; and what it waits for weights."""
    blocks = 0
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            outputs, inputs = layer.weight.shape[:2]
            blocks += math.ceil(outputs / 4) * math.ceil(inputs / 4)
    own = 1e-2 + 1e-3 * blocks
    return own if waiting is None else own + waiting.ms * max(sum(_weights(model).values()) - waiting.held, 0)


def _weights(model: nn.Module) -> dict[str, int]:
    """The number of weights of each layer."""
    return {
        name: layer.weight.numel()
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Conv2d | nn.Linear)
    }


def _layers(
    model: nn.Module, widths: Mapping[str, tuple[int, int | None]], waiting: Waiting | None
) -> dict[str, float]:
    own = {
        name: 1e-3 * math.ceil(outputs / 4) * math.ceil((inputs or 1) / 4)
        for name, (outputs, inputs) in widths.items()
        if outputs
    }
    if waiting is None:
        return own
    weights = _weights(model)
    missing = max(1 - waiting.held / sum(weights.values()), 0)
    return {name: ms + waiting.ms * weights[name] * missing for name, ms in own.items()}


def install(
    monkeypatch: pytest.MonkeyPatch, cache: Path, factor: float = 1.0, waiting: Waiting | None = None
) -> list[int]:
    """Time networks by `factor` times `cost`, with a cache of its own. One number a network that was timed, from now on."""
    found: list[int] = []

    def fake(model: nn.Module, inputs: Any, full: Any, target: Target, path: Path) -> Observed:
        torch.rand(3)  # a real measurement may draw, too
        found.append(1)
        widths = widths_of(model, full)
        layers = {name: factor * ms for name, ms in _layers(model, widths, waiting).items()}
        return Observed(widths, layers, factor * 1e-2, factor * cost(model, waiting), 0.0)

    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.setattr(measure, "observe", fake)
    monkeypatch.setattr(calibrate, "observe", fake)

    def paired(clock: PairedClock, small: nn.Module) -> tuple[float, float, float]:
        torch.rand(3)
        found.append(1)
        return factor * cost(clock._dense, waiting), factor * cost(small, waiting), 0.0

    monkeypatch.setattr(PairedClock, "_timed", paired)
    return found
