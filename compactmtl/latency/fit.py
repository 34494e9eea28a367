"""The latency of a layer as a staircase over its channels, fitted to what was measured at some widths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from compactmtl.sparsity.latency import Regime, StaircaseLatency, features

STEPS = (1, 4, 8, 16, 32, 64)  # channels that kernels take at a time
LEAST_POINTS = 4  # as many as a regime has coefficients: fewer share the fit of all
FLOOR_MS = 1e-3  # what a clock of microseconds can tell apart


@dataclass(frozen=True)
class Point:
    """One measurement of a layer; `inputs` is None for a depthwise layer."""

    outputs: int
    inputs: int | None
    ms: float


def fit_layer(points: Sequence[Point], full: tuple[int, int | None], align: int) -> StaircaseLatency:
    """The staircase of a layer of `full` width (outputs, inputs).

    Milliseconds are a sum, without negative terms, of a constant, a term per step of the outputs, one per step of the inputs
    and one per product of both. The size of a step is what predicts held-out points best. Counts that are multiples of
    `align`, or the full width, are fitted apart from others: runtimes choose another kernel for those.
    """
    aligned = [
        p for p in points if is_aligned(p.outputs, full[0], align) and is_aligned(p.inputs, full[1], align)
    ]
    ragged = [p for p in points if p not in aligned]
    whole = _regime(points)
    return StaircaseLatency(
        full=full,
        align=align,
        aligned=_regime(aligned) if len(aligned) >= LEAST_POINTS else whole,
        ragged=_regime(ragged) if len(ragged) >= LEAST_POINTS else whole,
    )


def is_aligned(count: int | None, full: int | None, align: int) -> bool:
    """Whether a kernel for blocks of `align` channels takes this count."""
    return count is None or count == full or count % align == 0


def _regime(points: Sequence[Point]) -> Regime:
    """The best of all steps by leaving out one point at a time; the smallest step where several are as good."""
    best: tuple[float, Regime] | None = None
    for step in STEPS:
        errors = []
        for index in range(len(points)) if len(points) > LEAST_POINTS else ():
            rest = [*points[:index], *points[index + 1 :]]
            predicted = _solve(rest, step).at(points[index].outputs, points[index].inputs)
            errors.append(abs(predicted - points[index].ms) / max(points[index].ms, FLOOR_MS))
        score = float(np.mean(errors)) if errors else float(step)
        if best is None or score < best[0] * (1 - 1e-6):
            best = score, _solve(points, step)
    assert best is not None
    return best[1]


def _solve(points: Sequence[Point], step: int) -> Regime:
    """Least squares of relative errors."""
    rows: NDArray[np.float64] = np.array(
        [features(p.outputs, p.inputs, step) for p in points], dtype=np.float64
    )
    measured = np.array([p.ms for p in points], dtype=np.float64)
    weights = 1 / np.maximum(measured, FLOOR_MS)
    scale = np.maximum(np.abs(rows).max(axis=0), 1e-12)  # products are large: one scale for all columns
    solution, _ = nnls(rows / scale * weights[:, None], measured * weights)
    constant, outputs, inputs, both = (float(one) for one in solution / scale)
    return Regime(step=step, constant=constant, outputs=outputs, inputs=inputs, both=both)
