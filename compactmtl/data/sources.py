"""Several data sets as one: samples one data set after the other, each with the targets of all tasks.

A target that a sample's data set does not have is unknown. The targets are called like the recipe's tasks.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from compactmtl.config.recipe import DataConfig
from compactmtl.config.sources import SourceConfig, of_source
from compactmtl.data.base import Sample, Split, VisionDataset
from compactmtl.data.class_map import ClassMap, Labels, class_map, combined, unknown
from compactmtl.data.fingerprint import Sources, sources_of
from compactmtl.data.labels import labeled
from compactmtl.data.part import Chosen
from compactmtl.data.pseudo_labels import PseudoLabels, put_all
from compactmtl.errors import ConfigError
from compactmtl.tasks.base import TargetSpec
from compactmtl.tasks.common import nearest

Load = Callable[[DataConfig, Split], VisionDataset]


class SourcePart:
    """One source's samples with the targets of all tasks: its own in the tasks' formats, the others unknown.

    `config` is the data section of this source alone. What is unknown `taught` may know; counts of labels are without it.
    """

    def __init__(
        self,
        source: SourceConfig,
        config: DataConfig,
        dataset: VisionDataset,
        specs: Mapping[str, TargetSpec],
        maps: Mapping[str, ClassMap],
        taught: Sequence[PseudoLabels] = (),
    ) -> None:
        self.source, self.config, self.split = source, config, dataset.split
        self.name = source.called
        self.specs: Mapping[str, TargetSpec] = specs
        self.inner = dataset
        self._maps, self._taught = maps, tuple(taught)

    @property
    def own_targets(self) -> tuple[str, ...]:
        """The targets that its samples can have a label of."""
        return tuple(self._maps)

    @property
    def notes(self) -> tuple[str, ...]:
        """The data set's, with its name."""
        return tuple(f"{self.name}: {note}" for note in getattr(self.inner, "notes", ()))

    def __len__(self) -> int:
        return len(self.inner)

    def __getitem__(self, index: int) -> Sample:
        sample = self.inner[index]
        own = sample["targets"]
        targets = {
            task: self._maps[task](own[self.source.target(task)])
            if task in self._maps
            else unknown(spec, self.config.size)
            for task, spec in self.specs.items()
        }
        renamed: Sample = {**sample, "targets": targets}
        if "references" in sample:
            given = sample["references"]
            named = {task: self.source.target(task) for task in self._maps}
            renamed["references"] = {task: given[name] for task, name in named.items() if name in given}
        return put_all(self._taught, index, renamed)

    def identifier(self, index: int) -> str:
        """The data set's."""
        return self.inner.identifier(index)

    def labeled(self, target: str) -> NDArray[np.bool_] | None:
        """Which samples have a label of a task: bool (N,); None where that would need them decoded."""
        if target not in self._maps:
            return np.zeros(len(self), np.bool_)
        mapping = self._maps[target]
        if mapping.drops_labels and mapping.theirs.kind != "mask":
            return None
        return labeled(self.inner, self.source.target(target))

    def may_be_unknown(self, target: str) -> bool:
        """Whether a label of the data set can have nothing of the task, as a mask of classes that it does not have."""
        return target in self._maps and self._maps[target].drops_labels

    def chosen(self, indices: Sequence[int]) -> SourcePart:
        """Some of its samples."""
        taught = [one.chosen(indices) for one in self._taught]
        return SourcePart(
            self.source, self.config, Chosen(self.inner, indices), self.specs, self._maps, taught
        )

    def taught(self, labels: Sequence[PseudoLabels]) -> SourcePart:
        """The same with a teacher's labels beside its own."""
        return SourcePart(self.source, self.config, self.inner, self.specs, self._maps, labels)


class SourcesDataset:
    """The samples of all sources, one source after the other."""

    def __init__(self, split: str, parts: Sequence[SourcePart]) -> None:
        self.split, self.parts = split, tuple(parts)
        self.specs: Mapping[str, TargetSpec] = self.parts[0].specs
        self.starts = (0, *accumulate(len(part) for part in self.parts))

    @property
    def notes(self) -> tuple[str, ...]:
        """Those of all sources."""
        return tuple(note for part in self.parts for note in part.notes)

    def __len__(self) -> int:
        return self.starts[-1]

    def __getitem__(self, index: int) -> Sample:
        part, inner = self.place(index)
        return self.parts[part][inner]

    def place(self, index: int) -> tuple[int, int]:
        """The number of a sample's source, and its number there."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        part = bisect_right(self.starts, index) - 1
        return part, index - self.starts[part]

    def identifier(self, index: int) -> str:
        """The data set's."""
        part, inner = self.place(index)
        return self.parts[part].identifier(inner)

    def labeled(self, target: str) -> NDArray[np.bool_] | None:
        """Which samples have a label of a task: bool (N,); None where a source cannot say."""
        flags = [part.labeled(target) for part in self.parts]
        known = [one for one in flags if one is not None]
        return np.concatenate(known) if len(known) == len(flags) else None

    def sources(self, index: int) -> Sources:
        """What a sample is made of, for the fingerprint; its name begins with its source's."""
        part, inner = self.place(index)
        one = self.parts[part]
        found = sources_of(one.inner, inner, one.config.root)
        return Sources(f"{one.name}/{found.name}", found.files, found.values)

    def chosen(self, indices: Sequence[int]) -> SourcesDataset:
        """Some of the samples, by source and in each in the order of `indices`; a source of which there is none is left out."""
        by_part: dict[int, list[int]] = {}
        for index in indices:
            part, inner = self.place(index)
            by_part.setdefault(part, []).append(inner)
        parts = [self.parts[number].chosen(by_part[number]) for number in sorted(by_part)]
        return SourcesDataset(self.split, parts)


def choose(dataset: VisionDataset, indices: Sequence[int]) -> VisionDataset:
    """Some samples of a data set, by index; an index may come twice."""
    return dataset.chosen(indices) if isinstance(dataset, SourcesDataset) else Chosen(dataset, indices)


def first(dataset: VisionDataset, count: int) -> list[int]:
    """The numbers of the first samples; of several sources the first of each in proportion, and one of each at least."""
    if not isinstance(dataset, SourcesDataset):
        return list(range(min(count, len(dataset))))
    sizes = [len(part) for part in dataset.parts]
    wanted = min(max(count, len(sizes)), len(dataset))
    counts = [max(1, wanted * size // len(dataset)) for size in sizes]
    while sum(counts) > wanted:  # raised to one each
        counts[int(np.argmax(counts))] -= 1
    for number in np.argsort(
        [count / size for count, size in zip(counts, sizes, strict=True)], kind="stable"
    ):
        counts[number] += min(wanted - sum(counts), 1 if counts[number] < sizes[number] else 0)
    return [start + n for start, some in zip(dataset.starts, counts, strict=False) for n in range(some)]


def spread(dataset: VisionDataset, count: int) -> list[int]:
    """Numbers of `count` samples at even steps; of several sources, one of each at least. One may come twice."""
    if not isinstance(dataset, SourcesDataset):
        return [position * len(dataset) // count for position in range(count)]
    shares = [count * len(part) / len(dataset) for part in dataset.parts]
    counts = [max(1, int(share)) for share in shares]
    while sum(counts) < count:
        counts[int(np.argmax([share - some for share, some in zip(shares, counts, strict=True)]))] += 1
    while sum(counts) > max(count, len(counts)):
        counts[int(np.argmax(counts))] -= 1
    return [
        start + position * len(part) // some
        for start, part, some in zip(dataset.starts, dataset.parts, counts, strict=False)
        for position in range(some)
    ]


def load_sources(config: DataConfig, split: Split, load: Load) -> SourcesDataset:
    """A split of every source. The training split has each source's own size, the others the deployed one.

    Raises ConfigError where a source lacks a task's target or sources do not agree on one, DataError as `load` does.
    """
    sections = [of_source(config, source, deployed=split != "train") for source in config.sources]
    loaded = [load(section, split) for section in sections]
    by_task: dict[str, list[Labels]] = {}
    for source, dataset in zip(config.sources, loaded, strict=True):
        for task in source.tasks:
            by_task.setdefault(task, []).append(_labels(source, dataset, task))
    specs = {task: combined(task, labels) for task, labels in by_task.items()}
    maps = {
        (labels.source.called, task): class_map(task, labels, specs[task])
        for task, each in by_task.items()
        for labels in each
    }
    return SourcesDataset(
        split,
        [
            SourcePart(
                source,
                section,
                dataset,
                specs,
                {task: maps[source.called, task] for task in source.tasks},
            )
            for source, section, dataset in zip(config.sources, sections, loaded, strict=True)
        ],
    )


def _labels(source: SourceConfig, dataset: VisionDataset, task: str) -> Labels:
    """What a source has of a task. Raises ConfigError where it has no such target."""
    target = source.target(task)
    if target not in dataset.specs:
        offered = ", ".join(f"{name} ({spec.kind})" for name, spec in dataset.specs.items()) or "none"
        raise ConfigError(
            f"data.sources: {source.called} has no target {target!r} for task {task!r}; it offers {offered}",
            f"name it in the source's `targets: {{{task}: …}}`; {nearest(target, list(dataset.specs))}",
        )
    flags = labeled(dataset, target)
    return Labels(source, target, dataset.specs[target], len(dataset) if flags is None else int(flags.sum()))
