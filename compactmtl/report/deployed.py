"""A sweep's entries as they are deployed: Δm of the exported files against latencies that were measured side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from compactmtl.report import delta_formats
from compactmtl.report import format as fmt
from compactmtl.report.charts import Axis, axis, ratio_axis
from compactmtl.report.model import ExportView, Report, RunView
from compactmtl.report.paired import gains_of
from compactmtl.report.rows import DeployedRow, Spread
from compactmtl.report.table import Cell, Row, Table, footnote
from compactmtl.verify.result import LatencyResult
from compactmtl.verify.speed import compare

if TYPE_CHECKING:
    from compactmtl.runs import Run
    from compactmtl.tasks import Task


def deployed_name(entry: str, target: str) -> str:
    """The name of an entry's export among all that are timed together."""
    return f"{entry} on {target}"


def with_deployed(
    report: Report,
    runs: Mapping[str, Sequence[Run]],
    latencies: Mapping[int, tuple[LatencyResult, str]],
    targets: Sequence[str],
    series: Mapping[str, str],
) -> Report:
    """The report of a sweep with its entries as deployed.

    `latencies` are by seed, of exports named by `deployed_name`, each with when it was measured. `series` names the curve
    of an entry; an entry without one is a curve of its own.
    """
    assert report.sweep is not None
    views = {view.path: view for view in report.runs}
    seen = {
        entry: {run.recipe.seed: views[str(run.path)] for run in group if str(run.path) in views}
        for entry, group in runs.items()
    }
    baseline = report.sweep.baseline
    base = seen.get(baseline, {}) if baseline is not None else {}
    rows = []
    for target in targets:
        for entry, by_seed in seen.items():
            row = _row(entry, target, by_seed, base, baseline, latencies, runs[entry][0].measured)
            if row is not None:
                rows.append(row.model_copy(update={"series": series.get(entry, entry)}))
    view = report.sweep.model_copy(update={"deployed": tuple(rows), "timed": _timed(latencies)})
    return report.model_copy(update={"sweep": view})


def _row(
    entry: str,
    target: str,
    by_seed: Mapping[int, RunView],
    base: Mapping[int, RunView],
    baseline: str | None,
    latencies: Mapping[int, tuple[LatencyResult, str]],
    tasks: Mapping[str, Task],
) -> DeployedRow | None:
    name = deployed_name(entry, target)
    timed = {
        seed: (latencies[seed][0], export)
        for seed, view in by_seed.items()
        if seed in latencies
        and name in latencies[seed][0].stats
        and (export := _export(view, target)) is not None
    }
    if not timed:
        return None
    against = None if baseline is None or entry == baseline else deployed_name(baseline, target)
    ratios = [
        compare(latency.stats[name], latency.stats[against]).ratio
        for latency, _ in timed.values()
        if against is not None and against in latency.stats
    ]
    pairs, seeds = [], []
    for seed, (_, export) in timed.items():
        if seed in base and base[seed].trained.metrics is not None:
            pairs.append((export.verification.accuracy.artifact, base[seed].trained.metrics or {}))
            seeds.append(seed)
    shared = {key: task for key, task in tasks.items() if pairs and key in pairs[0][1]}
    gains = gains_of(pairs, shared) if pairs else None
    return DeployedRow(
        label=entry,
        target=target,
        series=entry,
        precision=", ".join(dict.fromkeys(one.stats[name].precision for one, _ in timed.values())),
        seeds=tuple(timed),
        milliseconds=Spread.of([latency.stats[name].median_ms for latency, _ in timed.values()]),
        speedup=Spread.of(ratios) if len(ratios) == len(timed) else None,
        delta_m=None if gains is None else Spread.of(gains),
        better=0 if gains is None else sum(gain > 0 for gain in gains),
        delta_seeds=() if gains is None else tuple(seeds),
        failed_gates=tuple(seed for seed, (_, export) in timed.items() if not export.holds),
        is_baseline=entry == baseline,
    )


def _export(view: RunView, target: str) -> ExportView | None:
    return next((one for one in view.exports if one.target == target), None)


def _timed(latencies: Mapping[int, tuple[LatencyResult, str]]) -> str:
    """On what and when it was measured, such as "Xeon, 1 thread, 2026-11-29"."""
    stats = [one for latency, _ in latencies.values() for one in latency.stats.values()]
    devices = dict.fromkeys(
        one.device + ("" if one.threads is None else f", {one.threads} thread{'s' * (one.threads > 1)}")
        for one in stats
    )
    days = dict.fromkeys(created[:10] for _, created in latencies.values())
    return "; ".join(devices) + (f"; {', '.join(days)}" if days else "")


def deployed_cells(report: Report) -> Table | None:
    """The entries as deployed, as a table; none where nothing was timed."""
    view = report.sweep
    if view is None or not view.deployed:
        return None
    rows = []
    for row in view.deployed:
        gain = delta_formats.difference(row.delta_m, None, row.better, len(row.delta_seeds))
        held = len(row.seeds) - len(row.failed_gates)
        rows.append(
            Row(
                f"{row.label}, {row.target}",
                (
                    gain,
                    Cell(_spread(row.milliseconds)),
                    Cell("—" if row.speedup is None else f"{_spread(row.speedup)}×"),
                    Cell(row.precision),
                    Cell(f"{held}/{len(row.seeds)}", "" if held == len(row.seeds) else "bad"),
                ),
            )
        )
    against = "the baseline" if view.baseline is None else view.baseline
    caption = (
        f"Δm: the exported file's against {against} as trained with the same seed; latency: median over rounds in which "
        f"every entry of a seed ran once on every target; speedup: against {against} on the same target, round by round; "
        f"mean ± standard deviation over seeds; gates: seeds at which all held; {view.timed}"
    )
    columns = ("Δm, % ↑", "latency, ms ↓", "speedup ↑", "precision", "gates held")
    return Table(columns, tuple(rows), caption, footnote(report))


def _spread(spread: Spread) -> str:
    if not math.isfinite(spread.mean):
        return fmt.NO_NUMBER
    digits = max(0, 2 - math.floor(math.log10(abs(spread.mean)))) if spread.mean else 2
    text = f"{spread.mean:.{digits}f}"
    return text if spread.std is None else f"{text} ± {spread.std:.{digits}f}"


@dataclass(frozen=True)
class Place:
    """One entry in a plane, in the units of its axes, with the deviation of `y` over seeds where there are several."""

    label: str
    series: str
    x: float
    y: float
    y_std: float
    words: str


@dataclass(frozen=True)
class Plane:
    """Entries in the plane of two quantities, such as Δm in % over latency in ms; the curves by series, from low x on.

    The series in `loose` are dots that no line joins.
    """

    title: str
    x: Axis
    y: Axis
    curves: dict[str, list[Place]]
    target: str = ""
    loose: tuple[str, ...] = ()


def planes(report: Report) -> list[Plane]:
    """A plane for each target on which at least two entries have a latency and a Δm."""
    view, found = report.sweep, []
    rows = () if view is None else view.deployed
    for target in dict.fromkeys(row.target for row in rows):
        places = [_place(row) for row in rows if row.target == target and row.delta_m is not None]
        places = [one for one in places if math.isfinite(one.y) and one.x > 0]
        if len(places) < 2:
            continue
        curves: dict[str, list[Place]] = {}
        for one in sorted(places, key=lambda one: one.x):
            curves.setdefault(one.series, []).append(one)
        ends = [one.y + sign * one.y_std for one in places for sign in (-1, 1)]
        order = list(dict.fromkeys(row.series for row in rows))
        found.append(
            Plane(
                f"Δm against latency on {target}",
                ratio_axis([one.x for one in places], "latency, ms"),
                axis([*ends, 0.0], "Δm, %", margin=0.08),
                {name: curves[name] for name in order if name in curves},
                target,
            )
        )
    return found


def _place(row: DeployedRow) -> Place:
    assert row.delta_m is not None
    return Place(
        row.label,
        row.series,
        row.milliseconds.mean,
        100 * row.delta_m.mean,
        100 * (row.delta_m.std or 0.0),
        f"{row.label}: {fmt.milliseconds(row.milliseconds.mean)}, Δm {fmt.signed_percent(row.delta_m.mean)}",
    )
