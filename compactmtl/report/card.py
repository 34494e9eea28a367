"""The model card: README.md in a run's folder, from the same data as the report."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from compactmtl.artifacts.files import write_text
from compactmtl.artifacts.layout import CARD
from compactmtl.report import format as fmt
from compactmtl.report.deployment import deployments
from compactmtl.report.model import Report, RunView, Stage
from compactmtl.report.table import Row, Table, markdown

MARK = "<!-- Written by `compactmtl report`; remove this line to keep your own text. -->"


def write_card(run: RunView, report: Report) -> Path | None:
    """Write the card into the run's folder, unless a README.md of the user's own is there."""
    path = Path(run.path) / CARD
    if not path.parent.is_dir():
        return None
    if path.exists() and MARK not in path.read_text(encoding="utf-8"):
        return None
    write_text(path, f"{MARK}\n\n{model_card(run, report)}")
    return path


def model_card(run: RunView, report: Report) -> str:
    """Markdown: what the model does, how well, how large and fast, where it comes from, and what is not known."""
    alone = report.model_copy(
        update={"runs": tuple(one for one in report.runs if one.name in (run.name, report.baseline))}
    )
    return "\n".join(_lines(run, alone)).rstrip() + "\n"


def _lines(run: RunView, report: Report) -> Iterator[str]:
    height, width = run.input_size
    yield f"# {run.name}"
    yield ""
    if run.description:
        yield f"{run.description}"
        yield ""
    names = [
        task.name for task in report.tasks if task.name in (run.final.metrics or run.trained.metrics or {})
    ]
    yield f"One network, {len(names)} outputs ({', '.join(names)}), for images of {height}×{width} like those of {run.data}."
    yield ""
    yield "## How well"
    yield ""
    yield markdown(_metrics(run, report))
    yield ""
    yield "## How large and fast"
    yield ""
    yield from _size(run)
    table = deployments(report)
    if table is not None and run.name in {one.name for one in report.subjects}:
        yield ""
        yield markdown(table)
        for export in run.exports:
            latency = export.verification.latency
            one = next(iter(latency.stats.values()))
            threads = "" if one.threads is None else f", {one.threads} thread{'s' * (one.threads != 1)}"
            yield ""
            yield (
                f"{export.target}: measured on {one.device}, {one.backend} {one.version} ({one.provider}{threads}),"
                f" batch {one.batch}, {len(one.samples_ms)} interleaved runs each."
            )
    else:
        yield ""
        yield f"Latency: {fmt.NOT_RUN}."
    yield ""
    yield "## What to keep in mind"
    yield ""
    yield f"- Metrics are of the val split of {run.data} and one seed ({run.provenance.seed}); other images, other figures."
    if not run.finished:
        yield "- Training was not finished."
    for export in run.exports:
        for gate in export.verification.gates:
            if not gate.passed:
                yield f"- Failed gate on {export.target}: {gate.message}"
    for prepared in run.prepared:
        yield f"- {prepared.target}: {fmt.NOT_RUN} ({prepared.reason})."
    for note in report.notes:
        if note.startswith(f"{run.name}:"):
            yield f"- {note.removeprefix(f'{run.name}: ')}"
    yield ""
    yield "## Make it again"
    yield ""
    yield "```sh"
    yield from run.provenance.commands
    yield "```"
    yield ""
    versions = ", ".join(f"{name} {value}" for name, value in run.provenance.versions.items())
    yield f"Recipe {run.provenance.recipe or 'unknown'}, {len(run.epochs)} epochs, made {run.provenance.created or 'unknown'} with {versions or 'unknown versions'}."


def _metrics(run: RunView, report: Report) -> Table:
    """A row a metric, a column a form of the model."""
    from compactmtl.report.table import MISSING, NOTHING, Cell

    def cell(stage: Stage, task: str, metric: str) -> Cell:
        if stage.metrics is None:
            return MISSING
        value = stage.metrics.get(task, {}).get(metric)
        return NOTHING if value is None else Cell(fmt.metric(value, views[task].metrics[metric]))

    views = {task.name: task for task in report.tasks}
    rows = [
        Row(
            f"{task.name}, {fmt.metric_name(metric)} {'↑' if info.higher_is_better else '↓'}",
            tuple(cell(stage, task.name, metric) for stage in run.stages),
        )
        for task in report.tasks
        for metric, info in task.metrics.items()
        if any(task.name in (stage.metrics or {}) for stage in run.stages)
    ]
    return Table(tuple(stage.label for stage in run.stages), tuple(rows), f"val split of {run.data}")


def _size(run: RunView) -> Iterator[str]:
    first, last = run.trained.size, run.smallest
    if first is None or last is None:
        yield f"Size: {fmt.NOT_RUN}."
    elif run.surgery is None:
        yield f"{fmt.count(last.parameters)} parameters, {fmt.count(last.macs)} MACs."
    else:
        yield (
            f"{fmt.count(last.parameters)} parameters and {fmt.count(last.macs)} MACs after surgery, of"
            f" {fmt.count(first.parameters)} and {fmt.count(first.macs)} before. Surgery kept the function to a relative"
            f" error of {fmt.small(run.surgery.proof.max_relative_error)}."
        )
