"""The latency of layers as staircases over their channels, fitted to what was measured at some widths.

Milliseconds of a layer are a sum, without negative terms, of a constant, its steps of outputs and of inputs, their product and what
that is beyond a knee. Where the inputs are no multiple of what a kernel is written for, runtimes choose another kernel, with a
constant and a product of its own; where the outputs are no multiple, a constant, the outputs and the product come on top, or
the other kernel is taken for them, too. Steps, multiples and the knee are the form of a layer. Layers of one kind run in the same
kernels and share their form: it is the one that foresees their held-out points best.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from compactmtl.sparsity.layer_latency import (
    Regime,
    StaircaseLatency,
    features,
    is_aligned,
    is_ragged,
    weights_at,
)

STEPS = (1, 4, 8, 16, 32)  # channels that kernels take at a time
# Multiples of channels beside which runtimes choose another kernel; 1: they choose the same one for all counts.
ALIGNS = (1, 4, 8, 16, 32)
KNEES = (math.inf, 1 / 8, 1 / 4, 1 / 2)  # shares of a layer's weights from which on they may leave a cache
LEAST_POINTS = 5  # of a layer that has a say in the form of its kind: fewer tell no form from another
JUDGES = 8  # layers of a kind at most by which its form is chosen
FOLDS = 8  # of the points, held out in turn to judge a form
SWEEPS = 3  # over a form's numbers, each in turn, at most
TERMS = 10  # that milliseconds are a sum of
FLOOR_MS = 1e-3  # what a clock of microseconds can tell apart
# Of the mean size of a term: keeps least squares unique where two terms are the same at every point.
RIDGE = 1e-4

Floats = NDArray[np.float64]


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


@dataclass(frozen=True)
class LayerPoints:
    """What was measured of layers of one signature: full widths (outputs, inputs), the full number of weights, the points."""

    full: tuple[int, int | None]
    weights: float
    points: tuple[Point, ...]

    @property
    def kind(self) -> float | None:
        """Layers of one kind run in the same kernels: the weights between an output and an input; None of depthwise ones."""
        outputs, inputs = self.full
        return None if inputs is None else self.weights / (outputs * inputs)

    def weights_of(self, point: Point) -> float:
        """The layer's own weights at a point."""
        return weights_at(self.weights, self.full, (point.outputs, point.inputs))


@dataclass(frozen=True)
class Form:
    """The numbers of channels that layers of a kind are fitted with; a `knee` is a share of the full product.

    Without `inputs_align` one kernel takes counts of which both are multiples of `align`, and another one all others.
    """

    align: int = 1
    inputs_align: int | None = None
    step: int = 1
    inputs_step: int = 1
    knee: float = math.inf

    def is_ragged(self, full: tuple[int, int | None], point: Point) -> bool:
        """Whether the kernel for other counts is taken."""
        return is_ragged((point.outputs, point.inputs), full, self.align, self.inputs_align)

    def terms(self, full: tuple[int, int | None], point: Point) -> tuple[float, ...]:
        """What the milliseconds at a point are a sum of: `features`, then what the other kernel and uneven outputs add."""
        outputs, inputs = full
        knee = math.inf if inputs is None else self.knee * outputs * inputs
        own = features(point.outputs, point.inputs, self.step, knee, self.inputs_step)
        odd, uneven = self.is_ragged(full, point), not is_aligned(point.outputs, outputs, self.align)
        work = own[1] if inputs is None else own[3]
        apart = uneven and self.inputs_align is not None
        extra = (1.0, own[1], own[3]) if apart else (0.0, 0.0, 0.0)
        return (*own, float(odd), odd * work, *extra)

    def matrix(self, layer: LayerPoints) -> Floats:
        """The terms at all points of a layer, points × terms."""
        return np.array([self.terms(layer.full, point) for point in layer.points], dtype=np.float64)

    def layer(self, layer: LayerPoints, factors: Sequence[float]) -> StaircaseLatency:
        """The staircase with these factors of the terms."""
        outputs, inputs = layer.full
        constant, rows, columns, both, beyond, odd, odd_work, uneven, uneven_rows, uneven_both = map(
            float, factors
        )
        aligned = Regime(
            step=self.step,
            inputs_step=None if inputs is None else self.inputs_step,
            constant=constant,
            outputs=rows,
            inputs=columns,
            both=both,
        )
        if inputs is None:
            ragged = aligned.model_copy(update={"constant": constant + odd, "outputs": rows + odd_work})
            return StaircaseLatency(
                full=layer.full, align=self.align, aligned=aligned, ragged=ragged, weights=layer.weights
            )
        if beyond and math.isfinite(self.knee):
            aligned = aligned.model_copy(update={"knee": self.knee * outputs * inputs, "beyond": beyond})
        ragged = aligned.model_copy(update={"constant": constant + odd, "both": both + odd_work})
        if self.inputs_align is None:
            return StaircaseLatency(
                full=layer.full, align=self.align, aligned=aligned, ragged=ragged, weights=layer.weights
            )
        beside = Regime(
            step=self.step,
            inputs_step=self.inputs_step,
            constant=uneven,
            outputs=uneven_rows,
            both=uneven_both,
        )
        return StaircaseLatency(
            full=layer.full,
            align=self.align,
            inputs_align=self.inputs_align,
            aligned=aligned,
            ragged=ragged,
            uneven=beside if beside.at(outputs, inputs) else None,
            weights=layer.weights,
        )


def fit_layer(
    points: Sequence[Point], full: tuple[int, int | None], align: int, weights: float = 0.0
) -> StaircaseLatency:
    """The staircase of one layer of `full` width (outputs, inputs) and so many weights, by the points' own time; no time for a
    layer without points. Of several layers of a network `choose_forms` tells more. `align` is tried first.
    """
    layer = LayerPoints(full, weights, tuple(points))
    return fitted_layer(layer, choose_forms([layer], align)[layer])


def fitted_layer(layer: LayerPoints, form: Form) -> StaircaseLatency:
    """The staircase of a layer in a form, by its points' own time; no time for a layer without points."""
    if not layer.points:
        return form.layer(layer, [0.0] * TERMS)
    factors = solve(form.matrix(layer), _own(layer), 1 / _sizes(layer))
    return form.layer(layer, factors.tolist())


def choose_forms(layers: Sequence[LayerPoints], align: int) -> dict[LayerPoints, Form]:
    """The form of each layer, by the points' own time: one for all layers of a kind.

    `align` is the multiple of channels that the target's kernels are written for, which the search begins with too.
    """
    kinds: dict[float | None, list[LayerPoints]] = {}
    for layer in dict.fromkeys(layers):
        kinds.setdefault(layer.kind, []).append(layer)
    forms: dict[LayerPoints, Form] = {}
    for members in kinds.values():
        telling = [one for one in members if len(one.points) >= LEAST_POINTS]
        spread = np.linspace(0, len(telling) - 1, min(len(telling), JUDGES)).round().astype(int)
        form = _best([telling[index] for index in spread], align) if telling else Form()
        forms |= dict.fromkeys(members, form)
    return forms


def solve(terms: Floats, ms: Floats, scale: Floats) -> Floats:
    """Factors without negative ones that make a sum of terms of the milliseconds, with errors times `scale`."""
    size = np.abs(terms).max(axis=0)  # products are large: one size for all columns
    there = size > 0  # a term that is 0 at every point cannot be told
    system = terms[:, there] / size[there] * scale[:, None]
    ridge = RIDGE * float(np.abs(system).mean()) * np.eye(system.shape[1])
    solution = np.zeros(len(size))
    found, _ = nnls(np.vstack([system, ridge]), np.concatenate([ms * scale, np.zeros(len(ridge))]))
    solution[there] = found / size[there]
    return solution


def _best(layers: Sequence[LayerPoints], align: int) -> Form:
    """The form with the least error on held-out points, by changing one number at a time from some forms on."""
    known: dict[Form, float] = {}

    def score(form: Form) -> float:
        if form not in known:
            known[form] = float(np.mean([_held_out(layer, form) for layer in layers]))
        return known[form]

    dense = any(layer.full[1] is not None for layer in layers)
    multiples = tuple(dict.fromkeys((align, *ALIGNS)))
    numbers: dict[str, Sequence[Any]] = {"align": multiples, "step": STEPS}
    if dense:
        numbers |= {"inputs_align": (None, *multiples), "inputs_step": STEPS, "knee": KNEES}
    read = ((None, 1), (4, 1), (align, 1), (align, align)) if dense else ((None, 1),)
    starts = [
        Form(own, inputs_align, step, inputs_step)
        for (own, step), (inputs_align, inputs_step) in itertools.product(
            ((1, 1), (align, 1), (align, align)), read
        )
    ]
    return min((_descended(start, numbers, score) for start in starts), key=score)


def _descended(form: Form, numbers: Mapping[str, Sequence[Any]], score: Callable[[Form], float]) -> Form:
    """The form after each of its numbers was changed in turn to what scores best, until none does; ties stay."""
    for _ in range(SWEEPS):
        before = form
        for name, values in numbers.items():
            found = min((replace(form, **{name: value}) for value in values), key=score)
            if score(found) < score(form) * (1 - 1e-6):
                form = found
        if form == before:
            break
    return form


def _held_out(layer: LayerPoints, form: Form) -> float:
    """The mean relative error on points that are held out in turn."""
    terms, own, sizes = form.matrix(layer), _own(layer), _sizes(layer)
    count = min(FOLDS, len(own))
    fold_of = np.arange(len(own)) % count
    errors = np.zeros(len(own))
    for fold in range(count):
        rest, out = fold_of != fold, fold_of == fold
        factors = solve(terms[rest], own[rest], 1 / sizes[rest])
        errors[out] = np.abs(terms[out] @ factors - own[out]) / sizes[out]
    return float(errors.mean())


def _own(layer: LayerPoints) -> Floats:
    return np.array([point.own for point in layer.points], dtype=np.float64)


def _sizes(layer: LayerPoints) -> Floats:
    """What errors are relative to."""
    return np.maximum(np.array([point.ms for point in layer.points], dtype=np.float64), FLOOR_MS)
