"""The data that a recipe trains and selects on, with the tasks that it gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from compactmtl.backends.torch.device import find_device
from compactmtl.config import Recipe
from compactmtl.config.recipe import DataConfig
from compactmtl.config.sources import of_source
from compactmtl.data import build_loader, load_dataset
from compactmtl.data.base import VisionDataset
from compactmtl.data.labels import label_lines
from compactmtl.data.loader import Loader
from compactmtl.data.mixing import mixing_notes
from compactmtl.models.packaged import normalization_notes
from compactmtl.tasks import TargetSpec, Task, build_tasks
from compactmtl.train.label_teachers import LabelTeacher
from compactmtl.train.machine import pinned
from compactmtl.train.pseudo_labels import TaughtTask, taught

Opened = Callable[
    [Mapping[str, VisionDataset], Mapping[str, LabelTeacher]], None
]  # splits, and teachers by task


@dataclass(frozen=True)
class TrainingData:
    """What a run trains and selects on.

    `splits` are those two data sets by name, with their own labels alone, and the held-out part of train where bounds on tasks
    are watched on it (`held_out`); `taught` is what teachers add to those of the training batches. `notes` are for the user:
    the labels that are known, and what is skipped.
    """

    splits: dict[str, VisionDataset]
    specs: Mapping[str, TargetSpec]
    train: Loader
    select: Loader
    notes: tuple[str, ...]
    taught: tuple[TaughtTask, ...] = ()
    held_out: Loader | None = None


def load_data(
    recipe: Recipe,
    specs: Mapping[str, TargetSpec] | None = None,
    *,
    fill: bool = True,
    opened: Opened | None = None,
) -> tuple[TrainingData, dict[str, Task]]:
    """A recipe's data, and its tasks of the data set's `specs` or those given.

    Without `fill` the teachers of `data.pseudo_labels` are opened, and asked only for the samples that are read; so they are
    where training ends before it has read as many images as the split has, and reads them without workers. `opened` is
    called before a teacher is asked for anything.
    """
    config = recipe.data
    train_set, select_set = load_dataset(config, "train"), load_dataset(config, config.select_on)
    specs = train_set.specs if specs is None else specs
    tasks = build_tasks(recipe.tasks, specs)
    splits: dict[str, VisionDataset] = {"train": train_set, config.select_on: select_set}
    if recipe.sparsity is not None and recipe.sparsity.losses and "holdout" not in splits:
        splits["holdout"] = load_dataset(config, "holdout")
    shown = dict(splits)
    if "val" not in shown:  # the run ends with its metrics there
        shown["val"] = load_dataset(config.model_copy(update={"cache": "none"}), "val")
    targets = {name: task.target for name, task in tasks.items()}
    notes = label_lines(shown, targets, {targets[name] for name in config.pseudo_labels})
    device = find_device(recipe.train.device)
    with_labels, filled = taught(
        recipe,
        tasks,
        train_set,
        device,
        fill=fill and not _reads_few(recipe, len(train_set)),
        opened=lambda teachers: opened(splits, teachers) if opened is not None else None,
    )
    pin = pinned(recipe)
    train_loader = build_loader(with_labels, config, train=True, seed=recipe.seed, pin=pin)
    notes = (
        *notes,
        *(one.line() for one in filled),
        *mixing_notes(train_loader.sampler),
        *_apart_notes(config),
        *normalization_notes(recipe.model.encoder, config),
    )
    select_loader = build_loader(select_set, config, train=False, seed=recipe.seed, pin=pin)
    held_out = select_loader if config.select_on == "holdout" else None
    if held_out is None and "holdout" in splits:
        held_out = build_loader(splits["holdout"], config, train=False, seed=recipe.seed, pin=pin)
    return TrainingData(splits, specs, train_loader, select_loader, notes, filled, held_out), tasks


def _reads_few(recipe: Recipe, images: int) -> bool:
    """Whether training ends before it has read so many images, and this process reads them, which has the teachers."""
    steps = recipe.train.max_steps
    return steps is not None and steps * recipe.data.batch_size < images and not recipe.data.workers


def _apart_notes(config: DataConfig) -> tuple[str, ...]:
    """That images of some data sets are normalized apart, which whoever deploys the network must know."""
    apart = [of_source(config, source, deployed=True) for source in config.sources if source.normalized_apart]
    return tuple(
        f"images of {one.name} are normalized by a mean and std of their own, {list(one.mean)} and {list(one.std)}; "
        "predict and bundles take data.mean and data.std"
        for one in apart
    )
