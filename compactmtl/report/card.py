"""The model card: README.md in a run's folder, from the same data as the report."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from compactmtl.artifacts.files import write_text
from compactmtl.artifacts.layout import CARD
from compactmtl.report import format as fmt
from compactmtl.report.deployment import deployments
from compactmtl.report.devices import device_table
from compactmtl.report.headline import headline_reason
from compactmtl.report.model import Report, RunView, Stage
from compactmtl.report.summary import facts
from compactmtl.report.table import MISSING, NOTHING, Cell, Row, Table, markdown

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
    """Markdown: what the model does, its metrics, size and latency, input and outputs, limits, and how to reproduce it."""
    alone = report.model_copy(
        update={"runs": tuple(one for one in report.runs if one.name in (run.name, report.baseline))}
    )
    return "\n".join(_lines(run, alone)).rstrip() + "\n"


def _lines(run: RunView, report: Report) -> Iterator[str]:
    height, width = run.input_size
    is_subject = run.name in {one.name for one in report.subjects}
    yield f"# {run.name}"
    yield ""
    if run.description:
        yield f"{run.description}"
        yield ""
    names = [
        task.name for task in report.tasks if task.name in (run.final.metrics or run.trained.metrics or {})
    ]
    outputs = f"{len(names)} output{'s' * (len(names) != 1)}"
    images = f"{run.images} images of {height}×{width}"
    if run.inputs:
        images = f"{', '.join(run.inputs)} (pictures of {height}×{width})"
    yield f"One network with {outputs} ({', '.join(names)}) for {images}, trained on {run.data}."
    if is_subject:
        yield ""
        yield "## Summary"
        yield ""
        for fact in facts(run, report):
            question = fact.question if fact.question.endswith("?") else f"{fact.question}:"
            # what the answer rests on first; the tables below have the rest
            yield f"- **{question}** {'; '.join((fact.answer, *fact.details[:2]))}."
        if reason := headline_reason(run):
            yield ""
            yield reason
    yield ""
    yield "## Metrics"
    yield ""
    yield markdown(_metrics(run, report))
    yield ""
    yield "## Size and latency"
    yield ""
    yield from _size(run)
    table = deployments(report)
    if table is not None and is_subject:
        yield ""
        yield markdown(table)
        for export in run.exports:
            one = next(iter(export.verification.latency.stats.values()))
            threads = "" if one.threads is None else f", {one.threads} thread{'s' * (one.threads != 1)}"
            yield ""
            yield (
                f"{export.target}: measured on {one.device} with {one.backend} {one.version} ({one.provider}{threads}),"
                f" batch {one.batch}, {len(one.samples_ms)} rounds in which the models run in turn."
            )
    else:
        yield ""
        yield f"Latency: {fmt.NOT_RUN}."
    if (measured := device_table(report)) is not None and is_subject:
        yield ""
        yield markdown(measured)
        yield ""
        yield f"On devices: {measured.caption}."
    yield from _interface(run)
    yield ""
    yield "## Limits"
    yield ""
    yield f"- Metrics are from the {run.split} and one seed ({run.provenance.seed}). Other images give other results."
    if not run.finished:
        yield "- Training was not finished."
    for export in run.exports:
        for gate in export.verification.gates:
            if not gate.passed:
                yield f"- Failed gate on {export.target}: {gate.message}"
    for prepared in run.prepared:
        built = f" Built, and not run: {prepared.built}." if prepared.built else ""
        yield f"- {prepared.target}: {fmt.NOT_RUN} ({prepared.reason}).{built}"
    for note in report.notes:
        if note.startswith(f"{run.name}:"):
            yield f"- {note.removeprefix(f'{run.name}: ')}"
    yield ""
    yield "## Reproduce"
    yield ""
    yield "```sh"
    yield from run.provenance.commands
    yield "```"
    yield ""
    versions = ", ".join(f"{name} {value}" for name, value in run.provenance.versions.items())
    yield (
        f"Recipe {run.provenance.recipe or 'unknown'}, {len(run.epochs)} epochs, created "
        f"{run.provenance.created or 'at an unknown time'} with {versions or 'unknown versions'}."
    )


def _interface(run: RunView) -> Iterator[str]:
    """Input and outputs of the headline's bundle, else of the first one."""
    export = run.shown_export or next(iter(run.exports), None)
    if export is None or export.interface is None:
        return
    interface = export.interface
    yield ""
    yield "## Input and outputs"
    yield ""
    what = "sample" if interface.named else "image"
    yield f"The bundle is `{interface.path}`. `{interface.predict}` runs it on one {what}."
    described = [(one.name, one.format.words) for one in interface.described if one.format is not None]
    if described:
        yield ""
        if interface.named:
            yield from (f"- `{name}`: {words}" for name, words in described)
        else:
            yield f"Input: {described[0][1]}"
    yield ""
    rows = tuple(
        Row(
            f"{one.name}, {kind}",
            (
                Cell("×".join(map(str, one.shape))),
                Cell(one.dtype),
                Cell(one.meaning),
                Cell(one.unit or ", ".join(f"{i} {name}" for i, name in enumerate(one.classes)) or "—"),
            ),
        )
        for kind, tensors in (("input", interface.inputs), ("output", interface.outputs))
        for one in tensors
    )
    yield markdown(
        Table(("shape", "type", "meaning", "unit or classes"), rows, f"of the export to {export.target}")
    )


def _metrics(run: RunView, report: Report) -> Table:
    """A row a metric, a column a form of the model."""

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
    return Table(tuple(stage.label for stage in run.stages), tuple(rows), run.split)


def _size(run: RunView) -> Iterator[str]:
    first, last = run.trained.size, run.smallest
    if first is None or last is None:
        yield f"Size: {fmt.NOT_RUN}."
    elif run.surgery is None:
        yield f"{fmt.count(last.parameters)} parameters, {fmt.count(last.macs)} MACs."
    else:
        yield (
            f"{fmt.count(last.parameters)} parameters and {fmt.count(last.macs)} MACs after surgery, of"
            f" {fmt.count(first.parameters)} and {fmt.count(first.macs)} before. The compact model computes the same"
            f" function, to a relative error of {fmt.small(run.surgery.proof.max_relative_error)}."
        )
