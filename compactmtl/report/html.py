"""Render the report's data model as one offline HTML file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

import compactmtl
from compactmtl.report import delta_formats, deployed, deployment, devices, gates, glossary, summary, table
from compactmtl.report import format as fmt
from compactmtl.report.drawings import RunPage, deployed_figures, pareto, run_page
from compactmtl.report.headline import headline_reason
from compactmtl.report.model import Report, RunView, Stage, TaskView
from compactmtl.report.noise import delta_noise
from compactmtl.report.paired import paired_cells
from compactmtl.report.pictures import data_uri
from compactmtl.report.samples import SampleView, TaskSample, View
from compactmtl.verify.result import LatencyResult
from compactmtl.verify.speed import band_in_words, speed_of, variation


@dataclass(frozen=True)
class Entry:
    """A line of the contents list: where it leads, its text, and the lines below it."""

    anchor: str
    text: str
    children: tuple[Entry, ...] = ()


def render(report: Report, samples: Sequence[SampleView]) -> str:
    """The whole page; nothing in it is fetched from elsewhere."""
    template = environment().get_template("page.html.j2")
    delta = delta_formats.grid(report) if delta_formats.shows_more(report) else None
    deployments = deployment.deployments(report)
    measured = devices.device_table(report)
    subjects = report.subjects
    pages = [run_page(run, number, report) for number, run in enumerate(_subjects_first(report))]
    page = template.render(
        report=report,
        title=_title(report),
        version=compactmtl.__version__,
        contents=_contents(
            report,
            pages,
            seeds=delta is not None,
            targets=deployments is not None,
            devices=measured is not None,
        ),
        # Cards of one run; of several there is a row each, for any one of them would mislead.
        facts=summary.facts(subjects[0], report) if len(subjects) == 1 else (),
        overview=summary.summary_table(report) if len(subjects) > 1 else None,
        headlines=_headlines(subjects),
        gates=gates.gates_in_words(report),
        comparison=table.comparison(report),
        delta=delta,
        paired=paired_cells(report),
        deployments=deployments,
        devices=measured,
        pareto=pareto(report),
        deployed=deployed.deployed_cells(report),
        deployed_figures=deployed_figures(report),
        samples=samples,
        labels=list(
            dict.fromkeys(label for one in samples for task in one.tasks for label in task.predictions)
        ),
        pages=pages,
        stage_cell=_stage_cell,
        stage_delta=lambda run, stage: _stage_delta(report, run, stage),
        arrow=table.arrow,
        band=_band,
        definition=table.footnote(report),
        SLOT=Markup(glossary.SLOT),
    )
    return glossary.linked(page)


def environment() -> Environment:
    """The templates of the pages, with the filters and functions that all of them use."""
    made = Environment(
        loader=PackageLoader("compactmtl.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(
        count=fmt.count,
        metric_name=fmt.metric_name,
        milliseconds=fmt.milliseconds,
        duration=fmt.duration,
        percent=fmt.signed_percent,
        small=fmt.small,
        data_uri=data_uri,
        prediction=_prediction,
        breakable=_breakable,
        unbroken=_unbroken,
        size=_file_size,
    )
    made.globals.update(
        speed=table.speed_cell,
        status=gates.status,
        not_set=gates.not_set,
        variation=variation,
        NOT_RUN=fmt.NOT_RUN,
    )
    return made


def _headlines(runs: Sequence[RunView]) -> list[tuple[str, str]]:
    """Why which target is the headline, with the runs of which that is so."""
    names: dict[str, list[str]] = {}
    for run in runs:
        if reason := headline_reason(run):
            names.setdefault(reason, []).append(run.name)
    return [(", ".join(some), reason) for reason, some in names.items()]


def _contents(
    report: Report, pages: Sequence[RunPage], *, seeds: bool, targets: bool, devices: bool
) -> list[Entry]:
    """The sections of the page in their order; every anchor is the id of a heading."""
    entries = [Entry("summary", "Summary")]
    if seeds:
        entries.append(Entry("seeds", "Recipes over their runs"))
    if targets:
        entries.append(Entry("deployments", "Deployment targets"))
    if devices:
        entries.append(Entry("devices", "Measured on devices"))
    entries += [Entry("comparison", "Comparison"), Entry("samples", "Samples")]
    for page in pages:
        anchor, run = page.anchor, page.view
        role = ", baseline" if run.name == report.baseline else ""
        exports = [Entry(one.anchor, f"Export to {one.view.target}") for one in page.exports]
        names = (
            ("metrics", "Metrics"),
            ("surgery", "Surgery"),
            ("training", "Training"),
            ("provenance", "Provenance"),
        )
        parts = [Entry(f"{anchor}-{name}", text) for name, text in names]
        entries.append(Entry(anchor, f"Run {run.name}{role}", (parts[0], *exports, *parts[1:])))
    return [*entries, Entry("glossary", "Glossary")]


def _breakable(name: str) -> Markup:
    """A dotted name that may break after its dots and underscores."""
    return Markup(re.sub(r"([._])", r"\1<wbr>", str(escape(name))))


def _unbroken(text: str) -> str:
    """Numbers that stay with their exponents and units at the end of a line."""
    text = re.sub(r"(?<=\d)e-(?=\d)", "e\u2011", text)
    return re.sub(r"(?<=[\d.]) (?=(?:%|ms|MB|[kMGT]\b))", "\u00a0", text)


def _file_size(count: int | None) -> str:
    if count is None:
        return "missing"
    return f"{count / 1e6:.2f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"


def _prediction(task: TaskSample, label: str) -> View | None:
    return task.predictions.get(label)


def _title(report: Report) -> str:
    names = ", ".join(run.name for run in report.subjects)
    against = "single-task networks" if report.single_task_runs else report.baseline
    return f"{names} against {against}" if against else names


def _band(latency: LatencyResult, name: str, against: str) -> str:
    return band_in_words(speed_of(latency, name, against))


def _stage_cell(stage: Stage, task: TaskView, metric: str) -> table.Cell:
    """One metric of one form of a run's model."""
    if stage.metrics is None:
        return table.MISSING
    value = stage.metrics.get(task.name, {}).get(metric)
    return table.NOTHING if value is None else table.Cell(fmt.metric(value, task.metrics[metric]))


def _stage_delta(report: Report, run: RunView, stage: Stage) -> table.Cell:
    if stage.delta_m is None:
        return table.MISSING
    return table.Cell(fmt.signed_percent(stage.delta_m), noise=delta_noise(report, run))


def _subjects_first(report: Report) -> list[RunView]:
    baseline = [report.baseline_run] if report.baseline_run else []
    singles = [run for run in report.runs if run.name in report.single_task_runs]
    return [*report.subjects, *baseline, *singles]
