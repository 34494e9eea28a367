"""Channel groups bound to live tensors: norms of all groups and factors on all groups, without a loop over groups.

A group's part of a tensor is a set of whole slices along one dimension. So a sum over each group is a
reduction to that dimension followed by a small gather, and a factor on each group is a broadcast.

Shape suffixes: n groups of a family, k slices of a tensor that one group holds, s size of the dimension.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from compactmtl.errors import ConfigError
from compactmtl.graph.groups import GroupFamily, Role
from compactmtl.sparsity import questions


class GroupedTensor:
    """One member tensor of a family; group i holds `parameter.movedim(dim, 0)[indices[i]]`."""

    def __init__(
        self, name: str, parameter: Tensor, dim: int, indices: NDArray[np.int64], role: Role
    ) -> None:
        n, k = indices.shape
        size = parameter.shape[dim]
        if indices.size and (indices.min() < 0 or indices.max() >= size):
            raise ConfigError(f"a channel group points outside dimension {dim} of {name} ({size})")
        if len(np.unique(indices)) != indices.size:
            raise ConfigError(f"channel groups overlap in dimension {dim} of {name}")
        self.name, self.parameter, self.dim, self.role = name, parameter, dim, role
        self.elements = k * (parameter.numel() // size)  # of one group
        self._others = [d for d in range(parameter.dim()) if d != dim]
        self._shape = [size if d == dim else 1 for d in range(parameter.dim())]
        owner = np.full(size, n, dtype=np.int64)  # n: in no group
        owner[indices] = np.arange(n, dtype=np.int64)[:, None]
        self.partial = indices.size < size  # some slices are in no group
        self._identity = k == 1 and n == size and bool((indices[:, 0] == np.arange(n)).all())
        self._indices, self._owner = torch.from_numpy(indices.copy()), torch.from_numpy(owner)

    def sums(self, values: Tensor) -> Tensor:
        """The sum of `values` (of the parameter's shape) over each group, (n,)."""
        per_slice = values.sum(self._others) if self._others else values.clone()
        return per_slice if self._identity else per_slice[self._on(values)[0]].sum(1)

    def squares(self, values: Tensor) -> Tensor:
        """The sum of squares of `values` (of the parameter's shape) over each group, (n,), in one pass over memory."""
        if not self._others:
            return self.sums(values.square())
        per_slice: Tensor = torch.linalg.vector_norm(values, dim=self._others).square()
        return per_slice if self._identity else per_slice[self._on(values)[0]].sum(1)

    def minima(self, values: Tensor) -> Tensor:
        """The smallest of `values` in each group, (n,)."""
        per_slice = values.amin(self._others) if self._others else values.clone()
        return per_slice if self._identity else per_slice[self._on(values)[0]].amin(1)

    def spread(self, per_group: Tensor, elsewhere: float) -> Tensor:
        """`per_group` (n,) in a shape that broadcasts over the parameter, `elsewhere` outside all groups."""
        if not self._identity:
            padded = torch.cat([per_group, per_group.new_full((1,), elsewhere)])
            per_group = padded[self._on(per_group)[1]]
        return per_group.view(self._shape)

    def zero_(self, values: Tensor, groups: Tensor) -> None:
        """Set `values` (of the parameter's shape) to zero in the flagged `groups`, bool (n,)."""
        if questions.on_host(values.device):
            values.index_fill_(self.dim, self._on(values)[0][groups].flatten(), 0)
        else:  # a pass over all of it, but nobody waits to learn how many groups there are
            values.masked_fill_(self.spread(groups.to(values.device), False), 0)

    def _on(self, like: Tensor) -> tuple[Tensor, Tensor]:
        if self._indices.device != like.device:
            self._indices, self._owner = self._indices.to(like.device), self._owner.to(like.device)
        return self._indices, self._owner


class Scratch:
    """Memory for a step's intermediate tensors, kept from one step to the next.

    Fresh memory costs a page fault for every 4 KiB, which is more than the arithmetic on it.
    """

    def __init__(self) -> None:
        self._stores: dict[tuple[torch.dtype, torch.device], Tensor] = {}
        self._used: dict[tuple[torch.dtype, torch.device], int] = {}

    def clear(self) -> None:
        """All that was taken may be overwritten from now on."""
        for key, used in self._used.items():
            if used > self._stores[key].numel():
                self._stores[key] = torch.empty(used, dtype=key[0], device=key[1])
        self._used = {}

    def take(self, like: Tensor) -> Tensor:
        """An uninitialized tensor with the shape, strides, type and place of a dense one."""
        key, numel = (like.dtype, like.device), like.numel()
        store = self._stores.setdefault(key, torch.empty(0, dtype=key[0], device=key[1]))
        first = self._used.get(key, 0)
        self._used[key] = first + numel
        if first + numel > store.numel():  # the store grows at the next clear
            return torch.empty_like(like)
        return store[first : first + numel].as_strided(like.shape, like.stride(), first)


@dataclass(frozen=True)
class BoundFamily:
    """A family with the live tensors of its members."""

    family: GroupFamily
    tensors: tuple[GroupedTensor, ...]

    @property
    def size(self) -> int:
        """Number of groups, n."""
        return self.family.size

    @property
    def elements(self) -> int:
        """Elements of one group over all members, the d of √d."""
        return sum(s.elements for s in self.tensors)

    @property
    def scored(self) -> tuple[GroupedTensor, ...]:
        """The members by which a group's importance is read: its norms' (γ, β), or all where it has none."""
        return self.only("affine") or self.tensors

    @property
    def valued(self) -> tuple[GroupedTensor, ...]:
        """The scored members as importance is read from them: of a branch one group a channel, or its signs would cancel."""
        if not self.family.branch:
            return self.scored
        indices = {member.parameter: member.indices.T for member in self.family.members}
        return tuple(GroupedTensor(s.name, s.parameter, s.dim, indices[s.name], s.role) for s in self.scored)

    def squares(self) -> Tensor:
        """The squared norm of each group, (n,)."""
        return add(s.squares(at_least_float32(s.parameter)) for s in self.tensors)

    def norms(self) -> Tensor:
        """The norm of each group, (n,)."""
        return self.squares().sqrt()

    def zeros(self) -> Tensor:
        """Whether each group is exactly zero in every member, bool (n,)."""
        nonzero = add(s.sums((s.parameter != 0).to(torch.int64)) for s in self.tensors)
        return nonzero == 0

    def dead_at_first(self) -> Tensor:
        """Which groups training finds dead at its start, bool (n,): those at zero, but for a branch.

        What ends a branch begins at zero in many residual networks, and is yet to be learned.
        """
        zeros = self.zeros()
        return torch.zeros_like(zeros) if self.family.branch else zeros

    def only(self, *roles: Role) -> tuple[GroupedTensor, ...]:
        """The members in one of `roles`."""
        return tuple(s for s in self.tensors if s.role in roles)


def waves(families: Sequence[BoundFamily]) -> list[list[int]]:
    """The families by place, in groups that can be shrunk together; those of one tensor keep their order."""
    last: dict[int, int] = {}  # tensor -> the wave that shrank it last
    waves: list[list[int]] = []
    for index, family in enumerate(families):
        own = {id(s.parameter) for s in family.tensors}
        wave = max((last[one] + 1 for one in own if one in last), default=0)
        last.update(dict.fromkeys(own, wave))
        waves += [[] for _ in range(wave + 1 - len(waves))]
        waves[wave].append(index)
    return waves


def to_host(vectors: Sequence[Tensor]) -> list[NDArray[Any]]:
    """Tensors (n,) of one type as arrays, by one read."""
    if not vectors:
        return []
    device = vectors[0].device
    if questions.on_host(device):
        return [vector.cpu().numpy() for vector in vectors]
    whole = torch.cat([vector.to(device) for vector in vectors]).cpu().numpy()
    return np.split(whole, np.cumsum([len(vector) for vector in vectors])[:-1])


def add(terms: Iterable[Tensor]) -> Tensor:
    """The sum of tensors that may lie on several devices; the first one's device and type win."""
    first, *rest = terms
    for term in rest:
        first = first + term.to(first)
    return first


def at_least_float32(values: Tensor) -> Tensor:
    """`values` in at least float32, for sums of squares."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def bind(family: GroupFamily, parameters: Mapping[str, nn.Parameter]) -> BoundFamily:
    """`family` with its tensors; members of one tensor and dimension become one.

    Raises ConfigError for a tensor that is missing, groups that overlap or point outside.
    """
    merged: dict[tuple[str, int], tuple[NDArray[np.int64], Role]] = {}
    for member in family.members:
        if member.parameter not in parameters:
            raise ConfigError(f"channel group {family.name}: the model has no parameter {member.parameter!r}")
        if member.indices.ndim != 2 or len(member.indices) != family.size:
            raise ConfigError(
                f"channel group {family.name}: indices of {member.parameter} have shape"
                f" {member.indices.shape}, expected ({family.size}, k)"
            )
        key = (member.parameter, member.dim)
        if key in merged:
            # A tensor that is used twice belongs to the group once.
            indices = np.concatenate([merged[key][0], member.indices], axis=1)
            rows = [np.unique(row) for row in indices]
            if len({len(row) for row in rows}) != 1:
                raise ConfigError(f"channel group {family.name}: uneven shares of {member.parameter}")
            merged[key] = (np.stack(rows), merged[key][1])
        else:
            merged[key] = (member.indices, member.role)
    return BoundFamily(
        family,
        tuple(
            GroupedTensor(name, parameters[name], dim, indices, role)
            for (name, dim), (indices, role) in merged.items()
        ),
    )
