"""Labels from teachers for the training images that have none (`data.pseudo_labels`).

A teacher sees each such image once, decoded and not augmented, and its labels are kept as `data.cache` keeps the images.
What is measured has no such label: no other split is touched.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compactmtl.artifacts.told import tell
from compactmtl.config import Recipe
from compactmtl.config.recipe import DataConfig
from compactmtl.data.base import Sample, VisionDataset
from compactmtl.data.cache import content_key, user_cache
from compactmtl.data.labels import known_labels
from compactmtl.data.pseudo_labels import (
    Filled,
    PseudoLabels,
    Taught,
    map_at,
    mirrored,
    pseudo_labels,
    resized,
    unlabeled,
)
from compactmtl.data.sources import SourcePart, SourcesDataset
from compactmtl.distributed.processes import is_first
from compactmtl.errors import DataError
from compactmtl.tasks import TargetSpec, Task
from compactmtl.tasks.labeling import sure_labels
from compactmtl.train.label_teachers import (
    LabelTeacher,
    check_answer,
    check_bound,
    check_prepared,
    class_numbers,
    open_teacher,
)


@dataclass(frozen=True)
class TaughtTask:
    """A task with a teacher of its unlabeled training images: who it is, and what came of its labels.

    `filled` is none where the teacher was not asked.
    """

    task: str
    teacher: str
    sha256: str
    bound: str
    parts: str  # what a label has many of: pixels, tags; empty where it is one value
    asked: int
    filled: Filled | None

    def line(self) -> str:
        """What training says of it."""
        who = f"{self.teacher}{self.bound}"
        if self.filled is None:
            return f"pseudo-labels of train: {self.task}: {self.asked:,} images to label by {who}"
        found = self.filled
        share = (
            f" ({found.sure / found.elements:.1%} of their {self.parts})"
            if self.parts and found.filled
            else ""
        )
        return (
            f"pseudo-labels of train: {self.task}: {found.known:,} known, {found.filled:,} filled by {who}{share}, "
            f"of {found.samples:,}"
        )

    def record(self) -> dict[str, Any]:
        """As log.jsonl has it."""
        counts = asdict(self.filled) if self.filled is not None else {}
        return {
            "task": self.task,
            "teacher": self.teacher,
            "sha256": self.sha256,
            "bound": self.bound.strip(),
            **counts,
        }


def records(tasks: Sequence[TaughtTask]) -> list[dict[str, Any]]:
    """As log.jsonl has them; without those that are labeled as their images are read, of which nothing was counted."""
    return [one.record() for one in tasks if one.filled is not None]


def taught(
    recipe: Recipe,
    tasks: Mapping[str, Task],
    dataset: VisionDataset,
    device: torch.device,
    *,
    fill: bool,
    opened: Callable[[Mapping[str, LabelTeacher]], None],
) -> tuple[VisionDataset, tuple[TaughtTask, ...]]:
    """The training split with the labels of the recipe's teachers, and what came of each.

    `opened` is called with each task's teacher before one is asked, which may take long. Without `fill` a label is made
    when its sample is read, and kept in memory.

    Raises ConfigError, ArtifactError or UntrustedError for a teacher that does not fit, DataError where a task has no
    label at the end.
    """
    several = dataset.parts if isinstance(dataset, SourcesDataset) else None
    wholes: Sequence[VisionDataset] = several or (dataset,)
    labels: list[list[PseudoLabels]] = [[] for _ in wholes]
    results = []
    labelers = {name: _labeler(recipe, tasks[name], wholes, device) for name in recipe.data.pseudo_labels}
    opened({name: label.teacher for name, label in labelers.items()})
    if not labelers:
        return dataset, ()
    for name, label in labelers.items():
        made, result = _taught_task(recipe, tasks[name], wholes, label, device, fill=fill)
        for own, one in zip(labels, made, strict=True):
            own += [one] if one is not None else []
        results.append(result)
    if several is not None:
        parts = [part.taught(own) for part, own in zip(several, labels, strict=True)]
        return SourcesDataset(dataset.split, parts), tuple(results)
    return Taught(dataset, labels[0]), tuple(results)


def _labeler(recipe: Recipe, task: Task, wholes: Sequence[VisionDataset], device: torch.device) -> _Labeler:
    """The teacher of a task, which fits the task and all data sets."""
    config, where = recipe.data.pseudo_labels[task.name], f"data.pseudo_labels.{task.name}"
    teacher = open_teacher(recipe, task.name, task.spec, config, device)
    numbers = class_numbers(teacher, task.spec, where)
    check_bound(teacher, config, where)
    for whole in wholes:
        called = whole.name if isinstance(whole, SourcePart) else ""
        check_prepared(teacher, _section(whole, recipe), called, where)
    return _Labeler(teacher, task.spec, numbers, config.confidence, config.agreement)


def _taught_task(
    recipe: Recipe,
    task: Task,
    wholes: Sequence[VisionDataset],
    label: _Labeler,
    device: torch.device,
    *,
    fill: bool,
) -> tuple[list[PseudoLabels | None], TaughtTask]:
    config, teacher = recipe.data.pseudo_labels[task.name], label.teacher
    lacking = [unlabeled(whole, task.target) for whole in wholes]
    asked = sum(map(len, lacking))
    if fill and asked and is_first():
        tell(f"{teacher.name} labels {task.name} of {asked:,} training images")
    said = config.model_dump(mode="json", exclude={"teacher"})
    facts = [teacher.sha256, said, repr(task.spec), device.type]
    made: list[PseudoLabels | None] = []
    for whole, some in zip(wholes, lacking, strict=True):
        data, key = _section(whole, recipe), partial(_folder, whole, task, facts, some)
        cache = data.cache if fill else "memory"  # a cache on disk is built whole
        one = pseudo_labels(whole, task.target, some, label, data.size, cache, key) if some else None
        made.append(one)
    parts = "pixels" if task.dense else "tags" if task.target_kind == "multilabel" else ""
    result = TaughtTask(task.name, teacher.name, teacher.sha256, config.bound, parts, asked, None)
    if not fill:
        if asked:  # what the teacher gives is looked at here as in training
            whole, some = next((one, rows) for one, rows in zip(wholes, lacking, strict=True) if rows)
            label(whole[some[0]])
        return made, result
    found = Filled()
    for whole, some, one in zip(wholes, lacking, made, strict=True):
        known = known_labels(whole, [task.target])[task.target]
        found += Filled(len(whole), len(whole) - len(some) if known is None else known)
        if one is not None:
            one.fill()
            found += one.counted()
    if not found.known and not found.filled:
        raise DataError(
            f"task {task.name!r}: not one sample of split train has a label of it, and {teacher.name} is sure of "
            f"none{config.bound}",
            f"take a looser bound in data.pseudo_labels.{task.name}, another teacher, or give labels",
        )
    return made, replace(result, filled=found)


def _section(whole: VisionDataset, recipe: Recipe) -> DataConfig:
    """The data section that a data set was loaded with."""
    return whole.config if isinstance(whole, SourcePart) else recipe.data


class _Labeler:
    """A teacher's label of one sample in the format of our target."""

    def __init__(
        self,
        teacher: LabelTeacher,
        spec: TargetSpec,
        numbers: Sequence[int],
        confidence: float | None,
        agreement: float | None,
    ) -> None:
        self.teacher, self._spec = teacher, spec
        self._numbers = torch.tensor(numbers)
        self._confidence, self._agreement = confidence, agreement

    @torch.no_grad()
    def __call__(self, sample: Sample) -> tuple[Tensor, Tensor]:
        """The label, and where it counts: without a batch dimension, at the size of the sample's image."""
        teacher, task = self.teacher, self.teacher.task
        size = (sample["image"].shape[-2], sample["image"].shape[-1])
        shown = resized(sample, teacher.size)
        output = teacher.answer(shown)
        check_answer(teacher, output, shown)
        label, sure = sure_labels(
            task,
            output,
            confidence=self._confidence,
            agreement=self._agreement,
            mirrored=self._of_mirror(shown) if self._agreement is not None else None,
        )
        label, sure = self._renamed(label)[0].cpu(), sure[0].cpu()
        if task.target_kind == "multilabel" and len(self._numbers):
            sure = self._by_our_classes(sure)
        return (map_at(label, size), map_at(sure, size)) if task.dense else (label, sure)

    def _of_mirror(self, sample: Sample) -> Tensor:
        """The label (1, ...) that the teacher gives in the mirror, mirrored back."""
        specs = {self.teacher.task.target: self.teacher.task.spec}
        flipped = mirrored(sample, specs)
        output = self.teacher.answer(flipped)
        label = self.teacher.task.decode(output)[0]
        target = {self.teacher.task.target: label.cpu()}
        back = mirrored({"image": flipped["image"], "targets": target}, specs)["targets"]
        return back[self.teacher.task.target][None].to(label.device)

    def _renamed(self, label: Tensor) -> Tensor:
        """The label (1, ...) in our classes."""
        if not len(self._numbers):
            return label
        if self._spec.kind == "multilabel":
            return self._by_our_classes(label[0].cpu())[None]
        return self._numbers.to(label.device)[label]

    def _by_our_classes(self, tags: Tensor) -> Tensor:
        """Values (K,) of the teacher's classes, in the order of ours."""
        ours = torch.empty_like(tags)
        ours[self._numbers] = tags
        return ours


def _folder(whole: VisionDataset, task: Task, facts: Sequence[Any], numbers: Sequence[int]) -> Path:
    """The folder of a disk cache: of exactly these images, however they came about, and this teacher."""
    digest = hashlib.sha256()
    for number in numbers:
        sample = whole[number]
        tensors = [sample["image"], *sample.get("others", {}).values()]
        tensors += [sample["inside"]] if "inside" in sample else []
        tensors += [sample["targets"][task.target]] if task.spec.kind == "multilabel" else []
        for one in tensors:
            digest.update(one.contiguous().numpy().tobytes())
    return user_cache() / "pseudo_labels" / content_key(*facts, list(numbers), digest.hexdigest())
