"""From a run to a verified bundle: export, parity, accuracy on the artifact, paired latency, gates."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import torch

from compactmtl.artifacts.files import new_folder, sha256_file
from compactmtl.artifacts.layout import EXPORT, MODEL_FILE
from compactmtl.artifacts.lock import exclusive
from compactmtl.backends import Runner, get_backend
from compactmtl.backends.batching import run_batched
from compactmtl.backends.fit import package_version
from compactmtl.backends.model_file import model_files
from compactmtl.backends.versions import package_versions
from compactmtl.config.recipe import Recipe
from compactmtl.config.sparsity import LatencyBudget
from compactmtl.config.target import Target
from compactmtl.data import preprocessing
from compactmtl.errors import ConfigError, MissingDependencyError
from compactmtl.export.artifact import ArtifactWriter, Validation, check_names, provenance
from compactmtl.export.bundle import bundle_tasks, write_bundle, write_verification
from compactmtl.export.describe import input_record, output_records
from compactmtl.export.golden import write_golden
from compactmtl.export.maps import write_error_maps
from compactmtl.export.onnx import model_tensors, tensor_dtypes
from compactmtl.export.precision import PrecisionRecord
from compactmtl.export.processing import Interface
from compactmtl.export.record import BundleInfo, Runtime, Training
from compactmtl.export.timing import COMPACT, DENSE, measure_artifact
from compactmtl.models import MultiTaskModel
from compactmtl.runs import Run
from compactmtl.verify.accuracy import array_runner, evaluate, evaluate_on, in_batches
from compactmtl.verify.gates import check_gates, export_drops
from compactmtl.verify.parity import check_parity
from compactmtl.verify.result import (
    AccuracyResult,
    GateResult,
    TaskMetrics,
    Verification,
)

SCORED_BATCHES = (1, 3)  # sizes beside the loader's at which an artifact with a free batch is scored

Progress = Callable[[str], None]


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
    _check_target(target_name, target)
    check_names(run, target)
    target = with_budget(run, target_name, target, baseline)
    if baseline is not None:
        check_baseline(run, baseline)
    model = run.load_compact() if run.has_compact else run.load_plain()
    if run.has_compact or baseline is not None:
        dense: MultiTaskModel | None = run.load_plain() if baseline is None else baseline.load_plain()
    else:
        dense = None
    if dense is None and target.latency.min_speedup is not None:
        raise ConfigError(
            f"target '{target_name}' bounds latency.min_speedup, and there is no dense model to be faster than",
            "make the compact model first, `compactmtl compact RUN`, or name one: `compactmtl export RUN --baseline DENSE`",
        )
    data = Validation.load(run, target)
    writer = ArtifactWriter(run, target, data.images[: target.latency.batch])
    interface = writer.interface
    with new_folder(run.path / EXPORT / target_name) as folder:
        reference = evaluate_on(model, device, data.loader, run.tasks, finite=True)
        score = Scoring(run, target, interface, data, reference, device=device)
        path = folder / MODEL_FILE
        strings = provenance(run)
        record = writer.write(model, path, metadata=strings, check=score.failed, progress=progress)
        if built := get_backend(target.backend).build(path, target):
            progress(f"built {built[0].name}")
        info = bundle_info(writer, target_name, path, strings, record, built)
        with ExitStack() as stack:
            runner = stack.enter_context(get_backend(target.backend).open(path, info.target))
            facts = runner.describe()
            golden = write_golden(
                folder,
                info,
                run.tasks,
                partial(run_batched, runner),
                f"{facts.backend} {facts.version}, {facts.provider}",
            )
            bundle = write_bundle(folder, info.model_copy(update={"golden": golden}))
            progress("comparing outputs with torch")
            parity = check_parity(interface.wrap(model), path, data.cases(target, interface), target=target)
            progress(f"measuring accuracy on {data.samples} validation images")
            accuracy = score.accuracy(runner, None if baseline is None else dense)
            progress(f"measuring latency, {target.latency.repeats} rounds")
            subject = COMPACT if run.has_compact else "model"
            models = {DENSE: dense, subject: model}
            latency, measured = measure_artifact(writer, models, path, runner)
            maps = write_error_maps(folder, interface.wrap(model), runner, writer.inputs, parity)
        gates = check_gates(
            target,
            run.tasks,
            parity=parity,
            accuracy=accuracy,
            latency=latency,
            subject=subject,
            megabytes=bundle.megabytes,
        )
        verification = Verification(
            target=target_name,
            bundle_sha256=bundle.sha256,
            parity=parity,
            accuracy=accuracy,
            latency=latency,
            megabytes=bundle.megabytes,
            gates=gates,
            passed=bool(gates) and all(gate.passed for gate in gates),
            versions=package_versions(),
            created=_now(),
            measured=measured,
            error_maps=maps,
        )
        write_verification(folder, verification)
    return verification


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


def _check_target(name: str, target: Target) -> None:
    backend = get_backend(target.backend)
    if not backend.opens_files:
        raise ConfigError(
            f"target '{name}' has backend {backend.name}, which runs no exported file",
            "choose a target whose backend opens files; `compactmtl targets list` shows them",
        )
    if objection := backend.objection(target):
        raise ConfigError(f"target '{name}': {objection}", "change that key of the target")
    availability = backend.availability(target)
    if not availability.available:
        raise MissingDependencyError(
            f"target '{name}' can't run here: {availability.reason}", availability.hint
        )


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
    for key in ("name", "size", "options"):
        one, other = getattr(run.recipe.data, key), getattr(baseline.recipe.data, key)
        if one != other:
            raise ConfigError(
                f"baseline {baseline.path} has data.{key} {other!r}, {run.path} has {one!r}",
                "give a run on the same data at the same size",
            )


def bundle_info(
    writer: ArtifactWriter,
    target_name: str,
    path: Path,
    provenance: Mapping[str, str],
    record: PrecisionRecord | None,
    built: tuple[Path, ...] = (),
) -> BundleInfo:
    """What bundle.json says of the model file that was written to `path` and of what the backend has built of it."""
    run, target = writer.run, writer.target
    inputs, outputs = model_tensors(path)
    dtypes = tensor_dtypes(path)
    files = [*model_files(path), *built]
    images = preprocessing(run.recipe.data)
    backend = get_backend(target.backend)
    wheel = backend.wheel(target)
    return BundleInfo(
        run=run.name,
        compact=run.has_compact,
        target_name=target_name,
        target=backend.portable(target),
        model=path.name,
        runtime=Runtime(name=backend.name, package=wheel, version=package_version(wheel) or ""),
        files={file.name: sha256_file(file) for file in files},
        inputs=tuple(
            input_record(name, shape, dtypes[name], images, baked=target.onnx.preprocess)
            for name, shape in inputs.items()
        ),
        outputs=output_records(outputs, dtypes, run.tasks, target.onnx.postprocess),
        training=Training(tasks=bundle_tasks(run.tasks, run.recipe.tasks), preprocessing=images),
        recipe_sha256=provenance["compactmtl.recipe_sha256"],
        plan_sha256=provenance.get("compactmtl.plan_sha256"),
        weights_sha256=provenance["compactmtl.weights_sha256"],
        versions=package_versions(),
        created=_now(),
        precision=record,
    )


@dataclass(frozen=True)
class Scoring:
    """The tasks' metrics of a model file on the val split, held against the torch model's."""

    run: Run
    target: Target
    interface: Interface
    data: Validation
    reference: TaskMetrics
    opener: Callable[[Path, Target], Runner] | None = None  # the target's own backend where none is given
    device: torch.device | str = "cpu"  # of the baseline's torch model

    def accuracy(self, runner: Runner, baseline: MultiTaskModel | None = None) -> AccuracyResult:
        """Of an opened artifact, with the dense baseline where there is one."""
        loader, tasks = self.data.loader, self.run.tasks
        run = self.interface.runner(array_runner(runner))
        sizes = SCORED_BATCHES if self.target.onnx.dynamic_batch else ()
        return AccuracyResult(
            samples=self.data.samples,
            torch=self.reference,
            artifact=evaluate(run, loader, tasks, finite=True),
            by_batch={size: evaluate(in_batches(run, size), loader, tasks, finite=True) for size in sizes},
            baseline=None
            if baseline is None
            else evaluate_on(baseline, self.device, loader, tasks, finite=True),
        )

    def failed(self, path: Path) -> tuple[GateResult, ...]:
        """The accuracy gates against the torch model that a candidate file fails."""
        opener = self.opener or get_backend(self.target.backend).open
        with opener(path, self.target) as runner:
            accuracy = self.accuracy(runner)
        return tuple(gate for gate in export_drops(self.target, self.run.tasks, accuracy) if not gate.passed)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
