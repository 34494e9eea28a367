"""What weights cost that come from memory: found in layers that were timed in networks of more and of fewer weights.

A network reads all of its weights in every run. Of those that a cache does not hold until the next run, each layer waits for
its own part, so that one layer of given widths takes longer in a large network than in a small one. With `N` weights in the
network, `H` of them held and `p` milliseconds for each of the others, a layer with `w` weights waits for p·w·max(1 − H/N, 0).
`H` is the same for all layers, and `p` for all that run in a kernel for whole blocks of channels; the kernel for other counts, which
computes longer and waits less, has its own. Nothing is assumed of the processor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar, nnls

from compactmtl.latency.fit import RIDGE, Form, LayerPoints, Point, choose_forms, solve
from compactmtl.sparsity.latency import Widths
from compactmtl.sparsity.layer_latency import Memory, weights_at

LEAST_NETWORKS = 5  # with fewer a price of memory cannot be told from one of products
GRID = 16  # amounts that the cache may hold, tried before the best is refined
TOLERANCE = 1e-4  # of the held weights, to which they are searched
FOLDS = 8  # of the networks, held out in turn
CLEARLY = 0.9  # of the error without memory: what it is with it, where memory is believed
VISIBLY = 2e-3  # of a network's time, by which the error falls at least
ROUNDS = 2  # of choosing forms by what is known of memory, and memory by forms

Floats = NDArray[np.float64]
Forms = Mapping[LayerPoints, Form]


def total_weights(widths: Widths, full: Widths, weights: Mapping[str, float]) -> float:
    """The weights of a network with layers of these widths, by their number at full width."""
    return sum(weights_at(weights[name], full[name], width) for name, width in widths.items())


def with_fetched(layer: LayerPoints, memory: Memory | None, form: Form) -> LayerPoints:
    """A layer with what of each point's time is spent on weights from memory."""
    if memory is None:
        return layer

    def fetched(point: Point) -> float:
        price = memory.price(form.is_ragged(layer.full, point))
        return min(price * layer.weights_of(point) * memory.share(point.network), point.ms)

    return replace(layer, points=tuple(replace(point, fetched=fetched(point)) for point in layer.points))


def find_memory(layers: Sequence[LayerPoints], align: int) -> tuple[Memory | None, Forms]:
    """How many weights a cache holds and what each further one costs, with the forms of the layers' own time.

    No memory where networks that were held out are foreseen about as well without it, as those whose weights all fit a cache are.

    `align` is the multiple of channels that the target's kernels are written for.
    """
    plain = choose_forms(layers, align)
    distinct = [layer for layer in plain if any(point.network for point in layer.points)]
    totals = np.unique([point.network for layer in distinct for point in layer.points if point.network])
    if len(totals) < LEAST_NETWORKS:
        return None, plain
    forms, memory, found = plain, None, 0.0
    for _ in range(ROUNDS):
        system = _System.of(distinct, forms, totals)
        held = system.best_held()
        memory, found = system.memory(held), system.unseen(held)
        if not (memory.ms or memory.ragged_ms):
            return None, plain
        own = {layer: with_fetched(layer, memory, forms[layer]) for layer in plain}
        chosen = choose_forms(list(own.values()), align)
        forms = {layer: chosen[own[layer]] for layer in plain}
    without = _System.of(distinct, plain, totals).unseen(None)
    believed = found <= CLEARLY * without and without - found >= VISIBLY
    return (memory, forms) if believed else (None, plain)


@dataclass(frozen=True)
class _Block:
    """The points of layers of one signature: terms of their own time (points × terms), milliseconds, weights, networks, and
    which of them run in the kernel for odd counts."""

    terms: Floats
    ms: Floats
    weights: Floats
    networks: NDArray[np.intp]
    ragged: NDArray[np.bool_]

    def take(self, rows: NDArray[np.bool_]) -> _Block:
        """Some of the points."""
        return _Block(
            self.terms[rows], self.ms[rows], self.weights[rows], self.networks[rows], self.ragged[rows]
        )


@dataclass(frozen=True)
class _System:
    """All layers, each in its form, in networks of `totals` weights. Errors are shares of a network's time."""

    blocks: tuple[_Block, ...]
    totals: Floats
    ms: Floats  # of each network, as far as its layers are among the blocks

    @classmethod
    def of(cls, layers: Sequence[LayerPoints], forms: Forms, totals: Floats) -> _System:
        """`forms` has one for each of the layers."""
        blocks = []
        for layer in layers:
            form = forms[layer]
            known = replace(layer, points=tuple(point for point in layer.points if point.network))
            blocks.append(
                _Block(
                    form.matrix(known),
                    np.array([point.ms for point in known.points]),
                    np.array([known.weights_of(point) for point in known.points]),
                    np.searchsorted(totals, [point.network for point in known.points]),
                    np.array([form.is_ragged(known.full, point) for point in known.points]),
                )
            )
        ms = np.zeros(len(totals))
        for block in blocks:
            np.add.at(ms, block.networks, block.ms)
        return cls(tuple(blocks), totals, ms)

    def best_held(self) -> float:
        """How many weights the cache holds, by the least error: searched around the best of a grid."""
        # Two networks at least have more: of one alone the held ones and the price cannot be told apart.
        grid = np.geomspace(self.totals[0], self.totals[-2], GRID)
        best = int(np.argmin([self.prices(held)[1] for held in grid]))
        around = grid[max(best - 1, 0)], grid[min(best + 1, GRID - 1)]
        found = minimize_scalar(
            lambda held: self.prices(held)[1],
            bounds=around,
            method="bounded",
            options={"xatol": TOLERANCE * around[1]},
        )
        return float(found.x)

    def memory(self, held: float) -> Memory:
        """What further weights cost where so many are held. A kernel that no point ran in has the price of the other one."""
        (ms, ragged), _ = self.prices(held)
        seen = np.unique(np.concatenate([block.ragged for block in self.blocks]))
        if len(seen) == 1:
            return Memory(held=held, ms=ragged if seen[0] else ms)
        return Memory(held=held, ms=ms, ragged_ms=ragged)

    def prices(self, held: float) -> tuple[tuple[float, float], float]:
        """Milliseconds for each weight that is not `held`, in both kernels, and the sum of squared errors with them: least
        squares, without negative ones, of all layers at once."""
        sizes = [np.maximum(np.abs(block.terms).max(axis=0), 1e-300) for block in self.blocks]
        loads = [self._loads(block, held) for block in self.blocks]
        most = np.maximum(np.max([load.max(axis=0) for load in loads], axis=0), 1e-300)
        parts = [
            self._triangle(np.column_stack([load / most, block.terms / size, block.ms]), block)
            for block, size, load in zip(self.blocks, sizes, loads, strict=True)
        ]
        columns = sum(len(size) for size in sizes) + 2
        system = np.zeros((sum(map(len, parts)), columns))
        target = np.concatenate([part[:, -1] for part in parts])
        row, column = 0, 2
        for part, size in zip(parts, sizes, strict=True):
            rows = slice(row, row + len(part))
            system[rows, :2] = part[:, :2]
            system[rows, column : column + len(size)] = part[:, 2:-1]
            row, column = rows.stop, column + len(size)
        there = np.abs(system).max(axis=0) > 0
        used = system[:, there]
        ridge = RIDGE**2 * float(np.abs(used).mean()) * np.eye(used.shape[1])
        found, norm = nnls(
            np.vstack([used, ridge]), np.concatenate([target, np.zeros(len(ridge))]), maxiter=30 * columns
        )
        factors = np.zeros(columns)
        factors[there] = found
        ms, ragged = (float(one) for one in factors[:2] / most)
        return (ms, ragged), float(norm) ** 2

    def unseen(self, held: float | None) -> float:
        """The mean relative error of networks that are held out in turn; without memory where `held` is None."""
        foreseen = np.zeros(len(self.totals))
        fold_of = np.arange(len(self.totals)) % min(FOLDS, len(self.totals))
        for fold in range(int(fold_of.max()) + 1):
            out = fold_of == fold
            rest = replace(
                self,
                blocks=tuple(
                    block.take(~out[block.networks]) for block in self.blocks if not out[block.networks].all()
                ),
            )
            prices = np.zeros(2) if held is None else np.array(rest.prices(held)[0])
            for block in self.blocks:
                rows = out[block.networks]
                if rows.all() or not rows.any():  # in the first case nothing else is known of it
                    foreseen += np.bincount(block.networks[rows], block.ms[rows], len(self.totals))
                    continue
                waits = np.zeros(len(rows)) if held is None else self._loads(block, held) @ prices
                known = ~rows
                factors = solve(
                    block.terms[known],
                    block.ms[known] - waits[known],
                    1 / self.ms[block.networks[known]],
                )
                own = block.terms[rows] @ factors + waits[rows]
                foreseen += np.bincount(block.networks[rows], own, len(self.totals))
        there = self.ms > 0
        return float(np.abs(foreseen[there] / self.ms[there] - 1).mean())

    def _triangle(self, part: Floats, block: _Block) -> Floats:
        """A block's equations (points × columns) as shares of the networks' time, in no more rows than it has columns: the sum of
        squares is the same for all factors.
        """
        return np.linalg.qr(part / self.ms[block.networks, None]).R

    def _loads(self, block: _Block, held: float) -> Floats:
        """The weights of each point that come from memory, in the kernel for whole blocks and in the other one."""
        load = block.weights * np.maximum(1 - held / self.totals[block.networks], 0.0)
        return np.stack([np.where(block.ragged, 0.0, load), np.where(block.ragged, load, 0.0)], axis=1)
