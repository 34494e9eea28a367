"""One target from several data sets: its classes by name, and each data set's labels in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from compactmtl.config.sources import SourceConfig
from compactmtl.data.fit import PADDED
from compactmtl.data.stored import layout
from compactmtl.data.tables import UNKNOWN_CLASS
from compactmtl.errors import ConfigError
from compactmtl.tasks.base import TargetSpec
from compactmtl.tasks.common import nearest

_UNMAPPED = -1  # in a table of classes: the task has no such class


@dataclass(frozen=True)
class Labels:
    """What one source has of a task: its target's name and format, and how many training samples have a label."""

    source: SourceConfig
    target: str
    spec: TargetSpec
    count: int


@dataclass(frozen=True)
class ClassMap:
    """A source's labels as the task's: `numbers` is the task's class for each of the source's, -1 for none."""

    theirs: TargetSpec
    ours: TargetSpec
    numbers: tuple[int, ...]

    @property
    def drops_labels(self) -> bool:
        """Whether a label of the source can become unknown."""
        return _UNMAPPED in self.numbers

    def __call__(self, value: Tensor) -> Tensor:
        """A target of one sample in the task's format."""
        same = self.theirs.classes == self.ours.classes and self.numbers == tuple(range(len(self.numbers)))
        kind, ignore = self.theirs.kind, self.ours.ignore_index
        if kind in ("mask", "class"):
            if same and self.theirs.ignore_index in (None, ignore):
                return value
            known = (value >= 0) & (value < len(self.numbers))
            if self.theirs.ignore_index is not None:
                known &= value != self.theirs.ignore_index
            table = torch.tensor(self.numbers)
            mapped = table[torch.where(known, value, 0)]
            assert ignore is not None  # of `combined`
            return torch.where(known & (mapped >= 0), mapped, ignore)
        if kind == "multilabel" and not same:
            return self._flags(value)
        return value

    def _flags(self, value: Tensor) -> Tensor:
        """Of (K,): a class is present where one that became it is, absent where all are, and else unknown."""
        mapped = torch.full((len(self.ours.classes),), -1.0)
        for number in range(len(self.ours.classes)):
            own = [n for n, ours in enumerate(self.numbers) if ours == number]
            if own:
                flags = value[own]
                mapped[number] = 1.0 if (flags == 1).any() else flags.min()
        return mapped


def combined(task: str, labels: Sequence[Labels]) -> TargetSpec:
    """A task's format from all sources that label it; it can say that nothing is known.

    Raises ConfigError where kinds or units differ, or classes do and no mapping says how they are meant.
    """
    first = labels[0]
    for one in labels[1:]:
        for key in ("kind", "unit"):
            mine, theirs = getattr(first.spec, key), getattr(one.spec, key)
            if mine != theirs:
                raise ConfigError(
                    f"data.sources: {task} has {key} {mine!r} in {first.source.called} and {theirs!r} in "
                    f"{one.source.called}",
                    "give the second a task of its own, or another target in its `targets`",
                )
    spec = replace(first.spec, classes=_first_classes(task, first))
    if spec.kind == "scalar":
        mean, std = _statistics(labels)
        spec = replace(spec, mean=mean, std=std)
    if spec.kind == "mask":
        spec = replace(spec, ignore_index=_ignored(task, spec, labels))
    if spec.kind == "class":
        spec = replace(spec, ignore_index=UNKNOWN_CLASS)
    pairs = {
        pair: None
        for one in labels
        for pair in _mirrored(one.spec, class_map(task, one, replace(spec, mirrored=())))
    }
    return replace(spec, mirrored=tuple(pairs))


def class_map(task: str, labels: Labels, ours: TargetSpec) -> ClassMap:
    """How a source's labels become the task's.

    Raises ConfigError for a mapping that names a class that is not there, and for classes that the task does not have
    and the source does not ignore.
    """
    given, theirs = labels.source.classes.get(task, {}), labels.spec.classes
    where = f"data.sources: {labels.source.called}.classes.{task}"
    for name, meant in given.items():
        if name not in theirs:
            raise ConfigError(
                f"{where}: {name!r} is no class of {labels.source.name}", nearest(name, list(theirs))
            )
        if meant not in ours.classes:
            raise ConfigError(f"{where}: {meant!r} is no class of {task}", nearest(meant, list(ours.classes)))
    index = {name: number for number, name in enumerate(ours.classes)}
    numbers = tuple(index.get(given.get(name, name), _UNMAPPED) for name in theirs)
    unmapped = [name for name, number in zip(theirs, numbers, strict=True) if number == _UNMAPPED]
    if unmapped and labels.source.unmapped == "error":
        shown = ", ".join(unmapped[:5]) + (", ..." if len(unmapped) > 5 else "")
        raise ConfigError(
            f"data.sources: {labels.source.called} has classes that {task} does not have: {shown}; {task} has "
            f"{', '.join(ours.classes)}",
            f"say what each is in the source's `classes: {{{task}: {{{unmapped[0]}: …}}}}`, or set its `unmapped: ignore`",
        )
    if labels.spec.kind == "instances" and theirs != ours.classes:
        raise ConfigError(
            f"data.sources: {labels.source.called} has other classes of instances than {task}, or in another order",
            "instances of several sources need one list of classes: convert one of the data sets, or give it a task of "
            "its own",
        )
    if not given and theirs and not unmapped and set(theirs) != set(ours.classes):
        missing = [name for name in ours.classes if name not in theirs]
        raise ConfigError(
            f"data.sources: {labels.source.called} does not have {', '.join(missing[:5])} of {task}, so what it calls "
            "something else may be one of these",
            f"say what its classes are in `classes: {{{task}: {{{theirs[0]}: {theirs[0]}}}}}`, which then counts as a "
            "mapping of all of them by name",
        )
    return ClassMap(labels.spec, ours, numbers)


def unknown(spec: TargetSpec, size: tuple[int, int]) -> Tensor:
    """A target of one sample of which nothing is known."""
    kind = layout(spec, size)
    array = torch.from_numpy(np.full(kind.shape, spec.unknown, np.float64))
    return array.float() if kind.dtype == "float32" else array.long()


def _first_classes(task: str, labels: Labels) -> tuple[str, ...]:
    """The task's classes: those of the first source that labels it, as it maps them, each once."""
    given: Mapping[str, str] = labels.source.classes.get(task, {})
    if labels.source.unmapped == "ignore" and given:
        return tuple(dict.fromkeys(given[name] for name in labels.spec.classes if name in given))
    return tuple(dict.fromkeys(given.get(name, name) for name in labels.spec.classes))


def _statistics(labels: Sequence[Labels]) -> tuple[float, float]:
    """Mean and standard deviation over all labels together."""
    if len(labels) == 1:
        return labels[0].spec.mean, labels[0].spec.std
    labels = [one for one in labels if one.count]
    if not labels:
        return (
            0.0,
            1.0,
        )  # of no label at all, as of one data set: nothing can be learned from it, and who counts says so
    weights = np.array([one.count for one in labels], np.float64)
    weights /= weights.sum()
    means, stds = (
        np.array([getattr(one.spec, key) for one in labels], np.float64) for key in ("mean", "std")
    )
    mean = float((weights * means).sum())
    return mean, float(np.sqrt((weights * (stds**2 + (means - mean) ** 2)).sum()))


def _ignored(task: str, spec: TargetSpec, labels: Sequence[Labels]) -> int:
    """The value of a mask where nothing is known."""
    own = spec.ignore_index
    if own is not None and own >= len(spec.classes):
        return own
    if own is not None and len(labels) == 1 and spec.classes == labels[0].spec.classes:
        return own  # one of the classes, which the data set never counts
    if len(spec.classes) > PADDED:
        raise ConfigError(
            f"data.sources: {task} has {len(spec.classes)} classes, which leave no value for what is unknown",
            "map some of them to one in `classes`",
        )
    return PADDED


def _mirrored(theirs: TargetSpec, mapping: ClassMap) -> list[tuple[str, str]]:
    """A source's pairs that change places in a mirror image, in the task's classes; those that became one have none."""
    number = {name: mapping.numbers[n] for n, name in enumerate(theirs.classes)}
    pairs = []
    for pair in theirs.mirrored:
        one, other = sorted(number[name] for name in pair)
        if one != other and one != _UNMAPPED:
            pairs.append((mapping.ours.classes[one], mapping.ours.classes[other]))
    return pairs
