"""A teacher's labels for the samples of a data set that have none: made once, kept, and put in where a sample is read.

A map is labeled whole: where an image has a map, what is unknown in it was left out by whoever drew it. Tags are labeled
one by one. A label goes in before augmentation, so that it moves with its image.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from threading import Lock
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compactmtl.config.augment import AugmentConfig
from compactmtl.data.base import Sample, VisionDataset
from compactmtl.data.cache import Arrays, Store, open_store
from compactmtl.data.fit import scaled
from compactmtl.data.labels import anything_known, known_elements, labeled
from compactmtl.data.stored import layout
from compactmtl.data.transforms import Draw, augment
from compactmtl.tasks.base import TargetSpec
from compactmtl.tasks.placement import Size, nearest

Label = Callable[
    [Sample], tuple[Tensor, Tensor]
]  # a sample's label without a batch dimension, and where it counts

_LABEL = "label"  # the array of a store
_AT_ONCE = 256  # stored labels that are counted at a time


@dataclass(frozen=True)
class Filled:
    """What came of a teacher's labels: samples, those that have a label without it, those it was asked for and labeled.

    `sure` is the pixels or tags that it was sure of, `elements` all of the samples that it labeled.
    """

    samples: int = 0
    known: int = 0
    asked: int = 0
    filled: int = 0
    sure: int = 0
    elements: int = 0

    def __add__(self, other: Filled) -> Filled:
        return Filled(*(getattr(self, one.name) + getattr(other, one.name) for one in fields(Filled)))


class PseudoLabels:
    """The labels that a teacher gives samples of a data set: of those in `numbers`, which have none."""

    def __init__(
        self,
        target: str,
        spec: TargetSpec,
        numbers: Sequence[int],
        store: Store,
        filled: Callable[[], None] | None = None,
    ) -> None:
        """`filled` is called once every label is made."""
        self.target, self.spec = target, spec
        self._filled = filled
        self._store = store
        self._places = {number: place for place, number in enumerate(numbers)}

    def __len__(self) -> int:
        """Samples that the teacher is asked for."""
        return len(self._places)

    def put(self, index: int, sample: Sample) -> Sample:
        """The sample with the label, where it had none and the teacher is sure."""
        place = self._places.get(index)
        if place is None:
            return sample
        own = sample["targets"][self.target]
        label = torch.from_numpy(np.asarray(self._store.read(place)[_LABEL])).to(own.dtype)
        if self.spec.kind == "multilabel":
            label = torch.where(own < 0, label, own)
        return {**sample, "targets": {**sample["targets"], self.target: label}}

    def fill(self) -> None:
        """Ask the teacher for every label now."""
        self._store.fill()
        if self._filled is not None:
            self._filled()
            self._filled = None

    def counted(self) -> Filled:
        """What the teacher labeled; `known` is left to the data set. The labels are filled."""
        filled, sure, elements = 0, 0, 0
        column = self._store.column(_LABEL)
        assert column is not None  # `fill` came first
        for start in range(0, len(column), _AT_ONCE):
            some = column[start : start + _AT_ONCE]
            found = anything_known(self.spec, some)
            counts = known_elements(self.spec, some[found])
            filled, sure, elements = (
                filled + int(found.sum()),
                sure + int(counts.sum()),
                elements + counts.size,
            )
        return Filled(0, 0, len(self), filled, sure, elements)

    def chosen(self, indices: Sequence[int]) -> PseudoLabels:
        """Those of some of the samples, numbered as they come in `indices`."""
        one = PseudoLabels(self.target, self.spec, (), self._store)
        one._places = {
            number: self._places[index] for number, index in enumerate(indices) if index in self._places
        }
        return one


class Taught:
    """A data set whose samples have a teacher's labels beside their own. Counts of labels stay those of its own."""

    def __init__(self, whole: VisionDataset, labels: Sequence[PseudoLabels]) -> None:
        self.whole, self._labels = whole, tuple(labels)
        self.split, self.specs = whole.split, whole.specs

    def __len__(self) -> int:
        return len(self.whole)

    def __getitem__(self, index: int) -> Sample:
        return put_all(self._labels, index, self.whole[index])

    def identifier(self, index: int) -> str:
        """The data set's."""
        return self.whole.identifier(index)

    def labeled(self, target: str) -> NDArray[np.bool_] | None:
        """The data set's."""
        return labeled(self.whole, target)


def put_all(labels: Sequence[PseudoLabels], index: int, sample: Sample) -> Sample:
    """A sample with the labels of several targets."""
    for one in labels:
        sample = one.put(index, sample)
    return sample


def unlabeled(dataset: VisionDataset, target: str) -> list[int]:
    """The samples that have no label of a target; of tags, those that lack one of them.

    Samples are decoded where the data set cannot say.
    """
    flags, spec = labeled(dataset, target), dataset.specs[target]
    doubtful = list(range(len(dataset)))
    if flags is not None:
        doubtful = np.flatnonzero(flags).tolist() if spec.kind == "multilabel" else []
    found = [] if flags is None else np.flatnonzero(~flags).tolist()
    for index in doubtful:
        value = dataset[index]["targets"][target].numpy()[None]
        lacking = (value < 0).any() if spec.kind == "multilabel" else not anything_known(spec, value)[0]
        if lacking:
            found.append(index)
    return sorted(found)


def pseudo_labels(
    dataset: VisionDataset,
    target: str,
    numbers: Sequence[int],
    label: Label,
    size: Size,
    cache: Literal["memory", "disk", "none"],
    folder: Callable[[], Path],
) -> PseudoLabels:
    """The labels of a target that `label` is to give some samples of a data set.

    Args:
        numbers: the samples, at least one (see `unlabeled`).
        label: a teacher; it is asked for one sample at a time.
        size: of the data set's maps.
        cache: `data.cache`; where samples are not kept, labels are, in memory.
        folder: the folder of a disk cache, whose name changes with whatever decides the labels.
    """
    spec = dataset.specs[target]
    make = _Making(dataset, target, numbers, label)
    layouts = {_LABEL: layout(spec, size)}
    on_disk = cache == "disk"
    store = open_store(
        "disk" if on_disk else "memory", len(numbers), layouts, make, folder() if on_disk else Path()
    )
    return PseudoLabels(target, spec, numbers, store, make.release)


class _Making:
    """Makes labels for a store, one at a time: it decodes in several threads, and one asks the teacher.

    A copy in another process has no teacher: there all labels are made already.
    """

    def __init__(self, dataset: VisionDataset, target: str, numbers: Sequence[int], label: Label) -> None:
        self._dataset, self._target, self._numbers = dataset, target, numbers
        self._label: Label | None = label
        self._lock = Lock()

    def __call__(self, place: int) -> Arrays:
        assert self._label is not None
        sample, spec = self._dataset[self._numbers[place]], self._dataset.specs[self._target]
        own = sample["targets"][self._target]
        with self._lock:
            label, sure = self._label(sample)
        if own.ndim >= 2 and "inside" in sample:
            sure = sure & (sample["inside"] > 0)
        if spec.kind == "multilabel":
            sure = sure & (own < 0)
        assert spec.unknown is not None  # a sample without a label
        value = torch.where(sure, label.to(torch.float64), spec.unknown)
        return {_LABEL: value.numpy()}

    def release(self) -> None:
        """Let the teacher go: all labels are made."""
        self._label = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_label": None, "_lock": None}


def resized(sample: Sample, size: Size) -> Sample:
    """The sample's pictures stretched to a teacher's size, without its targets."""
    pictures = {"image": sample["image"], **_pictures(sample)}
    fitted = {
        name: torch.from_numpy(np.ascontiguousarray(scaled(one.numpy(), size)))
        for name, one in pictures.items()
    }
    moved: Sample = {"image": fitted.pop("image"), "targets": {}}
    if "others" in sample:
        moved["others"] = {**sample["others"], **fitted}
    return moved


def _pictures(sample: Sample) -> Mapping[str, Tensor]:
    return {name: one for name, one in sample.get("others", {}).items() if one.ndim == 3}


def map_at(values: Tensor, size: Size) -> Tensor:
    """A map (..., h, w) at another size: each pixel takes the nearest one."""
    return torch.from_numpy(nearest(values.numpy(force=True), size))


def mirrored(sample: Sample, specs: Mapping[str, TargetSpec]) -> Sample:
    """The sample and its targets in a mirror, by the rules of augmentation."""
    choices = Draw(flip=True, zoom=1.0, place=(0.0, 0.0), shift=(0.0, 0.0), color=(1.0, 1.0, 1.0))
    return augment(sample, specs, AugmentConfig(flip=True), choices)
