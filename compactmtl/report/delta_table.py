"""The papers' table: runs grouped by recipe, mean and deviation over seeds, Δm against single-task nets or a baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from compactmtl.report.model import RunView, Size, StageKey, shown_stages
from compactmtl.report.reference import settings
from compactmtl.report.rows import DeltaRow, DeltaTable, Spread
from compactmtl.tasks.by_source import measured
from compactmtl.verify.speed import artifact_speed, slowdowns

if TYPE_CHECKING:
    from compactmtl.report.reference import Reference
    from compactmtl.runs import Run

Pair = tuple[RunView, "Run"]


@dataclass(frozen=True)
class Entries:
    """Which entry of a sweep each run belongs to, by path, and the entry that Δm is against."""

    of: Mapping[str, str]
    baseline: str | None


def delta_table(
    pairs: Sequence[Pair],
    singles: Sequence[Pair],
    reference: Reference | None,
    baseline: Pair | None = None,
    entries: Entries | None = None,
) -> tuple[DeltaTable, list[str]]:
    """The table, and notes on what its spreads are not.

    Args:
        pairs: the runs to group: every run but the single-task ones.
        singles: single-task runs whose metrics are the reference, if they are.
        reference: what Δm is against.
        baseline: the run of `pairs` that is the reference, if one is. It makes a row of its own.
        entries: of a sweep; a row is an entry, the baseline's as trained.
    """
    rows: list[DeltaRow] = []
    notes: list[str] = []
    if singles:
        rows.append(_single_row(singles))
    if entries is not None:
        named = _by_entry(pairs, entries.of)
        groups, labels = list(named.values()), list(named)
    else:
        groups = _groups([pair for pair in pairs if baseline is None or pair[0] is not baseline[0]])
        if baseline is not None:
            groups = [[baseline], *groups]
        labels = _labels(groups, baseline)
    for group, label in zip(groups, labels, strict=True):
        if entries is not None:
            is_baseline = reference is not None and label == entries.baseline
        else:
            is_baseline = baseline is not None and group[0][0] is baseline[0]
        row = _row(group, label, reference, is_baseline=is_baseline)
        rows.append(row)
        notes.extend(_notes(row, group))
        seeds = [run.recipe.seed for _, run in group]
        if len(set(seeds)) < len(seeds):
            notes.append(
                f"{label}: runs share a seed ({', '.join(map(str, seeds))}), so their spread is not over seeds alone"
            )
    return DeltaTable(reference=reference.label if reference else None, rows=tuple(rows)), notes


def _notes(row: DeltaRow, group: Sequence[Pair]) -> list[str]:
    """Where a row's form or Δm is not of all that its runs have."""
    notes = []
    own = {view.name: view.final.label for view, _ in group}
    if not row.is_baseline and set(own.values()) != {row.form}:
        forms = ", ".join(f"{name} {label}" for name, label in own.items())
        notes.append(f"{row.label}: as {row.form}, the form that all of its runs have ({forms})")
    if row.delta_m is not None and len(row.delta_seeds) < len(row.seeds):
        seeds = ", ".join(map(str, row.delta_seeds))
        notes.append(f"{row.label}: Δm is over seed {seeds} alone, those that the baseline has too")
    return notes


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


def _row(group: Sequence[Pair], label: str, reference: Reference | None, *, is_baseline: bool) -> DeltaRow:
    """One recipe in the form that stands for it; a baseline as trained."""
    views = [view for view, _ in group]
    stages = [view.trained for view in views] if is_baseline else shown_stages(views)
    measured = [stage.metrics for stage in stages if stage.metrics is not None]
    metrics: dict[str, dict[str, Spread]] = {}
    if len(measured) == len(stages):
        metrics = {
            task: {
                metric: Spread.of([one[task][metric] for one in measured])
                for metric in first
                if all(metric in one[task] for one in measured)
            }
            for task, first in measured[0].items()
        }
    known = [
        (run.recipe.seed, stage.delta_m)
        for (_, run), stage in zip(group, stages, strict=True)
        if stage.delta_m is not None
    ]
    # against one reference for all runs a missing Δm is undefined, seed by seed it is a seed that the baseline lacks
    shown = reference is not None and bool(known) and not is_baseline
    shown = shown and (len(known) == len(stages) or (reference is not None and reference.by_seed is not None))
    row = DeltaRow(
        label=label,
        form=stages[0].label,
        runs=tuple(view.name for view in views),
        seeds=tuple(run.recipe.seed for _, run in group),
        metrics=metrics,
        delta_m=Spread.of([gain for _, gain in known]) if shown else None,
        delta_seeds=tuple(seed for seed, _ in known) if shown else (),
        is_baseline=is_baseline,
        parameters=_size([stage.size for stage in stages], "parameters"),
        macs=_size([stage.size for stage in stages], "macs"),
        seconds=_over([view.seconds for view in views]),
        epochs=_over([len(view.epochs) for view in views]),
        taught=any(view.teachers is None or view.teachers for view in views),
        all_seconds=_over([view.all_seconds for view in views]),
        all_epochs=_over([view.all_epochs for view in views]),
    )
    return row.model_copy(update=_speed(views, stages[0].key))


def _speed(views: Sequence[RunView], stage: StageKey) -> dict[str, Any]:
    """How much faster an export is than what it is held against, where all runs have that."""
    speeds, slowed = [], False
    for view in views:
        export = next((one for one in view.exports if one.stage == stage), None)
        speed = artifact_speed(export.verification.latency) if export is not None else None
        if export is None or speed is None:
            return {}
        speeds.append(speed)
        slowed = slowed or bool(slowdowns(export.verification.latency))
    verdicts, against = {speed.verdict for speed in speeds}, {speed.against for speed in speeds}
    if len(against) > 1:
        return {}
    return {
        "faster": Spread.of([speed.ratio for speed in speeds]),
        "faster_than": against.pop(),
        "slowed": slowed,
        "verdict": verdicts.pop() if len(verdicts) == 1 else "mixed",
    }


def _over(values: Sequence[float | None]) -> Spread | None:
    """Of a number that every run has."""
    known = [value for value in values if value is not None]
    return Spread.of(known) if len(known) == len(values) else None


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
        name: _spreads([(view.trained.metrics or {})[name] for view in views])
        for task, views in by_task.items()
        for name in measured({task: task}, views[0].trained.metrics or {})
    }
    return DeltaRow(
        label="single-task networks",
        form="trained",
        runs=tuple(view.name for view, _ in singles),
        seeds=tuple(dict.fromkeys(run.recipe.seed for _, run in singles)),
        metrics=metrics,
        delta_m=None,
        is_baseline=True,
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
