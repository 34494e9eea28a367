"""The latency of a layer as a staircase over its channels, fitted to what was measured at some widths."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import lsq_linear

from compactmtl.sparsity.latency import Regime, StaircaseLatency, features

STEPS = (1, 4, 8, 16, 32, 64)  # channels that kernels take at a time
ALIGNS = (4, 8, 16, 32)  # multiples of channels for which runtimes choose another kernel
KNEES = (1 / 8, 1 / 4, 1 / 2)  # shares of a layer's weights from which on they may leave a cache
LEAST_POINTS = 5  # as many as a regime has terms: fewer share the fit of all
FOLDS = 8  # of the points, held out in turn to judge a form
FLOOR_MS = 1e-3  # what a clock of microseconds can tell apart


@dataclass(frozen=True)
class Point:
    """One measurement of a layer; `inputs` is None for a depthwise layer.

    `network` is the number of all weights of the network that it was timed in, 0 where that is not known; `fetched` the
    milliseconds in which it waits for its own from memory.
    """

    outputs: int
    inputs: int | None
    ms: float
    network: float = 0.0
    fetched: float = 0.0

    @property
    def own(self) -> float:
        """Milliseconds with all weights in a cache."""
        return self.ms - self.fetched


def fit_layer(
    points: Sequence[Point], full: tuple[int, int | None], align: int, weights: float = 0.0
) -> StaircaseLatency:
    """The staircase of a layer of `full` width (outputs, inputs) and so many weights, by the points' own time; nothing for a
    layer without points.

    Milliseconds are a sum, without negative terms, of a constant, a term per step of the outputs, one per step of the inputs,
    one per product of both and one for what that is beyond a knee. Counts that are multiples of a number, or the full width,
    are fitted apart from others, because runtimes choose another kernel for those. Step, knee and that number (`align` where
    others are no better) are those that predict held-out points best.
    """
    if not points:
        nothing = Regime(step=1)
        return StaircaseLatency(full=full, align=align, aligned=nothing, ragged=nothing, weights=weights)
    whole, score = _regime(points, full)
    best = StaircaseLatency(full=full, align=align, aligned=whole, ragged=whole, weights=weights)
    for number in dict.fromkeys((align, *ALIGNS)):
        even = [
            is_aligned(p.outputs, full[0], number) and is_aligned(p.inputs, full[1], number) for p in points
        ]
        parts = [[p for p, flag in zip(points, even, strict=True) if flag is kind] for kind in (True, False)]
        if min(map(len, parts)) < LEAST_POINTS:
            continue
        (aligned, first), (ragged, second) = (_regime(part, full) for part in parts)
        found = (first * len(parts[0]) + second * len(parts[1])) / len(points)
        if found < score * (1 - 1e-6):
            score = found
            best = StaircaseLatency(full=full, align=number, aligned=aligned, ragged=ragged, weights=weights)
    return best


def is_aligned(count: int | None, full: int | None, align: int) -> bool:
    """Whether a kernel for blocks of `align` channels takes this count."""
    return count is None or count == full or count % align == 0


def _regime(points: Sequence[Point], full: tuple[int, int | None]) -> tuple[Regime, float]:
    """The form that predicts held-out points best, fitted to all, with its mean relative error on them."""
    knees = [math.inf, *(share * full[0] * full[1] for share in KNEES if full[1] is not None)]
    best: tuple[float, Regime] | None = None
    for step in STEPS:
        for knee in knees:
            score = _held_out(points, step, knee)
            if best is None or score < best[0] * (1 - 1e-6):
                best = score, _solve(points, step, knee)
    assert best is not None
    return best[1], best[0]


def _held_out(points: Sequence[Point], step: int, knee: float) -> float:
    """The mean relative error on points that are held out in turn."""
    count = min(FOLDS, len(points))
    if count < 2:
        return math.inf
    errors = []
    for fold in range(count):
        form = _solve([p for index, p in enumerate(points) if index % count != fold], step, knee)
        errors += [
            abs(form.at(p.outputs, p.inputs) - p.own) / max(p.ms, FLOOR_MS) for p in points[fold::count]
        ]
    return float(np.mean(errors))


def _solve(points: Sequence[Point], step: int, knee: float) -> Regime:
    """Least squares of relative errors."""
    rows: NDArray[np.float64] = np.array(
        [features(p.outputs, p.inputs, step, knee) for p in points], dtype=np.float64
    )
    own = np.array([p.own for p in points], dtype=np.float64)
    weights = 1 / np.maximum(np.array([p.ms for p in points], dtype=np.float64), FLOOR_MS)
    scale = np.abs(rows).max(axis=0)  # products are large: one scale for all columns
    there = scale > 0  # a term that is 0 at every point cannot be told
    system = rows[:, there] / scale[there] * weights[:, None]
    solution = np.zeros(len(scale))
    # bounded and not `nnls`, which does not end where terms are the same at every point, as for a layer of one width
    solution[there] = lsq_linear(system, own * weights, bounds=(0, np.inf), method="bvls").x / scale[there]
    constant, outputs, inputs, both, beyond = (max(float(one), 0.0) for one in solution)
    terms = {"constant": constant, "outputs": outputs, "inputs": inputs, "both": both}
    if math.isinf(knee) or not beyond:
        return Regime(step=step, **terms)
    return Regime(step=step, **terms, knee=knee, beyond=beyond)
