"""From a run to a verified bundle: export, parity, accuracy on the artifact, paired latency, gates."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from compactmtl.artifacts.files import new_folder
from compactmtl.artifacts.layout import EXPORT
from compactmtl.artifacts.lock import exclusive
from compactmtl.artifacts.told import Progress
from compactmtl.backends import Runner
from compactmtl.backends.base import Arrays
from compactmtl.config.recipe import DataConfig, Recipe
from compactmtl.config.sparsity import LatencyBudget
from compactmtl.config.target import Target
from compactmtl.data import preprocessing
from compactmtl.data.base import rules
from compactmtl.data.inputs import between
from compactmtl.errors import ConfigError
from compactmtl.export.artifact import ArtifactWriter, Validation, provenance
from compactmtl.export.bundle import bundle_tasks
from compactmtl.export.describe import input_record, output_records
from compactmtl.export.golden import write_golden
from compactmtl.export.record import BundleInfo, Golden, InputRecord, OutputRecord, Shape, Training
from compactmtl.export.timing import COMPACT, DENSE
from compactmtl.export.verified import Exported, by_batch, check_names, check_target, write_verified
from compactmtl.models import MultiTaskModel
from compactmtl.runs import Run
from compactmtl.verify.accuracy import array_runner, evaluate, evaluate_on, in_batches
from compactmtl.verify.result import AccuracyResult, Verification


@exclusive("export")
def export_run(
    run: Run,
    target_name: str,
    target: Target,
    baseline: Run | None = None,
    *,
    progress: Progress = lambda line: None,
    device: torch.device | str = "cpu",
) -> Verification:
    """Export a run for a target and verify the artifact; writes run/export/<target_name>/.

    What is exported is the run's compact model where there is one, else its contracted model. Its accuracy is
    measured on the artifact over the val split against the torch model, and against the dense `baseline` where
    one is given. Its latency is measured paired with the baseline's or, without one, with the run's own
    contracted model before surgery. `progress` is told each step in a line. The torch models are evaluated on `device`;
    the export, its parity and its latency are of the CPU's torch model and of the target's runtime.

    A gate that fails is in the result (`passed` False) and the bundle is kept, marked; the caller decides.
    A former bundle stays as it was where anything raises: ConfigError on a target or baseline that doesn't
    fit, ArtifactError on a compact model that isn't of the best checkpoint, MissingDependencyError where
    the backend can't run here, ParityError where the artifact's outputs are not the torch model's or hold NaN.
    """
    check_target(target_name, target)
    check_names(target, run.tasks)
    target = with_budget(run, target_name, target, baseline)
    if baseline is not None:
        check_baseline(run, baseline)
    if run.has_compact or baseline is not None:
        dense: MultiTaskModel | None = run.load_plain() if baseline is None else baseline.load_plain()
    else:
        dense = None
    if dense is None and target.latency.min_speedup is not None:
        raise ConfigError(
            f"target '{target_name}' bounds latency.min_speedup, and there is no dense model to be faster than",
            "make the compact model first, `compactmtl compact RUN`, or name one: `compactmtl export RUN --baseline DENSE`",
        )
    with new_folder(run.path / EXPORT / target_name) as folder:
        one = ExportedRun(run, target_name, target, dense, compare=baseline is not None, device=device)
        return write_verified(folder, one, progress)


def budget_of(run: Run, name: str) -> LatencyBudget | None:
    """The recipe's latency budget, where it is for the target of this name (of a file: its stem)."""
    section = None if run.recipe.sparsity is None else run.recipe.sparsity.target
    budget = None if section is None else section.latency
    return budget if budget is not None and budget.target_name == name else None


def with_budget(run: Run, name: str, target: Target, baseline: Run | None = None) -> Target:
    """The target with the recipe's latency budget as a gate, where it is for this target; the stricter of two bounds.

    Milliseconds bound the median. A speedup or a share is of the run's own network before surgery: beside a `baseline`
    with another network that is not measured, and no gate is set.
    """
    budget, bounds = budget_of(run, name), target.latency
    if budget is None:
        return target
    if budget.ms is not None:
        ms = budget.ms if bounds.max_ms is None else min(budget.ms, bounds.max_ms)
        bounds = bounds.model_copy(update={"max_ms": ms})
    elif baseline is None or same_network(run, baseline):
        ratio = max(1 / budget.milliseconds(1.0), bounds.min_speedup or 0.0)
        bounds = bounds.model_copy(update={"min_speedup": ratio})
    return target.model_copy(update={"latency": bounds})


def same_network(run: Run, baseline: Run) -> bool:
    """Whether two runs train one network, so that the baseline is as fast as the run before surgery."""
    one, other = (_network(each.recipe) for each in (run, baseline))
    return one == other


def _network(recipe: Recipe) -> dict[str, object]:
    """What decides a network's layers, whatever its weights are."""
    model = recipe.model.model_dump(
        mode="json", exclude={"weights": True, "encoder": {"weights", "pretrained"}}
    )
    tasks = {
        name: task.model_dump(mode="json", include={"kind", "target", "head"})
        for name, task in recipe.tasks.items()
    }
    thin = recipe.overparam is not None and recipe.overparam.keep_factors_below is not None
    return {"model": model, "tasks": tasks, "size": recipe.data.size, "thin": thin}


def check_baseline(run: Run, baseline: Run) -> None:
    """A baseline has the same tasks on the same kind of images; else neither metrics nor latencies compare.

    Its data.root doesn't matter: it is evaluated on the run's own images.
    """
    if run.path.resolve() == baseline.path.resolve():
        raise ConfigError(
            f"the baseline is the run itself, {run.path}: it would be compared with itself",
            "name the dense run; without a baseline latency is held against this run's own model before surgery",
        )
    if missing := sorted(set(run.tasks) - set(baseline.tasks)):
        raise ConfigError(
            f"baseline {baseline.path} lacks the tasks {missing} of {run.path}",
            "give a run of the same tasks",
        )
    for key in ("name", "size", "options", "sources", "inputs"):
        one, other = (_compared(each.recipe.data, key) for each in (run, baseline))
        if one != other:
            raise ConfigError(
                f"baseline {baseline.path} has data.{key} {other!r}, {run.path} has {one!r}",
                "give a run on the same data at the same size",
            )


def _compared(data: DataConfig, key: str) -> object:
    """A value that decides what a run is measured on; of several data sets all but where they lie and how they are drawn."""
    if key != "sources":
        return getattr(data, key)
    apart = {"root", "size", "resize", "augment"}
    return [source.model_dump(mode="json", exclude=apart) for source in data.sources]


class ExportedRun(Exported):
    """A run's deployed model with its tasks, on its own validation images."""

    writer: ArtifactWriter

    def __init__(
        self,
        run: Run,
        target_name: str,
        target: Target,
        dense: MultiTaskModel | None = None,
        *,
        compare: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        """`dense` is what it is timed beside; with `compare` its accuracy is measured, too. Torch evaluates on `device`."""
        self.run, self.name, self.target_name, self.target = run, run.name, target_name, target
        self.compact = run.has_compact
        self.subject = COMPACT if run.has_compact else "model"
        self.model = run.load_compact() if run.has_compact else run.load_plain()
        self.models: Mapping[str, MultiTaskModel | None] = {DENSE: dense, self.subject: self.model}
        self.metrics = run.measured
        self.provenance = provenance(run)
        self.data = Validation.load(run, target)
        self.writer = ArtifactWriter(run, target, between(self.data.images, 0, target.latency.batch))
        self.deployed = self.writer.interface.wrap(self.model)
        self._baseline = dense if compare else None
        self._device = device
        self._reference = evaluate_on(self.model, device, self.data.loader, run.tasks, finite=True)

    def cases(self) -> list[Any]:
        return self.data.cases(self.target, self.writer.interface)

    def accuracy(self, runner: Runner) -> AccuracyResult:
        found = self.score(runner)
        if self._baseline is None:
            return found
        metrics = evaluate_on(self._baseline, self._device, self.data.loader, self.run.tasks, finite=True)
        return found.model_copy(update={"baseline": metrics})

    def score(self, runner: Runner) -> AccuracyResult:
        """The tasks' metrics of an opened file on the val split, beside the torch model's."""
        loader, tasks = self.data.loader, self.run.tasks
        run = self.writer.interface.runner(array_runner(runner, self.writer.input_names))
        return AccuracyResult(
            samples=self.data.samples,
            torch=self._reference,
            artifact=evaluate(run, loader, tasks, finite=True),
            by_batch=by_batch(
                self.target, lambda size: evaluate(in_batches(run, size), loader, tasks, finite=True)
            ),
        )

    def inputs(self, shapes: Mapping[str, Shape], dtypes: Mapping[str, str]) -> tuple[InputRecord, ...]:
        made, baked = rules(self.run.recipe.data), self.target.onnx.preprocess
        return tuple(
            input_record(name, shape, dtypes[name], made[name], baked=baked) for name, shape in shapes.items()
        )

    def outputs(self, shapes: Mapping[str, Shape], dtypes: Mapping[str, str]) -> tuple[OutputRecord, ...]:
        return output_records(shapes, dtypes, self.run.tasks, self.target.onnx.postprocess)

    def training(self) -> Training:
        tasks = bundle_tasks(self.run.tasks, self.run.recipe.tasks)
        data = self.run.recipe.data
        return Training(
            tasks=tasks, preprocessing=preprocessing(data), inputs=rules(data) if data.inputs else {}
        )

    def golden(self, folder: Path, info: BundleInfo, run: Callable[[Arrays], Arrays], made_by: str) -> Golden:
        return write_golden(folder, info, self.run.tasks, run, made_by)
