"""What an operator does to the entries of its operands, found by running it: which entries of its result move with them.

An operator is run on changed operands. Where only those entries of a dimension of the result move that stand for the
entries that were changed, the operator keeps them apart, whatever it is called. That says nothing of inputs that were
not tried: what is removed on the strength of it is held to the proof like everything else.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves

from compactmtl.graph.aliases import is_mutation, writes_elsewhere
from compactmtl.graph.calls import overload
from compactmtl.graph.effect import Followed, Kept, Learned
from compactmtl.graph.space import Axis, Flags
from compactmtl.graph.trace import Traced

# Numbers read and written while probing one graph: about 2 s on one core. What goes beyond it is a barrier.
MOST = 500_000_000
_SLACK = {torch.float64: 1e-9, torch.float32: 1e-5}  # of the largest value: what is no movement but rounding


@dataclass
class Samples:
    """Operands of calls as they are in a run of the example, taken when the first is asked for."""

    traced: Traced
    example_inputs: Sequence[Any]
    wanted: frozenset[fx.Node]
    left: int = MOST
    memo: dict[object, Learned] = field(default_factory=dict)
    _values: dict[fx.Node, Any] | None = None

    def values(self, node: fx.Node) -> dict[fx.Node, Tensor] | None:
        """The tensors that a wanted call reads; None where it is another call, or one of what it reads is no such tensor."""
        if node not in self.wanted:
            return None
        if self._values is None:
            needed = {source for call in self.wanted for source in call.all_input_nodes}
            given = zip(self.traced.inputs, tree_leaves(list(self.example_inputs)), strict=True)
            found: dict[fx.Node, Any] = {source: value for source, (_, value) in self.traced.tensors.items()}
            found.update((source, value) for source, value in given)
            found = {source: value for source, value in found.items() if source in needed}
            for call, value in self.traced.run(self.example_inputs):
                if call in needed and isinstance(value, Tensor):
                    found[call] = value.detach().clone()  # a later call may write into it
            self._values = found
        values: dict[fx.Node, Tensor] = {}
        for source in node.all_input_nodes:
            value = self._values.get(source)
            if not isinstance(value, Tensor):
                return None
            values[source] = value
        return values


def can_be_probed(node: fx.Node) -> bool:
    """Whether a call is of an operator that may be run again: one result, no chance, nothing written elsewhere."""
    if not isinstance(node.target, torch._ops.OpOverload) or writes_elsewhere(node):
        return False
    if torch.Tag.nondeterministic_seeded in node.target.tags:
        return False
    sources = node.all_input_nodes
    every = bool(sources) and all(isinstance(source.meta.get("val"), Tensor) for source in sources)
    return every and isinstance(node.meta.get("val"), Tensor)


class _Trial:
    """One call with its operands, which can be run with some of them changed."""

    def __init__(self, node: fx.Node, values: Mapping[fx.Node, Tensor], static: Flags) -> None:
        self._node = node
        self._writes = is_mutation(node)
        self.static = static
        self.dtype = torch.float64
        self.runs = 0
        real = [values[source].detach() for source in node.all_input_nodes]
        self.values = [_precise(value) for value in real]
        self.cost = sum(value.numel() for value in real)
        try:
            self.result = self.run({})
        except Exception:  # kernels of one type alone
            self.dtype, self.values = torch.float32, real
            self.result = self.run({})
        self.cost += self.result.numel()
        self._draw()

    def _draw(self) -> None:
        """Go on with other values for what depends on the input: channels that are zero in the example say little."""
        generator = torch.Generator().manual_seed(2)
        before = self.values, self.result
        self.values = [
            self.drawn(place, generator) if self.varies(place) else value
            for place, value in enumerate(self.values)
        ]
        try:
            self.result = self.run({})
        except Exception:  # values that belong together
            self.values, self.result = before
        if self.result.shape != before[1].shape or bool(torch.isnan(self.result).all()):
            self.values, self.result = before

    def varies(self, place: int) -> bool:
        """Whether an operand is numbers that depend on the input."""
        value = self.values[place]
        return not self.static[place] and (value.is_floating_point() or value.is_complex())

    def run(self, changed: Mapping[int, Tensor]) -> Tensor:
        places = {source: place for place, source in enumerate(self._node.all_input_nodes)}

        def given(source: fx.Node) -> Tensor:
            value = changed.get(places[source], self.values[places[source]])
            return value.clone() if self._writes else value

        self.runs += 1
        args, kwargs = fx.node.map_arg((self._node.args, self._node.kwargs), given)
        with torch.no_grad():
            result: Tensor = self._node.target(*args, **kwargs)  # type: ignore[operator]
        return result

    def drawn(self, place: int, generator: torch.Generator) -> Tensor:
        """Other values for an operand, within the range of its own: it may hold places or indices."""
        value = self.values[place]
        if not (value.is_floating_point() or value.is_complex()):
            order = torch.randperm(value.numel(), generator=generator).to(value.device)
            return value.reshape(-1)[order].reshape(value.shape)
        real = torch.view_as_real(value.resolve_conj()) if value.is_complex() else value
        finite = real[torch.isfinite(real)]
        low, high = (float(finite.min()), float(finite.max())) if finite.numel() else (0.0, 0.0)
        if low == high:
            low, high = low - 1, high + 1
        noise = torch.rand(real.shape, generator=generator, dtype=torch.float64).to(real.device)
        fresh = (low + (high - low) * noise).to(real.dtype)
        return torch.view_as_complex(fresh) if value.is_complex() else fresh

    def moved(self, before: Tensor, after: Tensor) -> Tensor:
        """Which entries of the result are others than before."""
        if before.shape != after.shape:
            raise ValueError("its size depends on values")
        if not (before.is_floating_point() or before.is_complex()):
            return before != after
        same = (before == after) | (torch.isnan(before) & torch.isnan(after))
        finite = before.abs()[torch.isfinite(before.abs())]
        scale = float(finite.max()) if finite.numel() else 1.0
        return ~same & ~((before - after).abs() <= _SLACK[self.dtype] * scale)


def _precise(value: Tensor) -> Tensor:
    value = value.detach()
    if value.is_complex():
        return value.to(torch.complex128)
    return value.double() if value.is_floating_point() else value


def learn(
    node: fx.Node,
    samples: Samples,
    values: Mapping[fx.Node, Tensor],
    axes: Sequence[Sequence[Axis]],
    static: Sequence[bool],
) -> Learned:
    """What a call does to the `axes` of each tensor that it reads; `static` are those that no input changes."""
    key = _key(node, values, axes, static)
    known = samples.memo.get(key)
    if known is None:
        try:
            known = _learned(_Trial(node, values, np.array(static, dtype=bool)), samples, axes)
        except Exception as error:  # an operator that does not take what it is given says nothing
            known = Learned(reason=f"it cannot be tried ({type(error).__name__})")
        samples.memo[key] = known
    return known


def _learned(trial: _Trial, samples: Samples, axes: Sequence[Sequence[Axis]]) -> Learned:
    sizes = [trial.values[k].shape[dim] for k, own in enumerate(axes) for axis in own for dim in axis.dims]
    runs = sum(2 * math.ceil(math.log2(max(size, 2))) + 4 for size in sizes)
    if runs * trial.cost > samples.left:
        return Learned(reason="it has no rule, and is too large to be tried")
    if _is_pointwise(trial, axes):
        same = (Followed(0, 0, tuple(map(Kept, axes[0][0].dims))),)
        samples.left -= trial.runs * trial.cost
        return Learned(same, _silencing(trial, axes, same), pointwise=True)
    followed = []
    for operand, own in enumerate(axes):
        for place, axis in enumerate(own):
            kept = tuple(_kept(trial, operand, dim) for dim in axis.dims)
            if _consistent(kept):
                followed.append(Followed(operand, place, kept))
    samples.left -= trial.runs * trial.cost
    if not followed:
        return Learned(reason="it mixes the channels, or moves them to other places")
    learned = Learned(tuple(followed), beside=_beside(trial, axes, followed))
    return replace(learned, silencing=_silencing(trial, axes, followed), zero=_is_zero(trial, axes, followed))


def _is_pointwise(trial: _Trial, axes: Sequence[Sequence[Axis]]) -> bool:
    """Whether a call of one tensor gives for each entry what it gives for it in any other place."""
    if (
        len(trial.values) > 1
        or not trial.varies(0)
        or trial.result.shape != trial.values[0].shape
        or len(axes[0]) > 1
    ):
        return False
    value = trial.values[0]
    rolled = trial.run({0: value.reshape(-1).roll(1).reshape(value.shape)})
    if bool(trial.moved(trial.result.reshape(-1).roll(1).reshape(value.shape), rolled).any()):
        return False
    generator = torch.Generator().manual_seed(3)
    other, covered = trial.drawn(0, generator), torch.zeros_like(value, dtype=torch.bool)
    for _ in range(2):
        some = (torch.rand(value.shape, generator=generator) < 0.5).to(value.device)
        for chosen in (some, ~some):  # each entry changes once: also the one that a maximum is taken of
            moved = trial.moved(trial.result, trial.run({0: torch.where(chosen, other, value)}))
            if bool((moved & ~chosen).any()):
                return False
            covered |= moved
    return bool(covered.any())


def _consistent(kept: Sequence[Kept]) -> bool:
    dims = [one.dim for one in kept if one.dim is not None]
    plain = len(kept) == 1 or all(one.repeat == one.joined == 1 for one in kept)
    return bool(dims) and len(set(dims)) == len(dims) and plain


def _codes(size: int) -> list[Flags]:
    """Sets of entries such that of any two entries one set holds the first and not the second."""
    bits = max(math.ceil(math.log2(size)), 1)
    ones = [(np.arange(size) >> bit) % 2 == 1 for bit in range(bits)]
    return [flags for one in ones for flags in (one, ~one)]


def _kept(trial: _Trial, operand: int, dim: int) -> Kept:
    """Where the entries of a dimension lie in the result: `Kept(None)` where it does not keep them apart."""
    size = trial.values[operand].shape[dim]
    candidates = _candidates(size, trial.result.shape)
    covered = {
        candidate: np.zeros(trial.result.shape[candidate.dim or 0], dtype=bool) for candidate in candidates
    }
    generator = torch.Generator().manual_seed(0)
    halves = [torch.rand(size, generator=generator).numpy() < 0.5 for _ in range(2)]
    fresh = trial.drawn(operand, generator)
    for base, sets in ((trial.values[operand], _codes(size)), (fresh, halves)):
        if not candidates or size < 2:
            return Kept(None)
        before = trial.result if base is not fresh else trial.run({operand: base})
        other = trial.drawn(operand, generator)
        for flags in sets:
            moved = trial.moved(before, trial.run({operand: _mixed(base, other, dim, flags)}))
            for candidate in list(candidates):
                own = _along(moved, candidate.dim or 0)
                if (own & ~candidate.forward(flags)).any():
                    candidates.remove(candidate)
                else:
                    covered[candidate] |= own
    left = [candidate for candidate in candidates if covered[candidate].all()]
    return left[0] if len(left) == 1 else Kept(None)


def _mixed(base: Tensor, other: Tensor, dim: int, flags: Flags) -> Tensor:
    """`base` with the flagged entries of a dimension from `other`."""
    shape = [-1 if d == dim else 1 for d in range(base.ndim)]
    return torch.where(torch.from_numpy(flags).to(base.device).reshape(shape), other, base)


def _along(moved: Tensor, dim: int) -> Flags:
    flags: Flags = moved.movedim(dim, 0).reshape(moved.shape[dim], -1).any(1).cpu().numpy()
    return flags


def _candidates(size: int, shape: Sequence[int]) -> list[Kept]:
    found = []
    for dim, own in enumerate(shape):
        if own == 0:
            continue
        if own % size == 0:
            found.append(Kept(dim, own // size))
            if own > size:
                found.append(Kept(dim, own // size, tiled=True))
        elif size % own == 0 and own > 1:
            found.append(Kept(dim, 1, size // own))
    return found


def _beside(
    trial: _Trial, axes: Sequence[Sequence[Axis]], followed: Sequence[Followed]
) -> tuple[tuple[int, int, int], ...]:
    """Dimensions of operands that no axis lies on, and that go with a followed dimension of the result."""
    taken = {one.dim for own in followed for one in own.kept if one.dim is not None}
    with_axes = {own.operand for own in followed}
    found = []
    for operand, value in enumerate(trial.values):
        if operand in with_axes:
            continue
        known = {dim for axis in axes[operand] for dim in axis.dims}
        for dim, size in enumerate(value.shape):
            if dim in known or size < 2 or size not in {trial.result.shape[one] for one in taken}:
                continue
            kept = _kept(trial, operand, dim)
            if kept.dim in taken:
                assert kept.dim is not None
                found.append((operand, dim, kept.dim))
    return tuple(found)


def _zeroed(trial: _Trial, axes: Sequence[Sequence[Axis]], chosen: Sequence[Followed], first: bool) -> bool:
    """Whether half of the result is zero where half of these operands is, all that may vary being drawn anew."""
    generator = torch.Generator().manual_seed(1)
    changed = {
        place: trial.drawn(place, generator) for place in range(len(trial.values)) if trial.varies(place)
    }
    expected = np.ones(trial.result.shape, dtype=bool)
    for own in chosen:
        axis = axes[own.operand][own.axis]
        # of the first dimension that is kept apart
        where, kept = next(
            (d, one) for d, one in zip(axis.dims, own.kept, strict=True) if one.dim is not None
        )
        size = trial.values[own.operand].shape[where]
        flags = (np.arange(size) // kept.joined) % 2 == (0 if first else 1)
        value = changed.get(own.operand, trial.values[own.operand])
        changed[own.operand] = _mixed(value, torch.zeros_like(value), where, flags)
        assert kept.dim is not None
        zeros = kept.forward(flags)
        expected = expected & zeros.reshape([-1 if d == kept.dim else 1 for d in range(trial.result.ndim)])
    result = trial.run(changed)
    return bool((result[torch.from_numpy(expected).to(result.device)] == 0).all())


def _silencing(trial: _Trial, axes: Sequence[Sequence[Axis]], followed: Sequence[Followed]) -> frozenset[int]:
    return frozenset(
        own.operand
        for own in followed
        if _is_number(trial, own) and all(_tried(trial, axes, [own], first) for first in (True, False))
    )


def _is_zero(trial: _Trial, axes: Sequence[Sequence[Axis]], followed: Sequence[Followed]) -> bool:
    one_each = list({own.operand: own for own in followed}.values())
    return all(_is_number(trial, own) for own in one_each) and all(
        _tried(trial, axes, one_each, first) for first in (True, False)
    )


def _is_number(trial: _Trial, own: Followed) -> bool:
    value = trial.values[own.operand]
    return value.is_floating_point() or value.is_complex()


def _tried(trial: _Trial, axes: Sequence[Sequence[Axis]], chosen: Sequence[Followed], first: bool) -> bool:
    try:
        return _zeroed(trial, axes, chosen, first)
    except Exception:  # values that the operator does not take
        return False


def _key(
    node: fx.Node, values: Mapping[fx.Node, Tensor], axes: Sequence[Sequence[Axis]], static: Sequence[bool]
) -> object:
    """What a call has in common with another of which the same is true."""

    def said(place: int, source: fx.Node) -> object:
        value = values[source]
        exact = static[place] or not (value.is_floating_point() or value.is_complex())
        content = _digest(value) if exact else ""
        return place, tuple(value.shape), value.dtype, content, tuple(axis.dims for axis in axes[place])

    given = {source: repr(said(place, source)) for place, source in enumerate(node.all_input_nodes)}
    args = fx.node.map_arg((node.args, node.kwargs), lambda source: given[source])
    return str(node.target), overload(node), repr(args)


def _digest(value: Tensor) -> str:
    plain = value.detach().cpu().resolve_conj().resolve_neg().reshape(-1).contiguous()
    return hashlib.sha256(plain.view(torch.uint8).numpy().tobytes()).hexdigest()
