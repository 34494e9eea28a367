"""What each task of a run costs: the MACs, parameters and milliseconds that leave if it is left out.

A task's share is not its head alone: channels of the encoder that only this head reads leave too. Tasks share channels,
so that the costs of two tasks do not add up to the cost of both.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from compactmtl.artifacts.layout import MODEL_FILE
from compactmtl.backends import get_backend, surgery_align
from compactmtl.config.target import Target
from compactmtl.data.inputs import Images
from compactmtl.errors import ConfigError
from compactmtl.export.artifact import ArtifactWriter
from compactmtl.graph import cost
from compactmtl.graph.copies import copy_model
from compactmtl.models import MultiTaskModel, OwnModel
from compactmtl.runs import Run
from compactmtl.surgery import compact
from compactmtl.verify.latency import measure_latency
from compactmtl.verify.result import LatencyResult

WHOLE = "all tasks"


@dataclass(frozen=True)
class TaskCost:
    """What leaves with one task: counts, and milliseconds as the median of rounds in which every network ran once."""

    task: str
    macs: int
    parameters: int
    milliseconds: float
    certain: bool  # whether the time differs by more than the rounds' noise


@dataclass(frozen=True)
class TaskCosts:
    """Of the deployed network: what it costs whole, and what each task's leaving takes off."""

    macs: int
    parameters: int
    milliseconds: float
    tasks: tuple[TaskCost, ...]


def task_costs(run: Run, target: Target, *, progress: Callable[[str], None] = lambda line: None) -> TaskCosts:
    """Measure what each task of a run costs on a target.

    The whole is the compact model, made here for a run that has none: else channels that no task reads would count as the
    first task's. For each task the network of all others is made by surgery, as `compactmtl compact RUN --tasks` makes it,
    exported and timed beside the whole. int8 networks have every layer quantized.

    Raises ConfigError for a run of one task, MissingDependencyError where the target cannot run here.
    """
    if len(run.tasks) < 2:
        raise ConfigError(f"{run.path} has one task: nothing can be left out", "name a run of several tasks")
    get_backend(target.backend).require(target)
    inputs = run.example_inputs(target.latency.batch)
    align = surgery_align(run.recipe).channels
    if run.has_compact:
        whole_model = run.load_compact()
    else:
        progress("compacting all tasks")
        whole_model = _compacted(run.load_plain(), inputs, align)
    models = {WHOLE: whole_model}
    for task in run.tasks:
        progress(f"taking out {task}")
        rest = [name for name in run.tasks if name != task]
        others = copy_model(whole_model)
        if isinstance(
            others, OwnModel
        ):  # its forward computes every output: surgery finds what one alone reads
            models[task] = _compacted(others, inputs, align, rest)
        else:
            models[task] = _compacted(others.keep_tasks(rest), inputs, align)
    latency = _latency(run, target, models, inputs if run.recipe.data.inputs else inputs[0], progress)
    sizes = {name: cost(model, inputs) for name, model in models.items()}
    times = {name: latency.stats[name].median_ms for name in models}
    certain = {
        speed.name
        for speed in latency.speeds
        if speed.against == WHOLE and speed.verdict in ("faster", "slower")
    }
    whole, batch = sizes[WHOLE], target.latency.batch
    return TaskCosts(
        macs=whole.macs // batch,
        parameters=whole.parameters,
        milliseconds=times[WHOLE],
        tasks=tuple(
            TaskCost(
                task,
                (whole.macs - sizes[task].macs) // batch,
                whole.parameters - sizes[task].parameters,
                times[WHOLE] - times[task],
                task in certain,
            )
            for task in run.tasks
        ),
    )


def _compacted(
    model: MultiTaskModel, inputs: Sequence[Tensor], align: int, outputs: Sequence[str] = ()
) -> MultiTaskModel:
    small = compact(model, inputs, align=align, outputs=outputs).model
    assert isinstance(small, MultiTaskModel)
    return small


def _latency(
    run: Run,
    target: Target,
    models: Mapping[str, MultiTaskModel],
    images: Images,
    progress: Callable[[str], None],
) -> LatencyResult:
    """All models as files of the target, in rounds in which each runs once."""
    writer = ArtifactWriter(run, target, images)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="compactmtl-")))
        runners = {}
        for index, (name, model) in enumerate(models.items()):
            path = folder / str(index) / MODEL_FILE
            writer.write(model, path)
            runners[name] = stack.enter_context(get_backend(target.backend).open(path, target))
        progress(f"measuring latency, {target.latency.repeats} rounds")
        return measure_latency(
            runners,
            writer.inputs,
            warmup=target.latency.warmup,
            repeats=target.latency.repeats,
            settle=target.latency.settle,
        )
