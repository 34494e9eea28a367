"""What weights cost that come from memory: found in layers that were timed in networks of more and of fewer weights.

A network reads all of its weights in every run. Of those that a cache does not hold until the next run, each layer waits for
its own part, so that one layer of given widths takes longer in a large network than in a small one. With `N` weights in the
network, `H` of them held and `p` milliseconds for each of the others, a layer with `w` weights waits for p·w·max(1 − H/N, 0),
and the whole network for p·max(N − H, 0). `H` and `p` are the same for all layers; nothing is assumed of the processor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar, nnls

from compactmtl.latency.fit import KNEES, Point, is_aligned
from compactmtl.sparsity.latency import Memory, Widths, features, weights_at

STEPS = (1, 4, 8, 16, 32)  # channels that kernels take at a time
LEAST_NETWORKS = 5  # with fewer a price of memory cannot be told from one of products
GRID = 16  # amounts that the cache may hold, tried before the best is refined
FOLDS = 8  # of the networks, held out in turn
CLEARLY = 0.9  # of the error without memory: what it is with it, where memory is believed
VISIBLY = 2e-3  # of a network's time, by which the error falls at least
TOLERANCE = 1e-6  # of the largest value, to which a number is searched
RIDGE = 1e-7  # keeps least squares unique where two terms are the same at every point

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class LayerPoints:
    """What was measured of layers of one kind: full widths (outputs, inputs), the full number of weights, the points."""

    full: tuple[int, int | None]
    weights: float
    points: tuple[Point, ...]


def total_weights(widths: Widths, full: Widths, weights: Mapping[str, float]) -> float:
    """The weights of a network with layers of these widths, by their number at full width."""
    return sum(weights_at(weights[name], full[name], width) for name, width in widths.items())


def with_fetched(layer: LayerPoints, memory: Memory | None) -> list[Point]:
    """The points of a layer, each with what of its time is spent on weights from memory."""
    if memory is None:
        return list(layer.points)
    return [
        replace(
            point,
            fetched=min(
                memory.milliseconds(point.network)
                * weights_at(layer.weights, layer.full, (point.outputs, point.inputs))
                / point.network,
                point.ms,
            )
            if point.network
            else 0.0,
        )
        for point in layer.points
    ]


def find_memory(layers: Sequence[LayerPoints], align: int) -> Memory | None:
    """How many weights a cache holds and what each further one costs; None where networks that were held out are foreseen
    about as well without it, as those whose weights all fit a cache are.

    `align` is the multiple of channels beside which a layer may be slower.
    """
    totals = np.unique([point.network for layer in layers for point in layer.points if point.network])
    if len(totals) < LEAST_NETWORKS:
        return None
    # Two networks at least have more: of one alone the two numbers cannot be told apart.
    grid = np.geomspace(totals[0], totals[-2], GRID)
    best: tuple[float, float, _System] | None = None
    for step in STEPS:
        system = _System.of(layers, totals, step, math.inf, align)
        scores = [system.error(held) for held in grid]
        index = int(np.argmin(scores))
        if best is None or scores[index] < best[0] * (1 - 1e-6):
            around = grid[max(index - 1, 0)], grid[min(index + 1, GRID - 1)]
            held = _minimum(system.error, *around)
            best = system.error(held), held, system
    assert best is not None
    _, held, system = best
    price, _ = system.price(held)
    if price <= 0:
        return None
    plain = min(
        _System.of(layers, totals, step, knee, align).unseen(None)
        for step in STEPS
        for knee in (math.inf, *KNEES)
    )
    found = system.unseen(held)
    if found > CLEARLY * plain or plain - found < VISIBLY:
        return None
    return Memory(held=held, ms=price)


@dataclass(frozen=True)
class _Block:
    """The points of layers of one kind: terms of their own time (points × terms), milliseconds, weights, networks."""

    terms: Floats
    ms: Floats
    weights: Floats
    networks: NDArray[np.intp]


@dataclass(frozen=True)
class _System:
    """All layers in one form, in networks of `totals` weights. Errors are shares of a network's time."""

    blocks: tuple[_Block, ...]
    totals: Floats
    ms: Floats  # of each network, as far as its layers are among the blocks

    @classmethod
    def of(cls, layers: Sequence[LayerPoints], totals: Floats, step: int, knee: float, align: int) -> _System:
        """`knee` is a share of a layer's weights at full width."""
        blocks = []
        for layer in dict.fromkeys(layers):  # layers of one kind share their points
            points = [point for point in layer.points if point.network]
            if not points:
                continue
            terms = np.array([_terms(point, layer.full, step, knee, align) for point in points])
            largest = terms.max(axis=0)
            there = largest > 0
            blocks.append(
                _Block(
                    terms[:, there] / largest[there],
                    np.array([point.ms for point in points]),
                    np.array(
                        [weights_at(layer.weights, layer.full, (one.outputs, one.inputs)) for one in points]
                    ),
                    np.searchsorted(totals, [point.network for point in points]),
                )
            )
        ms = np.zeros(len(totals))
        for block in blocks:
            np.add.at(ms, block.networks, block.ms)
        return cls(tuple(blocks), totals, ms)

    def without(self, networks: NDArray[np.bool_]) -> _System:
        """The same with none of the points of some networks."""
        kept = [(block, ~networks[block.networks]) for block in self.blocks]
        return replace(
            self,
            blocks=tuple(
                _Block(one.terms[rows], one.ms[rows], one.weights[rows], one.networks[rows])
                for one, rows in kept
                if rows.any()
            ),
        )

    def price(self, held: float) -> tuple[float, float]:
        """Milliseconds for each weight that is not `held` by a cache, and the sum of squared errors with them."""
        solvers = [_Solver.of(block, 1 / self.ms[block.networks]) for block in self.blocks]
        loads = [self._load(block, held) for block in self.blocks]
        fetched = np.zeros(len(self.totals))
        for block, load in zip(self.blocks, loads, strict=True):
            np.add.at(fetched, block.networks, load)
        present = fetched > 0
        if not present.any():
            return 0.0, sum(
                one.solve(np.zeros_like(load))[1] for one, load in zip(solvers, loads, strict=True)
            )
        most = float((self.ms[present] / fetched[present]).min())  # no network waits longer than it takes

        def error(price: float) -> float:
            return sum(one.solve(price * load)[1] for one, load in zip(solvers, loads, strict=True))

        price = _minimum(error, 0.0, most)
        return price, error(price)

    def error(self, held: float) -> float:
        """The sum of squared errors with so many weights `held`, at the price that fits best."""
        return self.price(held)[1]

    def unseen(self, held: float | None) -> float:
        """The mean relative error of networks that are held out in turn; without memory where `held` is None."""
        foreseen = np.zeros(len(self.totals))
        fold_of = np.arange(len(self.totals)) % min(FOLDS, len(self.totals))
        for fold in range(int(fold_of.max()) + 1):
            out = fold_of == fold
            rest = self.without(out)
            price = 0.0 if held is None else rest.price(held)[0]
            for block in self.blocks:
                rows = out[block.networks]
                if rows.all() or not rows.any():  # in the first case nothing else is known of it
                    foreseen += np.bincount(block.networks[rows], block.ms[rows], len(self.totals))
                    continue
                load = np.zeros(len(rows)) if held is None else price * self._load(block, held)
                known = _Block(
                    block.terms[~rows], block.ms[~rows], block.weights[~rows], block.networks[~rows]
                )
                factors, _ = _Solver.of(known, 1 / self.ms[known.networks]).solve(load[~rows])
                own = block.terms[rows] @ factors + load[rows]
                foreseen += np.bincount(block.networks[rows], own, len(self.totals))
        there = self.ms > 0
        return float(np.abs(foreseen[there] / self.ms[there] - 1).mean())

    def _load(self, block: _Block, held: float) -> Floats:
        """The weights of each point that come from memory."""
        return np.asarray(block.weights * np.maximum(1 - held / self.totals[block.networks], 0.0))


@dataclass(frozen=True)
class _Solver:
    """Least squares without negative terms of one block's own time."""

    system: Floats
    ms: Floats
    scale: Floats

    @classmethod
    def of(cls, block: _Block, scale: Floats) -> _Solver:
        count = block.terms.shape[1]
        return cls(
            np.vstack([block.terms * scale[:, None], RIDGE * scale.mean() * np.eye(count)]), block.ms, scale
        )

    def solve(self, fetched: Floats) -> tuple[Floats, float]:
        """The factors of the terms, and the sum of squared errors, where so many milliseconds are memory's."""
        target = np.zeros(len(self.system))
        target[: len(self.ms)] = (self.ms - fetched) * self.scale
        factors, norm = nnls(self.system, target)
        return factors, float(norm) ** 2


def _terms(
    point: Point, full: tuple[int, int | None], step: int, knee: float, align: int
) -> tuple[float, ...]:
    """What a layer's own time is a sum of: as in the staircase of a layer, and what is slower beside multiples of `align`."""
    whole = math.inf if full[1] is None else knee * full[0] * full[1]
    terms = features(point.outputs, point.inputs, step, whole)
    odd = not (is_aligned(point.outputs, full[0], align) and is_aligned(point.inputs, full[1], align))
    return (*terms, float(odd), odd * (terms[3] or terms[1]))


def _minimum(error: Callable[[float], float], low: float, high: float) -> float:
    """Where an error is least between two bounds."""
    return float(
        minimize_scalar(error, bounds=(low, high), method="bounded", options={"xatol": TOLERANCE * high}).x
    )
