"""How many samples have a label of each target, and what to say of it."""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compactmtl.data.base import Sample, VisionDataset
from compactmtl.data.unreadable import skips
from compactmtl.errors import DataError
from compactmtl.tasks.base import TargetSpec


def labeled(dataset: VisionDataset, target: str) -> NDArray[np.bool_] | None:
    """Which samples have a label of a target, bool (N,); None where the data set cannot say without decoding them all."""
    say = getattr(dataset, "labeled", None)
    return None if say is None else say(target)


def known_labels(dataset: VisionDataset, targets: Iterable[str]) -> dict[str, int | None]:
    """The number of samples with a label of each of these targets; None where it cannot be said."""
    counts: dict[str, int | None] = {}
    for target in targets:
        flags = labeled(dataset, target)
        counts[target] = None if flags is None else int(flags.sum())
    return counts


def anything_known(spec: TargetSpec, values: NDArray[Any]) -> NDArray[np.bool_]:
    """Of targets (N, ...) in the format of `spec`, which say anything: bool (N,)."""
    known = known_elements(spec, values)
    return np.asarray(known.reshape(len(values), math.prod(known.shape[1:])).any(1), np.bool_)


def known_elements(spec: TargetSpec, values: NDArray[Any]) -> NDArray[np.bool_]:
    """Of targets (N, ...) in the format of `spec`, what is known of each: bool (N, ...), of maps of vectors without them."""
    if spec.kind in ("mask", "class") and spec.ignore_index is not None:
        known = values != spec.ignore_index
    elif spec.kind == "scalar":
        known = np.isfinite(values)
    elif spec.kind == "multilabel":
        known = values >= 0
    elif spec.kind in ("depth", "disparity"):
        known = (values > 0) & np.isfinite(values)
    elif spec.kind == "normals":
        known = (values != 0).any(1) & np.isfinite(values).all(1)
    elif spec.kind == "instances":  # 0, that nothing is there, is known as well
        known = values[:, 0] >= 0
    else:  # a mask or a class without an ignore index
        known = np.ones(values.shape, np.bool_)
    return np.asarray(known, np.bool_)


def label_line(split: str, count: int, known: Mapping[str, int | None]) -> str:
    """Such as "train: segmentation 804 of 2,000, depth 1,500 of 2,000"."""
    parts = [
        f"{name} not counted" if some is None else f"{name} {some:,} of {count:,}"
        for name, some in known.items()
    ]
    return f"{split}: {', '.join(parts)}"


def parts(split: str, dataset: VisionDataset) -> list[tuple[str, VisionDataset]]:
    """The data sets in one of several (see `sources`), with what each is called in that split; none of one alone."""
    return [(f"{split} of {part.name}", part) for part in getattr(dataset, "parts", ())]


def label_lines(
    splits: Mapping[str, VisionDataset], targets: Mapping[str, str], taught: Container[str] = ()
) -> tuple[str, ...]:
    """What training says of its data: for each split how many samples have a label of each task, and its notes.

    `targets` gives each task's; those that are `taught` have a teacher of the training split's labels. Of several data sets
    each is counted by itself. Raises DataError for a split in which no sample has a label of a task, or none of a data
    set that should: it could be neither learned nor measured there.
    """
    lines: list[str] = []
    notes: dict[str, None] = {}
    for split, dataset in splits.items():
        for called, one in (*parts(split, dataset), (split, dataset)):
            own = getattr(one, "own_targets", None)
            asked = {task: target for task, target in targets.items() if own is None or target in own}
            by_target = known_labels(one, asked.values())
            known = {task: by_target[target] for task, target in asked.items()}
            for task, count in known.items():
                if split == "train" and asked[task] in taught:
                    continue
                if count == 0:
                    raise DataError(
                        f"task {task!r}: not one sample of split {called} has a label of it",
                        "give labels of it in that split, choose other splits, or take the task out of the recipe",
                    )
                if not _says_anything(one, asked[task]):
                    raise DataError(
                        f"task {task!r}: not one sample of split {called} has a class of it: all of its labels are unmapped",
                        "map one of its classes in the source's `classes`, or take the task out of the source's `tasks`",
                    )
            lines.append(f"labels of {label_line(called, len(one), known)}")
        notes |= dict.fromkeys(getattr(dataset, "notes", ()))
    return (*lines, *(f"note: {note}" for note in notes))


def _says_anything(dataset: VisionDataset, target: str) -> bool:
    """Whether a label of a data set, some of whose classes the task does not have, has one that it has.

    Samples are decoded up to the first that has.
    """
    may_be_unknown = getattr(dataset, "may_be_unknown", None)
    if may_be_unknown is None or not may_be_unknown(target):
        return True
    spec, flags = dataset.specs[target], labeled(dataset, target)
    numbers = range(len(dataset)) if flags is None else np.flatnonzero(flags).tolist()
    return any(
        anything_known(spec, sample["targets"][target].numpy()[None])[0] for sample in _read(dataset, numbers)
    )


def _read(dataset: VisionDataset, numbers: Iterable[int]) -> Iterator[Sample]:
    """Samples by number, without those that training passes over."""
    config = getattr(dataset, "config", None)
    for number in numbers:
        try:
            yield dataset[number]
        except DataError:
            if config is None or not skips(config, dataset.split):
                raise
