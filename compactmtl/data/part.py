"""A part of a data set: a share of a training split, for learning curves over its size, or samples by number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath

import numpy as np
from numpy.typing import NDArray

from compactmtl.data.base import Sample, VisionDataset
from compactmtl.data.cache import hold_out
from compactmtl.data.fingerprint import Sources, sources_of
from compactmtl.data.labels import labeled
from compactmtl.tasks.base import TargetSpec


class Part:
    """A share of another data set's samples, at least one.

    A hash of each sample's name chooses: a smaller share is a part of a larger one, wherever the data lies. The targets'
    specifications are the whole split's.
    """

    def __init__(self, whole: VisionDataset, share: float) -> None:
        # salted: which samples are held out for selection is decided by the plain name
        names = [f"part {PurePath(whole.identifier(index)).name}" for index in range(len(whole))]
        self._whole = whole
        self._numbers = hold_out(names, share)[1]
        self.split = whole.split
        self.specs: Mapping[str, TargetSpec] = whole.specs

    @property
    def notes(self) -> tuple[str, ...]:
        """The whole split's."""
        return tuple(getattr(self._whole, "notes", ()))

    def labeled(self, target: str) -> NDArray[np.bool_] | None:
        """Which samples have a label of a target: bool (N,); None where the whole split cannot say."""
        flags = labeled(self._whole, target)
        return None if flags is None else flags[self._numbers]

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> Sample:
        return self._whole[self._numbers[index]]

    def identifier(self, index: int) -> str:
        """The whole split's."""
        return self._whole.identifier(self._numbers[index])

    def sources(self, index: int) -> Sources:
        """The whole split's."""
        return sources_of(self._whole, self._numbers[index])


class Chosen:
    """Some samples of a data set, by index; an index may come twice."""

    def __init__(self, whole: VisionDataset, indices: Sequence[int]) -> None:
        self.whole, self.indices = whole, indices
        self.specs, self.split = whole.specs, whole.split

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Sample:
        return self.whole[self.indices[index]]

    def labeled(self, target: str) -> NDArray[np.bool_] | None:
        """Which samples have a label of a target: bool (N,); None where the whole split cannot say."""
        flags = labeled(self.whole, target)
        return None if flags is None else flags[list(self.indices)]

    def identifier(self, index: int) -> str:
        """The whole split's."""
        return self.whole.identifier(self.indices[index])
