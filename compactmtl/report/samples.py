"""Validation samples with what each model says of them, ready to be drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from compactmtl.config.recipe import Recipe
from compactmtl.report import format as fmt
from compactmtl.report.model import MetricView
from compactmtl.tasks.gain import judge

if TYPE_CHECKING:
    from collections.abc import Iterable

    import torch
    from torch import Tensor, nn

    from compactmtl.config.recipe import DataConfig
    from compactmtl.data.base import Batch, Sample, VisionDataset
    from compactmtl.runs import Run
    from compactmtl.tasks.base import Task

Picture = NDArray[np.uint8]  # (H, W, 3)


@dataclass(frozen=True)
class View:
    """One value of a task: a picture where the task is a map, words where it is one value an image."""

    picture: Picture | None
    caption: str = ""
    measure: str = ""  # of a prediction: the task's own metric on this image alone
    wrong: bool = False  # as `compactmtl.tasks.gain.judge` has it

    @property
    def text(self) -> str:
        """Caption and measure, with a cross where it is wrong."""
        text = ", ".join(one for one in (self.caption, self.measure) if one)
        return f"✗ {text}" if self.wrong else text


@dataclass(frozen=True)
class TaskSample:
    """One task of one sample: the target where it is known and each model's prediction by label, in order."""

    task: str
    target: View | None
    predictions: Mapping[str, View]

    @property
    def dense(self) -> bool:
        """Whether the task is drawn (a map) rather than told (a value)."""
        return any(view.picture is not None for view in (self.target, *self.predictions.values()) if view)


@dataclass(frozen=True)
class SampleView:
    """One image and all its tasks."""

    identifier: str
    image: Picture
    tasks: tuple[TaskSample, ...]


class ValSplits:
    """Loads the val split of each recipe once, however many runs share it. Models are evaluated on it on `device`."""

    def __init__(self) -> None:
        self.device: torch.device | str = "cpu"
        self._datasets: dict[str, VisionDataset] = {}

    def dataset(self, recipe: Recipe) -> VisionDataset:
        """The val split as `recipe` sees it. Raises DataError where the data is missing."""
        from compactmtl.data import load_dataset, preprocessing

        data = recipe.data
        fit = preprocessing(data).fit
        key = repr((data.name, data.root, fit, data.options, data.cache, data.sources, data.inputs))
        if key not in self._datasets:
            self._datasets[key] = load_dataset(data, "val")
        return self._datasets[key]

    def section(self, recipe: Recipe, index: int) -> DataConfig:
        """The data section of a sample: the recipe's, or of several data sets that of its own."""
        from compactmtl.data.sources import SourcesDataset

        dataset = self.dataset(recipe)
        if not isinstance(dataset, SourcesDataset):
            return recipe.data
        return dataset.parts[dataset.place(index)[0]].config

    def loader(self, recipe: Recipe) -> Iterable[Batch]:
        """Normalized batches of the val split, in order."""
        from compactmtl.data import build_loader

        return build_loader(self.dataset(recipe), recipe.data, train=False, seed=recipe.seed)


def spread(length: int, count: int) -> list[int]:
    """At most `count` indices spread evenly over `length` samples, first one included."""
    return sorted({round(position) for position in np.linspace(0, length - 1, min(count, length))})


def predict_samples(
    models: Sequence[tuple[str, nn.Module, Run]], splits: ValSplits, count: int = 6
) -> list[SampleView]:
    """Run labeled models on the same few val samples, spread evenly over the split.

    Each model sees its own recipe's size and normalization; image, target and color scale are the first
    model's. Raises DataError where the data is missing.
    """
    _, _, first = models[0]
    dataset = splits.dataset(first.recipe)
    return [_sample(index, models, splits) for index in _numbers(dataset, count)]


def _numbers(dataset: VisionDataset, count: int) -> list[int]:
    """Samples spread over the split; of several data sets over each."""
    from compactmtl.data import sources

    if isinstance(dataset, sources.SourcesDataset):
        return sorted(set(sources.spread(dataset, min(count, len(dataset)))))
    return spread(len(dataset), count)


def below(identifier: str, root: str | None) -> str:
    """A sample's file as it lies below the data's root: the rest of the path is of the machine that trained."""
    for folder in () if root is None else (Path(root), Path(root).resolve()):
        if Path(identifier).is_relative_to(folder):
            return str(Path(identifier).relative_to(folder))
    return identifier


def _sample(index: int, models: Sequence[tuple[str, nn.Module, Run]], splits: ValSplits) -> SampleView:
    _, _, first = models[0]
    dataset = splits.dataset(first.recipe)
    sample = dataset[index]
    seen = {label: splits.dataset(run.recipe)[index] for label, _, run in models}  # at each recipe's own size
    outputs = {
        label: _run(model, seen[label], splits.section(run.recipe, index)) for label, model, run in models
    }
    tasks = []
    for name, task in _all_tasks(models).items():
        owners = [(label, run.tasks[name], run) for label, _, run in models if name in run.tasks]
        target = sample["targets"][task.target].numpy() if task.target in sample["targets"] else None
        if target is not None and task.dense:
            target = target[(..., *_visible(sample, first.recipe))]
        tasks.append(
            TaskSample(
                task=name,
                target=None if target is None else view(task, target),
                predictions={
                    label: _judged(
                        owner,
                        outputs[label][name],
                        seen[label]["targets"],
                        view(
                            owner,
                            _shown(owner, outputs[label][name], _visible(seen[label], run.recipe)),
                            target,
                        ),
                    )
                    for label, owner, run in owners
                },
            )
        )
    return SampleView(
        identifier=below(dataset.identifier(index), splits.section(first.recipe, index).root),
        image=_image(sample, first.recipe),
        tasks=tuple(tasks),
    )


def _visible(sample: Sample, recipe: Recipe) -> tuple[slice, slice]:
    """The part of a sample that shows its image: all of it but padding."""
    from compactmtl.tasks.placement import Placement

    size = recipe.data.size
    return Placement.of(recipe.data.resize, sample.get("own_size", size), size).visible


def _image(sample: Sample, recipe: Recipe) -> Picture:
    """A sample's image without padding, for people to look at."""
    from compactmtl.data.fit import as_rgb

    pixels = as_rgb(sample["image"].numpy())[(..., *_visible(sample, recipe))]
    return np.ascontiguousarray(pixels.transpose(1, 2, 0))


def _shown(task: Task, output: Tensor, visible: tuple[slice, slice]) -> NDArray[Any]:
    """A decoded output, a map without padding."""
    value: NDArray[Any] = task.decode(output)[0].numpy()
    return value[(..., *visible)] if task.dense else value


def _judged(task: Task, output: Tensor, targets: Mapping[str, Tensor], shown: View) -> View:
    """The view of a prediction with what the task's own metric says of it, where the target is known."""
    if task.target not in targets:
        return shown
    judgment = judge(task, output, targets[task.target][None])
    if judgment is None:
        return shown
    info = task.metric_info[task.primary]
    amount = fmt.metric(judgment.value, MetricView(**asdict(info)))
    if task.dense:
        measure = f"{fmt.metric_name(task.primary)} {amount}"
    else:  # of a single class the share is 0 or 1, which the mark says already
        measure = "" if info.share else f"off by {amount}"
    return replace(shown, measure=measure, wrong=judgment.wrong)


def _all_tasks(models: Sequence[tuple[str, nn.Module, Run]]) -> dict[str, Task]:
    tasks: dict[str, Task] = {}
    for _, _, run in models:
        for name, task in run.tasks.items():
            tasks.setdefault(name, task)
    return tasks


def _run(model: nn.Module, sample: Sample, data: DataConfig) -> dict[str, Tensor]:
    """One sample through the model, as outputs by task with a batch dimension of 1."""
    import torch

    from compactmtl.data.loader import normalized

    with torch.no_grad():
        outputs: dict[str, Tensor] = model.eval()(*normalized([sample], data).values())
    return outputs


def view(task: Task, value: NDArray[Any], reference: NDArray[Any] | None = None) -> View:
    """One decoded value (no batch dimension) as a picture or words; `reference` fixes the color scale."""
    if task.dense:
        return View(task.picture(value, reference), task.caption(value))
    return View(None, task.caption(value))
