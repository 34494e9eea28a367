"""Any module as a verified bundle for a target: precision, calibration, parity, the user's own metrics, latency, gates."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from compactmtl.artifacts.files import new_folder
from compactmtl.artifacts.layout import BUNDLE_FILE
from compactmtl.artifacts.told import Progress
from compactmtl.backends import Runner, get_backend, load_target
from compactmtl.backends.base import Arrays
from compactmtl.config.target import Target
from compactmtl.data.base import Preprocessing
from compactmtl.errors import ConfigError
from compactmtl.export.bundle import Bundle, bundle_tasks
from compactmtl.export.describe import input_record
from compactmtl.export.golden import write_array_golden, write_golden
from compactmtl.export.module_file import (
    ModuleWriter,
    check_baseline,
    interface_of,
    preprocessing_of,
    provenance_of,
)
from compactmtl.export.module_inputs import (
    calibration_batches,
    cases,
    checked_outputs,
    feed_of,
    has_batches,
    names_of_tensors,
    positional,
    resized,
)
from compactmtl.export.module_metrics import Evaluate, OwnEvaluation
from compactmtl.export.module_outputs import array_input, config_of, described, records
from compactmtl.export.onnx_file import OnnxModel
from compactmtl.export.prepare import write_prepared
from compactmtl.export.record import BundleInfo, Golden, InputRecord, OutputRecord, Shape, Training
from compactmtl.export.timing import COMPACT, DENSE
from compactmtl.export.verified import Exported, by_batch, check_names, check_target, write_verified
from compactmtl.graph.borrow import trainable
from compactmtl.graph.inputs import Arguments, map_tensors, tensors_in
from compactmtl.surgery.plan import Plan
from compactmtl.verify.result import AccuracyResult, TaskMetrics


@trainable
def export_bundle(
    model: nn.Module | str | Path,
    example_inputs: Any,
    folder: str | Path,
    *,
    target: str | Path | Target,
    target_name: str | None = None,
    evaluate: Evaluate | None = None,
    calibration: Iterable[Any] | None = None,
    baseline: nn.Module | str | Path | None = None,
    images: Preprocessing | Mapping[str, Any] | None = None,
    outputs: Mapping[str, Mapping[str, Any]] | None = None,
    output_names: Sequence[str] | None = None,
    latency_ms: float | None = None,
    plan: Plan | None = None,
    name: str | None = None,
    prepare: bool = False,
    progress: Progress = lambda line: None,
) -> Bundle:
    """Export a module for a target, verify the file on the target's runtime, and write all of it as a bundle.

    Args:
        model: any module in eval mode, which is left as it was; or the path of a float32 ONNX file, which keeps its graph
            and free dimensions and is held against itself on ONNX Runtime.
        example_inputs: a tensor, positional arguments, or a mapping of keyword arguments, batch first, as for
            `export_onnx`. Give several samples as the model sees them in use: outputs are compared on them.
        folder: where the bundle is written. A bundle that is there is replaced once the new one is whole.
        target: a name (see `compactmtl targets list`), a file, or a `Target`. Its gates apply.
        target_name: what the bundle calls it, by default the target's own name.
        evaluate: `evaluate(predict)` gives {metric: value} or, where less is better, {metric: (value, False)}. It calls
            `predict` as it would call the model. It scores the torch model, the file (at batches of 1 and 3 too where the
            batch is free), the baseline and, for int8, each candidate of the search; so it has to use the same data each
            time. A metric named `output.name` belongs to that output.
        calibration: batches for fp16 and int8, such as a DataLoader: each a tensor, a tuple that begins with the model's
            arguments, or a mapping that holds them. No more are read than the target's `samples`.
        baseline: a module of the same inputs and outputs that latency is paired with and accuracy is compared to, such as
            the model before surgery.
        images: of a model with one input of images (B, C, H, W): how a picture becomes it, `Preprocessing` or
            {"size": (H, W), "mean": …, "std": …, "resize": "letterbox"}. The bundle's infer.py then takes pictures, else arrays as .npy.
        outputs: what outputs mean, by name: {"depth": {"kind": "depth", "unit": "m"}} with a kind of task, or
            {"boxes": {"meaning": "x, y, width, height", "unit": "px"}}. The others are raw tensors, and the bundle says so.
        output_names: names for the outputs in the model's order, where its own are not to be kept.
        latency_ms: largest median latency in ms, as a gate; the stricter of this and the target's.
        plan: the surgery's plan, of a compact model (`CompactResult.plan`).
        name: of the model, by default its class's.
        prepare: for a target that can't run here: the graph, an engine where the backend can build one, inputs, expected
            outputs and commands, marked as not run. The graph is checked on the CPU, and the bundle has no verification.
        progress: is told each step in a line.

    Returns the bundle. Where a gate fails it is kept and marked: `bundle.verification.passed` is False, and
    `bundle.require()` raises. Without `evaluate` no gate is on accuracy.

    Raises:
        ConfigError: for a model in training mode or on several devices, an example on another device, a target that
            needs calibration without one, batches that do not fit the example, outputs or metrics that do not agree
            between model and baseline, a metric without a direction whose name is an error's.
        DataError: where a metric of the torch model or the baseline is no number.
        ArtifactError: where the model fails, or its outputs differ from run to run.
        MissingDependencyError: where the target can't run here, without `prepare`.
        ParityError: where the file's outputs are not the model's, or hold NaN.
    """
    chosen, known = _target(target, latency_ms)
    target_name = target_name or known
    check_target(target_name, chosen, available=not prepare)
    if prepare and get_backend(chosen.backend).availability(chosen).available:
        raise ConfigError(f"target '{target_name}' can run here", "export without prepare")
    path = Path(folder)
    check_place(path)
    one = ExportedModule(
        OnnxModel(model) if isinstance(model, str | Path) else model,
        example_inputs,
        chosen,
        target_name,
        evaluate=evaluate,
        calibration=calibration,
        baseline=OnnxModel(baseline) if isinstance(baseline, str | Path) else baseline,
        images=images,
        outputs=outputs or {},
        output_names=output_names,
        plan=plan,
        name=name,
        progress=progress,
    )
    with new_folder(path) as fresh:
        if prepare:
            write_prepared(fresh, one, progress)
        else:
            write_verified(fresh, one, progress)
    return Bundle.open(path)


class ExportedModule(Exported):
    """A user's module with the user's own metrics."""

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Any,
        target: Target,
        target_name: str,
        *,
        evaluate: Evaluate | None,
        calibration: Iterable[Any] | None,
        baseline: nn.Module | None,
        images: Preprocessing | Mapping[str, Any] | None,
        outputs: Mapping[str, Mapping[str, Any]],
        output_names: Sequence[str] | None,
        plan: Plan | None,
        name: str | None,
        progress: Progress,
    ) -> None:
        if isinstance(model, OnnxModel):
            target = model.fitted(target, progress)
        self.model, self.target, self.target_name = model, target, target_name
        self.name = name or (model.path.stem if isinstance(model, OnnxModel) else type(model).__name__)
        self.compact = plan is not None
        self.subject = COMPACT if plan is not None else "model"
        self.models = {DENSE: baseline, self.subject: model}
        arguments = positional(model, example_inputs)
        like, found = checked_outputs(model, arguments, output_names)
        if baseline is not None:
            check_baseline(baseline, arguments, output_names, found)
        elif target.latency.min_speedup is not None or target.accuracy.compact_drop is not None:
            key = "accuracy.compact_drop" if target.latency.min_speedup is None else "latency.min_speedup"
            raise ConfigError(
                f"target '{target_name}' bounds {key}, and there is no baseline to hold the model against",
                "give baseline=, such as the model before surgery",
            )
        self._words, self._tasks = described(outputs, found)
        self._images = preprocessing_of(images, arguments)
        self.interface = interface_of(target, self._tasks, self._images)
        check_names(target, found)
        self._batched = has_batches(arguments, found)
        arguments = map_tensors(lambda one: one.detach().cpu(), arguments)
        batch = target.latency.batch if self._batched else None
        names = names_of_tensors(model, arguments)
        samples = {"fp16": target.fp16.samples, "int8": target.int8.samples}.get(target.precision, 0)
        if (
            samples
            and calibration is None
            and get_backend(target.backend).precisions[target.precision] != "none"
        ):
            raise ConfigError(
                f"target '{target_name}' is of precision {target.precision}, which is calibrated on data, and none was given",
                f"give calibration=, such as the loader of training, of which {samples} samples are read; of an ONNX file: --calibration PATH",
            )
        self._calibration = calibration_batches(model, calibration, arguments, samples, batch)
        self._example = arguments
        fed = self._fed(arguments if batch is None else resized(arguments, batch))
        feeds = [feed_of(self._fed(one), names) for one in self._calibration]
        self.output_names = tuple(found)
        self.writer = ModuleWriter(target, fed, names, self.output_names, self.interface, feeds)
        self.deployed = self.writer.wrapped(model)
        self.provenance = provenance_of(self.name, model, plan)
        self._evaluation: OwnEvaluation | None = None
        self._dense: TaskMetrics | None = None  # of the baseline
        self.metrics = {}
        if evaluate is not None:
            self._evaluation = OwnEvaluation(evaluate, model, tuple(found), like, output_names)
            progress("evaluating the torch model")
            self._reference = self._evaluation.of_torch(model, "the torch model")
            self.metrics = self._evaluation.metrics
            if baseline is not None:
                progress("evaluating the baseline")
                self._dense = self._evaluation.of_torch(baseline, "the baseline")

    def _fed(self, arguments: Arguments) -> Arguments:
        """Arguments of the model as the file takes them."""
        if self.interface is None:
            return arguments
        return (self.interface.feed(tensors_in(arguments)[0]),)

    def cases(self) -> list[Any]:
        chosen = cases(self.model, self._example, self._calibration, self.target, self._batched)
        return [self._fed(one) for one in chosen]

    def accuracy(self, runner: Runner) -> AccuracyResult:
        if self._evaluation is None:
            return AccuracyResult(samples=0, torch={}, artifact={})
        return self.score(runner).model_copy(update={"baseline": self._dense})

    def score(self, runner: Runner) -> AccuracyResult:
        """The user's metrics of an opened file, beside the torch model's."""
        assert self._evaluation is not None
        restore = dict if self.interface is None else self.interface.restore
        names = self.writer.input_names

        def measured(batch: int | None = None) -> dict[str, dict[str, float]]:
            assert self._evaluation is not None
            return self._evaluation.of_file(runner, self._fed, restore, names, batch)

        return AccuracyResult(
            samples=self._evaluation.samples,
            torch=self._reference,
            artifact=measured(),
            by_batch=by_batch(self.target, measured),
            higher_is_better={
                task: {metric: info.higher_is_better for metric, info in one.metric_info.items()}
                for task, one in self.metrics.items()
            },
        )

    def inputs(self, shapes: Mapping[str, Shape], dtypes: Mapping[str, str]) -> tuple[InputRecord, ...]:
        if self._images is None:
            return tuple(array_input(name, shape, dtypes[name]) for name, shape in shapes.items())
        baked = self.target.onnx.preprocess
        return tuple(
            input_record(name, shape, dtypes[name], self._images, baked=baked)
            for name, shape in shapes.items()
        )

    def outputs(self, shapes: Mapping[str, Shape], dtypes: Mapping[str, str]) -> tuple[OutputRecord, ...]:
        return records(shapes, dtypes, self._words, self._tasks, self.target.onnx.postprocess)

    def training(self) -> Training:
        configs = {name: config_of(self._words[name]) for name in self._tasks}
        return Training(tasks=bundle_tasks(self._tasks, configs), preprocessing=self._images)

    def golden(self, folder: Path, info: BundleInfo, run: Callable[[Arrays], Arrays], made_by: str) -> Golden:
        if self._images is not None:
            return write_golden(folder, info, self._tasks, run, made_by)
        arrays = feed_of(self.writer.inputs, self.writer.input_names)
        return write_array_golden(folder, info, self._tasks, arrays, run, made_by)


def check_place(path: Path) -> None:
    """Raise ConfigError where writing a bundle would replace anything but a bundle."""
    if path.exists() and not (path.is_dir() and ((path / BUNDLE_FILE).is_file() or not any(path.iterdir()))):
        raise ConfigError(f"{path} exists and is no bundle", "name another folder")


def _target(given: str | Path | Target, latency_ms: float | None) -> tuple[Target, str]:
    """The target and its name, with the budget as a gate."""
    if isinstance(given, Target):
        target, name = given, f"{given.backend}-{given.precision}"
    else:
        target, name = load_target(given), Path(given).stem
    if latency_ms is None:
        return target, name
    if not 0 < latency_ms < math.inf:
        raise ConfigError(f"latency_ms {latency_ms} is no latency", "give milliseconds above 0")
    bound = min(latency_ms, target.latency.max_ms or latency_ms)
    latency = target.latency.model_copy(update={"max_ms": bound})
    return target.model_copy(update={"latency": latency}), name
