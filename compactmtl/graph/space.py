"""Channel coordinates: numbered ids, the axes of tensors that carry them, and which must go together."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

Ids = NDArray[np.int64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Axis:
    """Dimensions of a tensor whose entries are channel coordinates.

    `ids` has one dimension for each of `dims`: (C,) for the usual one, (heads, size) where a view has split
    the channel. An id may appear more than once (a flattened map has each channel's id once per pixel).
    """

    dims: tuple[int, ...]
    ids: Ids

    @property
    def dim(self) -> int | None:
        """The dimension, where there is just one."""
        return self.dims[0] if len(self.dims) == 1 else None


Layout = tuple[Axis, ...]


@dataclass(frozen=True, eq=False)
class Grid:
    """Coordinates that stay a full grid: every row keeps as many entries as the others, or goes as part of a unit.

    With `product`, the same entries in every row: the grid is walked in another order later on. Where the entries of each row
    go together, such as the two parts of a complex number, `upper` is the grid of the rows in its place.
    """

    ids: Ids  # (rows, columns)
    product: bool = False
    reason: str = ""
    upper: Ids | None = None

    def resolved(self, labels: Ids) -> Ids:
        """The coordinates that stay a full grid, with the class of each in `labels`."""
        if self.upper is None:
            return self.ids
        rows = labels[self.ids]
        return self.upper if bool((rows == rows[:, :1]).all()) else self.ids


class Space:
    """All coordinates of one graph, with unions (these go together) and pins (these stay)."""

    def __init__(self) -> None:
        self.size = 0
        self.grids: list[Grid] = []
        self.units: list[Ids] = []
        self._pairs: list[tuple[Ids, Ids]] = []
        self._pinned: list[tuple[Ids, str]] = []

    def fresh(self, count: int) -> Ids:
        ids = np.arange(self.size, self.size + count, dtype=np.int64)
        self.size += count
        return ids

    def union(self, one: Ids, other: Ids) -> None:
        """Entry i of `one` goes if and only if entry i of `other` goes (broadcast against each other)."""
        if one is not other:
            first, second = np.broadcast_arrays(one, other)
            self._pairs.append((first.ravel(), second.ravel()))

    def pin(self, ids: Ids, reason: str) -> None:
        """These coordinates can never go, for this reason."""
        self._pinned.append((np.ravel(ids), reason))

    def grid(self, grid: Grid, operator: str) -> None:
        """These coordinates, (rows, columns), must stay a full grid, for what the operator does with them."""
        if grid.ids.shape[0] > 1 and grid.ids.shape[1] > 0:
            equal = "the same channels of each" if grid.product else "equal numbers of them"
            self.grids.append(replace(grid, reason=f"{operator}: its parts keep {equal}"))

    def unit(self, ids: Ids) -> None:
        """Each row of (units, any) is one whole: a head, or the group of a convolution.

        Where all of it goes, grids do without its rows.
        """
        self.units.append(ids)

    def classes(self, coupled: bool = False) -> Ids:
        """The class of every id, as (size,) labels from 0.

        `coupled` also joins column j of all rows of each grid, so that any class can go on its own.
        """
        pairs = list(self._pairs)
        if coupled:
            plain = self.classes()
            grids = [grid.resolved(plain) for grid in self.grids]
            pairs += [(np.broadcast_to(ids[:1], ids.shape).ravel(), ids.ravel()) for ids in grids]
        rows = np.concatenate([one for one, _ in pairs]) if pairs else np.empty(0, dtype=np.int64)
        columns = np.concatenate([other for _, other in pairs]) if pairs else np.empty(0, dtype=np.int64)
        links = coo_matrix((np.ones(len(rows), dtype=np.int8), (rows, columns)), shape=(self.size, self.size))
        _, labels = connected_components(links, directed=False)
        classes: Ids = np.asarray(labels, dtype=np.int64)
        return classes

    def pinned(self) -> Ids:
        if not self._pinned:
            return np.empty(0, dtype=np.int64)
        pinned: Ids = np.unique(np.concatenate([ids for ids, _ in self._pinned]))
        return pinned

    def reasons(self, labels: Ids) -> dict[int, str]:
        """Why each class of `labels` has to stay, of those that something pins: the first reason given."""
        reasons: dict[int, str] = {}
        for ids, reason in self._pinned:
            for label in np.unique(labels[ids]):
                reasons.setdefault(int(label), reason)
        return reasons
