"""The papers' table: runs grouped by recipe, mean and deviation over seeds, Δm against single-task nets or a baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from compactmtl.report.model import DeltaRow, DeltaTable, RunView, Size, Spread, Stage
from compactmtl.report.reference import settings
from compactmtl.report.table import subject_latency

if TYPE_CHECKING:
    from compactmtl.report.reference import Reference
    from compactmtl.train import Run

Pair = tuple[RunView, "Run"]


def delta_table(
    pairs: Sequence[Pair],
    singles: Sequence[Pair],
    reference: Reference | None,
    baseline: Pair | None = None,
    entries: Mapping[str, str] | None = None,
) -> tuple[DeltaTable, list[str]]:
    """The table, and notes on what its spreads are not.

    Args:
        pairs: the runs to group: every run but the single-task ones.
        singles: single-task runs whose metrics are the reference, if they are.
        reference: what Δm is against.
        baseline: the run of `pairs` that is the reference, if one is. It makes a row of its own.
        entries: of a sweep, the entry of each run by its path; a row is an entry.
    """
    rows: list[DeltaRow] = []
    notes: list[str] = []
    if singles:
        rows.append(_single_row(singles))
    if entries is not None:
        named = _by_entry(pairs, entries)
        groups, labels = list(named.values()), list(named)
    else:
        groups = _groups([pair for pair in pairs if baseline is None or pair[0] is not baseline[0]])
        if baseline is not None:
            groups = [[baseline], *groups]
        labels = _labels(groups, baseline)
    for group, label in zip(groups, labels, strict=True):
        own = reference if baseline is None or group[0][0] is not baseline[0] else None
        rows.append(_row(group, label, own, trained=baseline is not None and own is None))
        seeds = [run.recipe.seed for _, run in group]
        if len(set(seeds)) < len(seeds):
            notes.append(
                f"{label}: runs share a seed ({', '.join(map(str, seeds))}), so their spread is not over seeds alone"
            )
    return DeltaTable(reference=reference.label if reference else None, rows=tuple(rows)), notes


def _by_entry(pairs: Sequence[Pair], entries: Mapping[str, str]) -> dict[str, list[Pair]]:
    groups: dict[str, list[Pair]] = {}
    for pair in pairs:
        groups.setdefault(entries[pair[0].path], []).append(pair)
    return groups


def _groups(pairs: Sequence[Pair]) -> list[list[Pair]]:
    """Runs of one experiment together: same recipe name and settings, seeds apart."""
    groups: list[tuple[dict[str, Any], list[Pair]]] = []
    for view, run in pairs:
        key = settings(run) | {"recipe": view.provenance.recipe}
        for known, group in groups:
            if known == key:
                group.append((view, run))
                break
        else:
            groups.append((key, [(view, run)]))
    return [group for _, group in groups]


def _labels(groups: Sequence[Sequence[Pair]], baseline: Pair | None) -> list[str]:
    """Recipe names; where two groups share one, with the values that they differ in."""
    recipes = [group[0][0].provenance.recipe or group[0][0].name for group in groups]
    labels = []
    for group, recipe in zip(groups, recipes, strict=True):
        view, run = group[0]
        if baseline is not None and view is baseline[0]:
            labels.append(view.name)
            continue
        alike = [settings(other[0][1]) for other, name in zip(groups, recipes, strict=True) if name == recipe]
        own = settings(run)
        differing = [key for key in own if any(other.get(key) != own[key] for other in alike)]
        labels.append(" ".join([recipe, *(f"{key}={_word(own[key])}" for key in differing)]))
    return labels


def _word(value: Any) -> str:
    return "[" + ",".join(map(_word, value)) + "]" if isinstance(value, list) else str(value)


def _row(group: Sequence[Pair], label: str, reference: Reference | None, *, trained: bool) -> DeltaRow:
    """One recipe at the form furthest down the road that all its runs were measured in."""
    stages = [view.trained for view, _ in group] if trained else _common_stages([view for view, _ in group])
    measured = [stage.metrics for stage in stages if stage.metrics is not None]
    metrics: dict[str, dict[str, Spread]] = {}
    if len(measured) == len(stages):
        metrics = {
            task: {metric: Spread.of([one[task][metric] for one in measured]) for metric in first}
            for task, first in measured[0].items()
        }
    gains = [stage.delta_m for stage in stages]
    known = [gain for gain in gains if gain is not None]
    return DeltaRow(
        label=label,
        form=stages[0].label,
        runs=tuple(view.name for view, _ in group),
        seeds=tuple(run.recipe.seed for _, run in group),
        metrics=metrics,
        delta_m=Spread.of(known) if reference is not None and len(known) == len(gains) else None,
        parameters=_size([stage.size for stage in stages], "parameters"),
        macs=_size([stage.size for stage in stages], "macs"),
        faster=_faster([view for view, _ in group], stages[0].label),
        seconds=_seconds([view for view, _ in group]),
    )


def _faster(views: Sequence[RunView], form: str) -> Spread | None:
    """How much faster an export is than the dense model that it was timed against, where all runs have that."""
    found = []
    for view in views:
        latencies = [one.verification.latency for one in view.exports if f"exported, {one.target}" == form]
        for latency in latencies:
            name, _ = subject_latency(latency)
            if name != latency.reference and name in latency.paired_speedup:
                found.append(latency.paired_speedup[name])
    return Spread.of(found) if found and len(found) == len(views) else None


def _seconds(views: Sequence[RunView]) -> Spread | None:
    known = [view.seconds for view in views if view.seconds is not None]
    return Spread.of(known) if len(known) == len(views) else None


def _common_stages(views: Sequence[RunView]) -> list[Stage]:
    """Each run's stage of the last form that all were measured in; as trained where there is none."""
    for stage in reversed(views[0].stages):
        found = [_measured(view, stage.label) for view in views]
        complete = [one for one in found if one is not None]
        if len(complete) == len(views):
            return complete
    return [view.trained for view in views]


def _measured(view: RunView, label: str) -> Stage | None:
    return next((one for one in view.stages if one.label == label and one.metrics is not None), None)


def _size(sizes: Sequence[Size | None], quantity: str) -> Spread | None:
    known = [float(getattr(size, quantity)) for size in sizes if size is not None]
    return Spread.of(known) if len(known) == len(sizes) else None


def _single_row(singles: Sequence[Pair]) -> DeltaRow:
    """All single-task networks as one row: each task's metrics over its own seeds, sizes added over the tasks."""
    by_task: dict[str, list[RunView]] = {}
    for view, run in singles:
        (task,) = run.tasks
        by_task.setdefault(task, []).append(view)
    metrics = {
        task: _spreads([(view.trained.metrics or {})[task] for view in views])
        for task, views in by_task.items()
    }
    return DeltaRow(
        label="single-task networks",
        form="trained",
        runs=tuple(view.name for view, _ in singles),
        seeds=tuple(dict.fromkeys(run.recipe.seed for _, run in singles)),
        metrics=metrics,
        delta_m=None,
        parameters=_total(list(by_task.values()), "parameters"),
        macs=_total(list(by_task.values()), "macs"),
    )


def _spreads(measured: Sequence[Mapping[str, float]]) -> dict[str, Spread]:
    return {metric: Spread.of([one[metric] for one in measured]) for metric in measured[0]}


def _total(by_task: Sequence[Sequence[RunView]], quantity: str) -> Spread | None:
    spreads = [_size([view.trained.size for view in views], quantity) for views in by_task]
    if any(spread is None for spread in spreads):
        return None
    return Spread.of([sum(spread.mean for spread in spreads if spread is not None)])
