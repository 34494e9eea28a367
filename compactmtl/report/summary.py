"""What counts first: was the budget met, is the artifact the model, and what became of accuracy and time."""

from __future__ import annotations

from dataclasses import dataclass

from compactmtl.errors import command
from compactmtl.report import format as fmt
from compactmtl.report.budget import Budget
from compactmtl.report.gates import PARITY, gate_kinds
from compactmtl.report.model import ExportView, Report, RunView
from compactmtl.report.noise import delta_noise, seeds_in_words, speed_noise
from compactmtl.report.table import Cell, Row, Table, Tone, speed_cell
from compactmtl.verify.gates import parity_message
from compactmtl.verify.speed import (
    artifact_speed,
    dense_form,
    slowdowns,
    subject_latency,
    told,
)

MEASURES = {"macs": "MACs", "parameters": "parameters", "latency": "latency by the table"}


@dataclass(frozen=True)
class Fact:
    """A question, its answer in a few words, and what the answer rests on."""

    question: str
    answer: str
    tone: Tone
    details: tuple[str, ...]


def facts(run: RunView, report: Report) -> tuple[Fact, ...]:
    """The summary of one run: budget, parity, accuracy, latency and size, in this order."""
    return (
        budget_fact(run),
        parity_fact(run),
        accuracy_fact(run, report),
        latency_fact(run),
        size_fact(run, report),
    )


def summary_table(report: Report) -> Table:
    """The same of several runs, a row each; the baseline and single-task networks have none."""
    rows = []
    for run in report.subjects:
        found = facts(run, report)
        cells = [Cell(fact.answer, fact.tone) for fact in found]
        if run.final.delta_m is not None:
            cells[2] = Cell(found[2].answer, found[2].tone, delta_noise(report, run))
        export = run.shown_export
        if export is not None and (speed := artifact_speed(export.verification.latency)) is not None:
            cells[3] = Cell(found[3].answer, found[3].tone, speed_noise(speed))
        rows.append(Row(run.name, tuple(cells)))
    columns = ("budget", "artifact equals model", "Δm", "latency against dense fp32", "MACs")
    return Table(columns, tuple(rows), "")


def budget_fact(run: RunView) -> Fact:
    """The recipe's target of sparsity, then bounds that a gate sets on latency and size."""
    details, failed = [], False
    for export in run.exports:
        for gate in export.verification.gates:
            if gate.gate in ("latency", "size"):
                details.append(f"{export.target}: {gate.message}")
                failed = failed or not gate.passed
    question = "Was the budget met?"
    budget = run.budget
    if budget is None:
        if not details:
            return Fact(
                question, "none set", "missing", ("no target of sparsity, no gate on latency or size",)
            )
        return Fact(question, "no" if failed else "yes", "bad" if failed else "good", tuple(details))
    asked = f"{budget.limit} ({budget.key})"
    if budget.measure == "latency":
        return _latency_budget(question, run, budget, asked, tuple(details), failed)
    if budget.reached is None:
        return Fact(
            question,
            fmt.NOT_RUN,
            "missing",
            (f"{asked}: run `{command('compact', run.path)}`", *details),
        )
    first = f"{100 * budget.reached:.1f} % of the {MEASURES[budget.measure]} removed, {asked}"
    if not budget.met:
        short = 100 * (budget.asked - budget.reached)
        return Fact(question, f"{short:.2g} points short", "bad", (first, *details))
    if failed:
        return Fact(question, "a gate failed", "bad", (first, *details))
    return Fact(question, "yes", "good", (first, *details))


def _latency_budget(
    question: str, run: RunView, budget: Budget, asked: str, details: tuple[str, ...], failed: bool
) -> Fact:
    """A latency budget is met by what was measured of the artifact on the budget's target, never by a table."""
    held = [
        gate
        for export in run.exports
        if export.target == budget.target
        for gate in export.verification.gates
        if gate.gate == "latency"
    ]
    if not held:
        where = (
            f"to {budget.target}" if budget.target else "to the target of its table, with a gate on latency"
        )
        return Fact(question, fmt.NOT_RUN, "missing", (f"{asked}: export {where}", *details))
    if not all(gate.passed for gate in held):
        return Fact(question, "no", "bad", (asked, *details))
    return Fact(
        question, "a gate failed" if failed else "yes", "bad" if failed else "good", (asked, *details)
    )


def parity_fact(run: RunView) -> Fact:
    """Whether the headline artifact gives the PyTorch model's outputs; every target's difference beside it."""
    question = "Is the artifact equal to the model?"
    details = []
    if run.surgery is not None:
        proof = run.surgery.proof
        details.append(
            f"surgery: largest relative difference {fmt.small(proof.max_relative_error)}, "
            f"tolerance {fmt.small(proof.tolerance)}"
        )
    details += [f"{export.target}: {_parity_in_words(export)}" for export in run.exports]
    export = run.shown_export
    if not run.exports:
        return Fact(question, fmt.NOT_RUN, "missing", (*details, "the run was not exported"))
    if any(kind.failed for one in run.exports for kind in gate_kinds(one) if kind.name == PARITY):
        return Fact(question, "no", "bad", tuple(details))
    if export is None:
        return Fact(question, "no target holds", "bad", tuple(details))
    bounded = any(kind.is_set for kind in gate_kinds(export) if kind.name == PARITY)
    if bounded:
        return Fact(question, "yes", "good", tuple(details))
    return Fact(question, "not bounded", "", (*details, "judged by the gates on accuracy alone"))


def accuracy_fact(run: RunView, report: Report) -> Fact:
    """Δm of the form that stands for the run."""
    question = f"Δm against {report.delta_reference or 'dense fp32'}, accuracy of all tasks"
    if report.delta_reference is None:
        return Fact(question, "no baseline", "missing", ("name one with --baseline",))
    delta = run.final.delta_m
    if delta is None:
        return Fact(question, fmt.NOT_RUN, "missing", ())
    export = run.shown_export
    details = [seeds_in_words(report, run), f"form: {run.final.label}"]
    if export is not None:
        images = export.verification.accuracy.samples
        details.append(f"measured on {images:,} images of the val split".replace(",", "\u202f"))
    tone: Tone = "good" if delta > 0.0005 else "bad" if delta < -0.0005 else ""
    return Fact(question, fmt.signed_percent(delta), tone, tuple(details))


def latency_fact(run: RunView) -> Fact:
    """Latency of the headline artifact against the dense model in float32."""
    question = "Latency against dense fp32"
    export = run.shown_export
    if export is None:
        if run.current_exports:
            return Fact(question, "no figure", "missing", ("no export held its gates",))
        return Fact(question, fmt.NOT_RUN, "missing", ())
    latency = export.verification.latency
    _, stats = subject_latency(latency)
    speed = artifact_speed(latency)
    where = f"on {export.target}, {stats.device}, batch {stats.batch}"
    if speed is None:
        details: tuple[str, ...] = (where, "no dense model was timed beside it")
        return Fact("Latency, median", fmt.milliseconds(stats.median_ms), "", details)
    cell = speed_cell(latency, speed.against)
    other = latency.stats[speed.against]
    lines = [
        f"{fmt.milliseconds(stats.median_ms)} against {fmt.milliseconds(other.median_ms)} of {speed.against}",
        f"{speed_noise(speed)} of {speed.rounds} paired rounds",
        where,
        *(told(one) for one in slowdowns(latency) if one != speed),
    ]
    if dense_form(latency) != speed.against:
        lines.append(f"the dense model was not timed: this is against {speed.against}")
    return Fact(question, cell.text, cell.tone, tuple(lines))


def size_fact(run: RunView, report: Report) -> Fact:
    """MACs and parameters of the model to deploy, against the baseline's or the run's own trained form."""
    reference = report.baseline_run.trained.size if report.baseline_run else run.trained.size
    smallest = run.smallest
    if reference is None or smallest is None:
        return Fact("Size, MACs", fmt.NOT_RUN, "missing", ())
    change = smallest.macs / reference.macs - 1
    parameters = smallest.parameters / reference.parameters - 1
    details = [
        f"{fmt.count(smallest.macs)} of {fmt.count(reference.macs)} MACs",
        f"parameters {fmt.signed_percent(parameters)}: {fmt.count(smallest.parameters)} of {fmt.count(reference.parameters)}",
    ]
    if run.shown_export is not None:
        details.append(f"model file {run.shown_export.verification.megabytes:.2f} MB")
    tone: Tone = "good" if change < 0 else ""
    return Fact("Size, MACs", fmt.signed_percent(change) if change else "same", tone, tuple(details))


def _parity_in_words(export: ExportView) -> str:
    outputs = export.verification.parity.outputs
    broken = [one for one in outputs if not one.passed]
    if broken:
        return "; ".join(parity_message(one) for one in broken)
    if not outputs:
        return fmt.NOT_RUN
    worst = max(outputs, key=lambda one: one.max_relative)
    bounds = sorted({one.tolerance for one in outputs})
    bound = "no bound" if bounds[-1] == float("inf") else f"bound {bounds[0]:.0e}"
    return f"{fmt.small(worst.max_relative)} of the range at most, {bound}"
