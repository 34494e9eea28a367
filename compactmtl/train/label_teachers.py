"""Teachers of pseudo-labels: a finished run, a bundle or an ONNX file, each asked for a task's raw output of one sample."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compactmtl.artifacts.layout import BEST, BUNDLE_FILE, CHECKPOINTS
from compactmtl.artifacts.run_folder import is_run
from compactmtl.backends import Runner, open_graph, reference_target
from compactmtl.backends.batching import run_batched
from compactmtl.backends.model_file import model_sha256
from compactmtl.config import Recipe
from compactmtl.config.pseudo_labels import ONNX, PseudoLabelConfig
from compactmtl.config.recipe import DataConfig, TaskConfig
from compactmtl.data.base import Preprocessing, Sample
from compactmtl.data.images import normalize_array
from compactmtl.data.inputs import size_of
from compactmtl.data.loader import normalized
from compactmtl.errors import ArtifactError, ConfigError
from compactmtl.export.bundle import Bundle
from compactmtl.export.interface import feed, restore
from compactmtl.runs.checkpoint import checked_weights
from compactmtl.runs.run import Run
from compactmtl.runs.teachers import teacher_path
from compactmtl.tasks import TargetSpec, Task, build_task
from compactmtl.tasks.common import nearest
from compactmtl.tasks.placement import Size
from compactmtl.tasks.registry import usual_kind

Answer = Callable[[Sample], Tensor]  # a sample's raw output (1, channels, ...), in float32


@dataclass(frozen=True)
class LabelTeacher:
    """One task of a frozen network.

    `answer` takes a sample whose pictures have `size`. `prepared` is how its own pictures were made, by the keys of a data
    section, as far as that is known; `name` is what messages and the log call it.
    """

    name: str
    sha256: str
    task: Task  # reads the output
    has_probability: bool  # whether the output still tells how sure it is of a class
    size: Size
    prepared: Mapping[str, Any]
    answer: Answer


def open_teacher(
    recipe: Recipe, task: str, spec: TargetSpec, config: PseudoLabelConfig, device: torch.device
) -> LabelTeacher:
    """The teacher of a task whose target is of `spec`.

    Raises ConfigError where there is none of that name, it has not finished, it lacks the task, or it takes or gives what
    does not fit; ArtifactError where a file of it is damaged; UntrustedError for code of the user's own in it.
    """
    path, where = teacher_path(recipe, config.teacher), f"data.pseudo_labels.{task}"
    if config.is_file:
        return _of_file(path, where, task, spec, config, recipe)
    if (path / BUNDLE_FILE).is_file():
        return _of_bundle(path, where, config.output or task, recipe)
    if is_run(path):
        return _of_run(path, where, config.output or task, device)
    found = (
        "is a file"
        if path.is_file()
        else "holds neither a run nor a bundle"
        if path.is_dir()
        else "is not there"
    )
    raise ConfigError(
        f"{where}.teacher: {path} {found}",
        f"name the folder of a finished run, an export/TARGET folder, or a file that ends in {ONNX}",
    )


def _of_run(path: Path, where: str, output: str, device: torch.device) -> LabelTeacher:
    """The best checkpoint of a run, contracted, on `device`."""
    run = Run.open(path)
    if not run.finished:
        raise ConfigError(f"{where}.teacher: the run {path} has not finished", "train it to its end first")
    task = _task_of(run.tasks, output, path, where)
    data = run.recipe.data
    model = run.load_plain().to(device)

    def answer(sample: Sample) -> Tensor:
        inputs = normalized([sample], data)
        raw: Tensor = model(*(one.to(device) for one in inputs.values()))[output]
        return raw.float()

    prepared = {key: getattr(data, key) for key in ("resize", "channels", "range", "inputs")}
    return LabelTeacher(
        str(path), checked_weights(path / CHECKPOINTS / BEST), task, True, data.size, prepared, answer
    )


def _of_bundle(path: Path, where: str, output: str, recipe: Recipe) -> LabelTeacher:
    """A bundle's model file on ONNX Runtime's CPU provider, fed and read as the bundle says."""
    bundle = Bundle.open(path)
    info, images = bundle.info, bundle.info.preprocessing
    if bundle.model_path.suffix != ONNX:
        raise ConfigError(
            f"{where}.teacher: the model of {path} is {info.model}, and teachers of labels are ONNX files",
            "name a bundle of an ONNX Runtime target, or the run that it was exported from",
        )
    if images is None or info.training.inputs:
        takes = (
            "several inputs" if info.training.inputs else "arrays, and does not say how pictures become them"
        )
        raise ConfigError(f"{where}.teacher: {path} takes {takes}", "name the run that it was exported from")
    task = _task_of(bundle.tasks, output, path, where)
    after = info.target.onnx.postprocess.get(output)
    baked = info.target.onnx.preprocess
    runner = open_graph(bundle.model_path, reference_target(_threads(recipe)))
    (given,) = runner.input_names

    def answer(sample: Sample) -> Tensor:
        fed = {given: feed(sample["image"].numpy(), images, baked=baked)}
        raw = restore(run_batched(runner, fed)[output], after, task.channels)
        return torch.from_numpy(np.asarray(raw, np.float32))

    prepared: dict[str, Any] = {
        "resize": images.resize,
        "channels": images.channels,
        "range": images.range,
        "inputs": {},
    }
    return LabelTeacher(str(path), bundle.sha256, task, after != "argmax", images.size, prepared, answer)


def _of_file(
    path: Path, where: str, name: str, spec: TargetSpec, config: PseudoLabelConfig, recipe: Recipe
) -> LabelTeacher:
    """An ONNX file on ONNX Runtime's CPU provider, fed and read as the recipe says."""
    if not path.is_file():
        raise ConfigError(f"{where}.teacher: there is no file {path}", "name an ONNX file that is there")
    data = recipe.data
    if data.inputs:
        raise ConfigError(
            f"{where}.teacher: an ONNX file is given one picture, and data.inputs names {', '.join(data.inputs)}",
            "name a run that was trained on these inputs",
        )
    runner = open_graph(path, reference_target(_threads(recipe)))
    output = config.output or name
    if output not in runner.output_names:
        raise ConfigError(
            f"{where}.output: {path} has no output {output!r}; it has {', '.join(runner.output_names)}",
            nearest(output, list(runner.output_names)),
        )
    for key in ("mean", "std"):
        values = getattr(config, key)
        if values is not None and len(values) != data.channels:
            raise ConfigError(
                f"{where}.{key}: {len(values)} values, and data.channels is {data.channels}",
                "give one a channel",
            )
    prepare = Preprocessing(
        _file_size(runner, path, where, config, data), config.mean or data.mean, config.std or data.std
    )
    task = _reading_task(name, spec, config, where)
    given = runner.input_names[0]

    def answer(sample: Sample) -> Tensor:
        fed = {given: normalize_array(sample["image"].numpy()[None], prepare)}
        raw = _raw(run_batched(runner, fed)[output], task, config, f"{where}: output {output!r} of {path}")
        return torch.from_numpy(np.asarray(raw, np.float32))

    return LabelTeacher(
        str(path),
        model_sha256(path),
        task,
        config.values != "class index",
        prepare.size,
        {"channels": data.channels},
        answer,
    )


def _threads(recipe: Recipe) -> int:
    return recipe.train.threads or torch.get_num_threads()


def _task_of(tasks: Mapping[str, Task], name: str, path: Path, where: str) -> Task:
    if name not in tasks:
        raise ConfigError(
            f"{where}.teacher: {path} has no task {name!r}; it has {', '.join(tasks) or 'none'}",
            f"name one of them in {where}.output; {nearest(name, list(tasks))}"
            if tasks
            else "name another teacher",
        )
    return tasks[name]


def _file_size(runner: Runner, path: Path, where: str, config: PseudoLabelConfig, data: DataConfig) -> Size:
    """Height and width of the pictures that a file is given. Raises ConfigError where it does not take one picture."""
    shape = runner.inputs[0].shape
    if len(runner.inputs) != 1 or shape is None or len(shape) != 4:
        takes = ", ".join(f"{one.name} {one.shape}" for one in runner.inputs)
        raise ConfigError(
            f"{where}.teacher: {path} takes {takes}, and a teacher is given one picture (batch, channels, height, width)",
            "name a file with one such input",
        )
    channels, fixed = shape[1], shape[2:]
    if channels not in (None, data.channels):
        raise ConfigError(
            f"{where}.teacher: {path} takes {channels} channels (its second axis), and data.channels is {data.channels}",
            "name a file of the same channels, with these in front of height and width",
        )
    wanted = config.size or data.size
    size = (fixed[0] or wanted[0], fixed[1] or wanted[1])
    if config.size is not None and size != config.size:
        raise ConfigError(
            f"{where}.size: {path} takes {size[0]}x{size[1]}, found {config.size[0]}x{config.size[1]}",
            "leave size out: the file decides it",
        )
    return size


def _reading_task(name: str, spec: TargetSpec, config: PseudoLabelConfig, where: str) -> Task:
    """What reads a file's output as the target, by the usual kind of its format."""
    if spec.kind == "instances":
        raise _no_labels(where, spec.kind)
    named = spec.kind in ("mask", "class", "multilabel")
    for key in ("values", "classes"):
        if getattr(config, key) is not None and not named:
            raise ConfigError(f"{where}.{key}: a target of kind {spec.kind} has no classes", "leave it out")
    if spec.kind == "multilabel" and config.values == "class index":
        raise ConfigError(
            f"{where}.values: several tags may be there, which no class index says",
            "name an output of logits or probabilities",
        )
    classes = config.classes or spec.classes
    seen = TargetSpec(spec.kind, classes=classes, unit=spec.unit)
    return build_task(name, TaskConfig.model_validate({"kind": usual_kind(spec.kind)}), seen)


def _raw(given: NDArray[Any], task: Task, config: PseudoLabelConfig, what: str) -> NDArray[Any]:
    """A file's output for one image as the raw output that `task` reads, (1, channels, ...)."""
    rank = 4 if task.dense else 2
    if config.values == "class index":
        index = given[:, 0] if given.ndim == rank and given.shape[1] == 1 else given
        if index.ndim != rank - 1 or index.dtype.kind not in "iu":
            raise _misfit(what, f"is {given.dtype} {given.shape}, which are no class indices")
        if index.size and not 0 <= int(index.min()) <= int(index.max()) < task.channels:
            raise _misfit(what, f"holds {int(index.max())}, and there are {task.channels} classes from 0 on")
        return restore(index, "argmax", task.channels)
    if task.channels == 1 and given.ndim == rank - 1 and task.spec.kind != "multilabel":
        given = given[:, None]
    if given.ndim != rank or given.shape[1] != task.channels:
        names = f", {', '.join(task.spec.classes)}" if task.spec.classes else ""
        raise _misfit(
            what, f"has shape {given.shape}, expected {task.channels} channels on its second axis{names}"
        )
    if config.values == "probabilities":
        if given.size and not (given.min() >= 0 and given.max() <= 1 + 1e-3):
            raise _misfit(
                what, f"holds values from {given.min():.3g} to {given.max():.3g}, which are no probabilities"
            )
        return restore(given, "sigmoid" if task.spec.kind == "multilabel" else "softmax", task.channels)
    return given


def _misfit(what: str, found: str) -> ConfigError:
    return ConfigError(
        f"{what} {found}", "say what it is in `values` and `classes` of that section, or name another output"
    )


def _no_labels(where: str, kind: str) -> ConfigError:
    return ConfigError(
        f"{where}: what a network gives for {kind} is no label of them",
        "take the task out of data.pseudo_labels; distillation learns from outputs themselves",
    )


def class_numbers(teacher: LabelTeacher, spec: TargetSpec, where: str) -> tuple[int, ...]:
    """The target's class for each of the teacher's; empty where neither has classes.

    Raises ConfigError where the teacher's task is of another format, unit or list of classes, or of a kind whose outputs are
    no labels.
    """
    task = teacher.task
    if task.sureness is None:
        raise _no_labels(where, task.kind)
    for key in ("kind", "unit"):
        theirs, ours = getattr(task.spec, key), getattr(spec, key)
        if theirs != ours:
            raise ConfigError(
                f"{where}: {key} of the teacher's {task.name} is {theirs!r}, that of the target {ours!r}",
                "name a teacher of the same target, or another task of it in `output`",
            )
    theirs, ours = task.spec.classes, spec.classes
    if set(theirs) != set(ours) or len(theirs) != len(ours):
        lacking = [name for name in ours if name not in theirs]
        strange = [name for name in theirs if name not in ours]
        said = [f"lacks {', '.join(lacking)}"] if lacking else []
        said += [f"has {', '.join(strange)} beside them"] if strange else []
        raise ConfigError(
            f"{where}: the classes of the teacher's {task.name} are not those of the target: it {' and '.join(said)}",
            "name a teacher of the same classes; an ONNX file's are named in `classes`",
        )
    return tuple(ours.index(name) for name in theirs)


def check_bound(teacher: LabelTeacher, config: PseudoLabelConfig, where: str) -> None:
    """Raise ConfigError for a bound that the teacher's task has no measure of."""
    kind, sureness = teacher.task.kind, teacher.task.sureness
    if config.confidence is not None and sureness != "probability":
        raise ConfigError(
            f"{where}.confidence: {kind} has no probability of its value",
            "give `agreement`: how far the answers for an image and its mirror image may be apart; or no bound",
        )
    if config.confidence is not None and not teacher.has_probability:
        raise ConfigError(
            f"{where}.confidence: {teacher.name} gives class indices alone, which have no probability",
            "export it without argmax, or leave confidence out",
        )
    if config.agreement is not None and sureness != "mirror":
        raise ConfigError(f"{where}.agreement: {kind} has a probability of its value", "give `confidence`")


def check_prepared(teacher: LabelTeacher, data: DataConfig, called: str, where: str) -> None:
    """Raise ConfigError where a data set's pictures are made in another way than the teacher knows them."""
    for key, theirs in teacher.prepared.items():
        ours = getattr(data, key)
        if theirs != ours:
            of = f" of {called}" if called else ""
            raise ConfigError(
                f"{where}: the teacher knows images of {key} {theirs or 'none'}, those{of} have {ours or 'none'}",
                "name a teacher whose images are made alike",
            )


def check_answer(teacher: LabelTeacher, output: Tensor, sample: Sample) -> None:
    """Raise ArtifactError for an output of another shape than the teacher's task has, or one that is not a number."""
    task = teacher.task
    shape = tuple(output.shape)
    if len(shape) != (4 if task.dense else 2) or shape[:2] != (1, task.channels):
        size = size_of(sample["image"][None])
        raise ArtifactError(
            f"{teacher.name}: output {task.name!r} for an image of {size[0]}x{size[1]} has shape {shape}, expected "
            f"(1, {task.channels}{', height, width' if task.dense else ''})",
            "its file and its record don't belong together: export it again",
        )
    if bool(output.isnan().any()):
        raise ArtifactError(
            f"{teacher.name}: output {task.name!r} holds NaN",
            "look at the teacher: such a label would be none",
        )
