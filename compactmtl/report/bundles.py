"""A report of bundles alone: of models that are of no run, or of any folder that was deployed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import compactmtl
from compactmtl.artifacts.files import naming, write_text
from compactmtl.artifacts.layout import REPORT, REPORT_PAGE
from compactmtl.artifacts.told import now
from compactmtl.errors import ArtifactError, ConfigError
from compactmtl.export.bundle import Bundle
from compactmtl.report.deployment import doubts
from compactmtl.report.drawings import export_page
from compactmtl.report.gates import gates_in_words
from compactmtl.report.html import environment
from compactmtl.report.interface import interface
from compactmtl.report.model import ExportView, MetricView, Provenance, Report, RunView, Stage, TaskView
from compactmtl.tasks.by_source import measured
from compactmtl.verify.result import AccuracyResult, Verification

OWN = "own"  # kind of a group of metrics that no kind of task defines


def write_bundle_report(bundles: Sequence[Bundle], out: Path) -> Path:
    """Write `out`/report.html and report.json of verified bundles, and return the page's path.

    Raises ConfigError where a bundle is named twice, ArtifactError where one was never verified, OSError where `out` can't
    be written.
    """
    report = bundle_report(bundles)
    pages = [
        export_page(report, view, view.exports[0], f"bundle-{number}")
        for number, view in enumerate(report.runs)
    ]
    page = (
        environment()
        .get_template("bundles.html.j2")
        .render(
            report=report,
            pages=list(zip(report.runs, pages, strict=True)),
            gates=gates_in_words(report),
            version=compactmtl.__version__,
        )
    )
    with naming(out):
        out.mkdir(parents=True, exist_ok=True)
        write_text(out / REPORT, report.model_dump_json(indent=1) + "\n")
        write_text(out / REPORT_PAGE, page)
    return out / REPORT_PAGE


def bundle_report(bundles: Sequence[Bundle]) -> Report:
    """The report's data: a run view a bundle, with its one export. Raises as `write_bundle_report`."""
    views: list[RunView] = []
    tasks: dict[str, TaskView] = {}
    notes: list[str] = []
    for bundle in bundles:
        found = bundle.verification
        if found is None:
            raise ArtifactError(
                f"{bundle.path} was never verified: there is nothing to report",
                "export it where its target can run",
            )
        view = _view(bundle, found, _name(bundle, bundles))
        views.append(view)
        notes += doubts(view.name, view.exports[0])
        for task, one in _tasks(bundle, found.accuracy).items():
            known = tasks.setdefault(task, one)
            if known != one:
                raise ConfigError(
                    f"{bundle.path} has other metrics of '{task}' than the bundles before it",
                    "report bundles of one kind together",
                )
    return Report(
        created=now(),
        tasks=tuple(tasks.values()),
        baseline=None,
        delta_reference=None,
        runs=tuple(views),
        notes=tuple(dict.fromkeys(notes)),
    )


def _name(bundle: Bundle, others: Sequence[Bundle]) -> str:
    """The model's name; with the target and the folder as far as they tell it from others'."""
    for depth in range(1, 4):
        names = [_names(one)[:depth] for one in others]
        if names.count(mine := _names(bundle)[:depth]) == 1:
            return ", ".join(mine)
    raise ConfigError(f"{bundle.path} is named twice", f"name the bundle of {bundle.info.run} once")


def _names(bundle: Bundle) -> tuple[str, str, str]:
    return bundle.info.run, bundle.info.target_name, str(bundle.path)


def _view(bundle: Bundle, found: Verification, name: str) -> RunView:
    info = bundle.info
    stages = [Stage(form="trained", size=None, metrics=found.accuracy.torch or None)]
    stages.append(
        Stage(
            form="exported",
            target=info.target_name,
            size=None,
            metrics=found.accuracy.artifact or None,
        )
    )
    size = info.preprocessing.size if info.preprocessing is not None else (0, 0)
    return RunView(
        name=name,
        path=str(bundle.path),
        description="",
        data="",
        input_size=size,
        stages=tuple(stages),
        surgery=None,
        exports=(
            ExportView(
                target=info.target_name,
                verification=found,
                interface=interface(bundle.path, info),
                own=info.recipe_sha256 is None,
            ),
        ),
        epochs=(),
        best_epoch=None,
        finished=True,
        seconds=None,
        provenance=Provenance(recipe="", seed=0, created=info.created, versions=info.versions, commands=()),
    )


def _tasks(bundle: Bundle, accuracy: AccuracyResult) -> dict[str, TaskView]:
    """The metrics that a bundle was judged by: the user's own, or those of a run's kinds of task."""
    if accuracy.higher_is_better:
        return {
            task: TaskView(
                name=task,
                kind=OWN,
                primary=next(iter(metrics)),
                metrics={name: MetricView(higher_is_better=better) for name, better in metrics.items()},
            )
            for task, metrics in accuracy.higher_is_better.items()
        }
    if not accuracy.samples:
        return {}
    return {
        name: TaskView(
            name=name,
            kind=task.kind,
            primary=task.primary,
            metrics={
                metric: MetricView(
                    higher_is_better=info.higher_is_better, unit=info.unit, share=info.share, gain=info.gain
                )
                for metric, info in task.metric_info.items()
            },
        )
        for name, task in measured(bundle.tasks, accuracy.torch).items()
    }
