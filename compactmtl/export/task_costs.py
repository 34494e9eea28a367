"""What each task of a run costs: the MACs, parameters and milliseconds that leave if it is left out.

A task's share is not its head alone: channels of the encoder that only this head reads leave too. Tasks share channels,
so that the costs of two tasks do not add up to the cost of both.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from compactmtl.artifacts.layout import MODEL_FILE
from compactmtl.backends import get_backend, surgery_align
from compactmtl.config.target import Target
from compactmtl.data.inputs import Images
from compactmtl.errors import ConfigError
from compactmtl.export.artifact import ArtifactWriter
from compactmtl.graph import cost
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


@dataclass(frozen=True)
class TaskCosts:
    """Of the deployed network: what it costs whole, and what each task's leaving takes off."""

    macs: int
    parameters: int
    milliseconds: float
    tasks: tuple[TaskCost, ...]
    latency: LatencyResult


def task_costs(run: Run, target: Target, *, progress: Callable[[str], None] = lambda line: None) -> TaskCosts:
    """Measure what each task of a run costs on a target.

    For each task the network of all others is made by surgery, as `compactmtl compact RUN --tasks` makes it, exported and
    timed beside the whole. int8 networks have every layer quantized.

    Raises ConfigError for a run of one task, MissingDependencyError where the target cannot run here.
    """
    if len(run.tasks) < 2:
        raise ConfigError(f"{run.path} has one task: nothing can be left out", "name a run of several tasks")
    get_backend(target.backend).require(target)
    inputs = run.example_inputs(target.latency.batch)
    align = surgery_align(run.recipe).channels
    models = {WHOLE: run.load_compact() if run.has_compact else run.load_plain()}
    for task in run.tasks:
        progress(f"taking out {task}")
        others, rest = copy.deepcopy(models[WHOLE]), [name for name in run.tasks if name != task]
        own = isinstance(
            others, OwnModel
        )  # its forward computes every output: surgery finds what one alone reads
        small = compact(
            others if own else others.keep_tasks(rest), inputs, align=align, outputs=rest if own else ()
        ).model
        assert isinstance(small, MultiTaskModel)
        models[task] = small
    latency = _latency(run, target, models, inputs if run.recipe.data.inputs else inputs[0], progress)
    sizes = {name: cost(model, inputs) for name, model in models.items()}
    times = {name: latency.stats[name].median_ms for name in models}
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
            )
            for task in run.tasks
        ),
        latency=latency,
    )


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
