"""Build the report's data model from run folders; measure only what no file says."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ValidationError

from compactmtl.artifacts.files import present, sha256_file
from compactmtl.artifacts.hashes import check_files, read_hashes
from compactmtl.artifacts.layout import (
    BUNDLE_FILE,
    COMPACT,
    EXPORT,
    IMPORTANCE,
    IMPORTANCE_FILE,
    LOG,
    META,
    PLAN,
    RECIPE,
    SURGERY,
    VERIFICATION_FILE,
)
from compactmtl.artifacts.told import now
from compactmtl.errors import ConfigError, DataError, command
from compactmtl.export.bundle import read_info
from compactmtl.export.describe import colors_of
from compactmtl.export.record import BundleInfo
from compactmtl.report.budget import budget
from compactmtl.report.delta_table import Entries, delta_table
from compactmtl.report.deployment import doubts, prepared_views
from compactmtl.report.devices import device_views, held_back_notes
from compactmtl.report.folding import folding_notes
from compactmtl.report.interface import image_kind, interface
from compactmtl.report.model import (
    ExportView,
    MetricView,
    Provenance,
    Report,
    RunView,
    Size,
    Stage,
    TaskView,
)
from compactmtl.report.parse import damaged, parse, read_json
from compactmtl.report.read import Epoch, Importance, Surgery
from compactmtl.report.reference import (
    Reference,
    Single,
    check_comparable,
    of_baseline,
    of_recipes,
    of_seeds,
    of_single_runs,
    split_single,
)
from compactmtl.report.teachers import pseudo_label_views, teacher_views
from compactmtl.tasks.gain import wrong_in_words
from compactmtl.verify.result import TaskMetrics, Verification

if TYPE_CHECKING:
    from torch import nn

    from compactmtl.report.samples import ValSplits
    from compactmtl.runs import Run


def build_report(
    runs: Sequence[Run], baseline: Run | Single | None, splits: ValSplits, entries: Entries | None = None
) -> Report:
    """Read everything the report shows from `runs` and `baseline`.

    With `entries` the rows of the table are a sweep's, and Δm is against the mean of its baseline entry's runs.
    With baseline "single", the single-task runs among `runs` are what Δm is against: each task's mean over its seeds.
    A form of a model whose metrics no file holds is evaluated on the val split (`splits` loads it); where the
    data is not there, its cell says "not run" and a note says why.

    Raises ArtifactError for a damaged file of a run, ConfigError where runs don't compare.
    """
    subjects, singles, against = _roles(runs, baseline)
    ordered = [*([against] if against is not None else []), *subjects, *singles]
    check_comparable(ordered)
    names = _unique_names(ordered)
    notes: list[str] = []
    views = [_view(run, name, splits, notes, against) for run, name in zip(ordered, names, strict=True)]
    multi = len(ordered) - len(singles)
    mine = [view for view in views if entries is not None and entries.of[view.path] == entries.baseline]
    if mine:
        assert entries is not None
        reference: Reference | None = of_seeds(mine, str(entries.baseline))
    elif singles:
        reference = of_single_runs(views[multi:])
    elif entries is not None:
        reference = None
    else:
        reference = of_baseline(views[0]) if against is not None else of_recipes(ordered)
    if reference is not None:
        views[:multi] = [
            _with_delta(view, run, reference, notes)
            for view, run in zip(views[:multi], ordered[:multi], strict=True)
        ]
    pairs = list(zip(views, ordered, strict=True))
    table, table_notes = delta_table(
        pairs[:multi],
        pairs[multi:],
        reference,
        pairs[0] if against is not None else None,
        entries,
    )
    return Report(
        created=now(),
        tasks=_task_views(ordered),
        baseline=names[0] if against is not None else None,
        delta_reference=reference.label if reference is not None else None,
        runs=tuple(views),
        single_task_runs=tuple(names[multi:]),
        delta_table=table,
        notes=tuple(dict.fromkeys([*notes, *table_notes])),
    )


def _roles(runs: Sequence[Run], baseline: Run | Single | None) -> tuple[list[Run], list[Run], Run | None]:
    """Who plays which part: subjects, single-task runs that are the reference, the baseline run."""
    if isinstance(baseline, str):
        subjects, singles = split_single(runs)
        return subjects, singles, None
    subjects = [run for run in runs if baseline is None or run.path.resolve() != baseline.path.resolve()]
    if not subjects:
        raise ConfigError("the baseline is the only run", "name at least one other run beside it")
    return subjects, [], baseline


def _unique_names(runs: Sequence[Run]) -> list[str]:
    """Run names, led by as many parent folders as it takes to tell them apart."""
    for depth in range(1, max(len(run.path.resolve().parts) for run in runs) + 1):
        names = ["/".join(run.path.resolve().parts[-depth:]) for run in runs]
        if len(set(names)) == len(names):
            return names
    raise ConfigError("a run is named twice", "name each run once")


def _view(run: Run, name: str, splits: ValSplits, notes: list[str], baseline: Run | None) -> RunView:
    log = run.log()
    meta = read_json(run.path / META)
    end = next((line for line in reversed(log) if line.get("event") == "end"), None)
    surgery_path = run.path / COMPACT / SURGERY
    if surgery_path.exists():
        _check(surgery_path, f"run `{command('compact', run.path)}` again")
    surgery = parse(Surgery, surgery_path) if surgery_path.exists() else None
    importance_path = present(run.path / IMPORTANCE) / IMPORTANCE_FILE
    if importance_path.exists():
        _check(importance_path, f"train again: `{command('train', run.path / RECIPE, '--overwrite')}`")
    for path in (run.path / EXPORT).glob(f"*/{VERIFICATION_FILE}"):
        _check(path, f"run `{command('export', run.path, '--target', path.parent.name)}` again")
    exports = tuple(
        ExportView(
            target=path.parent.name,
            verification=parse(Verification, path),
            interface=interface(path.parent, read_info(path.with_name(BUNDLE_FILE))),
        )
        for path in sorted((run.path / EXPORT).glob(f"*/{VERIFICATION_FILE}"))
    )
    for export in exports:
        notes.extend(doubts(name, export))
    devices = device_views(run.path)
    notes.extend(held_back_notes(name, devices))
    view = RunView(
        name=name,
        path=str(run.path),
        description=run.recipe.description,
        data=run.recipe.data.name,
        images=image_kind(colors_of(run.recipe.data.picture.channels), run.recipe.data.picture.channels),
        inputs=tuple(run.recipe.data.inputs),
        input_size=run.recipe.data.size,
        stages=tuple(_stages(run, name, surgery, exports, splits, notes)),
        surgery=surgery,
        exports=exports,
        prepared=prepared_views(run.path),
        devices=devices,
        epochs=_epochs(log, run.path / LOG),
        best_epoch=end.get("best_epoch") if end else None,
        finished=end is not None,
        seconds=end.get("seconds") if end else None,
        provenance=_provenance(run, meta, surgery is not None, exports, baseline),
        targets=tuple(Path(target).stem for target in run.recipe.targets),
        budget=budget(run.recipe, surgery),
        pseudo_labels=pseudo_label_views(run, log),
        importance=parse(Importance, importance_path) if importance_path.exists() else None,
        teachers=teacher_views(run, name, meta, notes),
    )
    notes.extend(folding_notes(name, view.epochs, view.best_epoch, run.measured))
    if view.current_exports and not any(one.holds for one in view.current_exports):
        notes.append(f"{name}: no export held all of its gates, so no target is the headline")
    return view


def _epochs(log: Sequence[Mapping[str, Any]], path: Path) -> tuple[Epoch, ...]:
    """The epoch lines in order; of an epoch that was run again after a resume, the last."""
    epochs: dict[int, Epoch] = {}
    for line in log:
        if line.get("event") == "epoch":
            try:
                epoch = Epoch.model_validate(line)
            except ValidationError as error:
                raise damaged(path, error) from error
            epochs[epoch.epoch] = epoch
    return tuple(epochs[number] for number in sorted(epochs))


def _stages(
    run: Run,
    name: str,
    surgery: Surgery | None,
    exports: Sequence[ExportView],
    splits: ValSplits,
    notes: list[str],
) -> list[Stage]:
    if surgery is not None:
        trained_size = Size(parameters=surgery.parameters.before, macs=surgery.macs.before)
    else:
        trained_size = _cost(run, run.load_plain())
    trained = _trained_metrics(run)
    note = ""
    if trained is None:
        trained, note = _evaluate(run, name, "trained", splits, notes)
    stages = [
        Stage(form="trained", size=trained_size, metrics=trained, note=note),
    ]
    final_size = trained_size
    if surgery is not None:
        final_size = Size(parameters=surgery.parameters.after, macs=surgery.macs.after)
        compact = _compact_metrics(run, exports)
        note = ""
        if compact is None:
            compact, note = _evaluate(run, name, "compact", splits, notes)
        stages.append(Stage(form="compact", size=final_size, metrics=compact, note=note))
    for export in exports:
        current, accuracy = _is_current(run, export), export.verification.accuracy
        if not current:
            notes.append(
                f"{name}: the export to {export.target} is of an earlier model of this run; export again to compare it"
            )
        elif not _is_whole(run, export):
            notes.append(
                f"{name}: {export.target} was measured on {accuracy.samples} samples of the val split"
            )
        stages.append(
            Stage(
                form="exported",
                target=export.target,
                size=final_size if current else None,
                metrics=accuracy.artifact if current else None,
                note="" if current else "of another model",
            )
        )
    return stages


def _check(path: Path, mend: str) -> None:
    """Hold a file of an artifact against its hash, where the artifact has any."""
    hashes = read_hashes(path.parent, mend)
    if hashes is not None:
        check_files(path.parent, hashes, mend, [path.name])


def _trained_metrics(run: Run) -> TaskMetrics | None:
    """The metrics on the val split that training noted of the best checkpoint, if it did."""
    metrics = run.val
    return dict(metrics) if metrics else None


def _bundle(run: Run, export: ExportView) -> BundleInfo:
    return read_info(run.path / EXPORT / export.target / BUNDLE_FILE)


def _is_current(run: Run, export: ExportView) -> bool:
    """Whether an export is of the model that the run holds now: of its compact one, else of its plain one."""
    plan = run.path / COMPACT / PLAN
    expected = hashlib.sha256(plan.read_bytes()).hexdigest() if plan.exists() else None
    bundle = _bundle(run, export)
    if bundle.plan_sha256 != expected:
        return False
    weights = bundle.weights_sha256  # training may have gone on under the same plan, or with none
    return weights is None or bool(weights == sha256_file(run.deployed_weights))


def _is_whole(run: Run, export: ExportView) -> bool:
    """Whether accuracy was measured on the whole val split."""
    return _bundle(run, export).target.accuracy.samples is None


def _compact_metrics(run: Run, exports: Sequence[ExportView]) -> TaskMetrics | None:
    """The compact torch model's metrics over the whole val split, where an export measured them."""
    for export in exports:
        if _is_current(run, export) and _is_whole(run, export):
            return export.verification.accuracy.torch
    return None


def _evaluate(
    run: Run, name: str, form: Literal["trained", "compact"], splits: ValSplits, notes: list[str]
) -> tuple[TaskMetrics | None, str]:
    from compactmtl.verify.accuracy import evaluate_on

    try:
        loader = splits.loader(run.recipe)
    except DataError as error:
        notes.append(f"{name}: the {form} model was not evaluated: {error.message}")
        return None, "data missing"
    model = run.load_plain() if form == "trained" else run.load_compact()
    return evaluate_on(model, splits.device, loader, run.tasks), ""


def _cost(run: Run, model: nn.Module) -> Size:
    from compactmtl.graph import cost
    from compactmtl.runs.model import example_inputs

    measured = cost(model.eval(), example_inputs(run.recipe))
    return Size(parameters=measured.parameters, macs=measured.macs)


def _with_delta(view: RunView, run: Run, reference: Reference, notes: list[str]) -> RunView:
    """The view with Δm at every measured stage; where it is undefined, a note says why."""
    from compactmtl.tasks.gain import delta_m

    metrics = reference.at(run.recipe.seed)
    if metrics is None:
        notes.append(f"{view.name}: no Δm, {reference.label} has no finished run of seed {run.recipe.seed}")
        return view
    ours = {task: metrics[task] for task in run.measured if task in metrics}
    stages = []
    for stage in view.stages:
        if stage.metrics is not None:
            try:
                gain = delta_m(stage.metrics, ours, run.measured)
            except ConfigError as error:
                notes.append(f"{view.name}: no Δm, {error.message}")
            else:
                if math.isfinite(gain):
                    stage = stage.model_copy(update={"delta_m": gain})
                else:
                    notes.append(f"{view.name}: no Δm as {stage.label}, a metric is not a number")
        stages.append(stage)
    return view.model_copy(update={"stages": tuple(stages)})


def _task_views(runs: Sequence[Run]) -> tuple[TaskView, ...]:
    tasks: dict[str, TaskView] = {}
    for run in runs:
        for name, task in run.measured.items():
            metrics = {
                metric: MetricView(
                    higher_is_better=info.higher_is_better, unit=info.unit, share=info.share, gain=info.gain
                )
                for metric, info in task.metric_info.items()
            }
            view = TaskView(
                name=name,
                kind=task.kind,
                primary=task.primary,
                metrics=metrics,
                wrong=wrong_in_words(task),
            )
            tasks.setdefault(name, view)
    return tuple(tasks.values())


def _provenance(
    run: Run,
    meta: Mapping[str, Any],
    compacted: bool,
    exports: Sequence[ExportView],
    baseline: Run | None,
) -> Provenance:
    place = ("--out", run.path.parent, "--name", run.path.name)
    commands = [command("train", run.path / RECIPE, *place)]
    if compacted:
        commands.append(command("compact", run.path))
    against = ("--baseline", baseline.path) if baseline is not None and baseline is not run else ()
    commands += [command("export", run.path, "--target", export.target, *against) for export in exports]
    return Provenance(
        recipe=str(meta.get("recipe", "")),
        seed=run.recipe.seed,
        created=str(meta.get("created", "")),
        versions={str(key): str(value) for key, value in dict(meta.get("versions", {})).items()},
        commands=tuple(commands),
    )
