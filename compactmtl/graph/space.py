"""Channel coordinates: numbered ids, the axes of tensors that carry them, and which must go together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

Ids = NDArray[np.int64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Axis:
    """A dimension of a tensor whose entries are channel coordinates; `ids` is (shape[dim],).

    An id may appear more than once (a flattened map has each channel's id once per pixel).
    """

    dim: int
    ids: Ids


Layout = tuple[Axis, ...]


class Space:
    """All coordinates of one graph, with unions (these go together) and pins (these stay)."""

    def __init__(self) -> None:
        self.size = 0
        self._pairs: list[tuple[Ids, Ids]] = []
        self._pinned: list[Ids] = []

    def fresh(self, count: int) -> Ids:
        ids = np.arange(self.size, self.size + count, dtype=np.int64)
        self.size += count
        return ids

    def union(self, one: Ids, other: Ids) -> None:
        """Entry i of `one` goes if and only if entry i of `other` goes."""
        if one is not other:
            self._pairs.append((np.ravel(one), np.ravel(other)))

    def pin(self, ids: Ids) -> None:
        """These coordinates can never go."""
        self._pinned.append(np.ravel(ids))

    def classes(self) -> Ids:
        """The class of every id, as (size,) labels from 0."""
        if self._pairs:
            rows = np.concatenate([one for one, _ in self._pairs])
            columns = np.concatenate([other for _, other in self._pairs])
        else:
            rows = columns = np.empty(0, dtype=np.int64)
        links = coo_matrix((np.ones(len(rows), dtype=np.int8), (rows, columns)), shape=(self.size, self.size))
        _, labels = connected_components(links, directed=False)
        classes: Ids = np.asarray(labels, dtype=np.int64)
        return classes

    def pinned(self) -> Ids:
        if not self._pinned:
            return np.empty(0, dtype=np.int64)
        pinned: Ids = np.unique(np.concatenate(self._pinned))
        return pinned
