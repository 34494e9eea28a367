"""What a search found: its trials as a table and as JSON, the ones that none beats as figures and as recipes."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compactmtl.artifacts.files import new_folder, write_text
from compactmtl.artifacts.layout import SEARCH, SEARCH_BEST, SEARCH_TABLE
from compactmtl.config import SweepConfig, dump_recipe
from compactmtl.config.search import ObjectiveConfig
from compactmtl.report import format as fmt
from compactmtl.report import markdown
from compactmtl.report.charts import Axis, axis, ratio_axis
from compactmtl.report.deployed import Place, Plane
from compactmtl.report.svg import drawn
from compactmtl.report.table import NOTHING, Cell, Row, Table
from compactmtl.sweep.space import trial_jobs, trial_name
from compactmtl.sweep.study import REASON, SEEDS, Study

FRONT, OTHERS = "no other trial is better in all", "other trials"


@dataclass(frozen=True)
class Found:
    """The trials of a search, each as JSON has it."""

    objectives: tuple[ObjectiveConfig, ...]
    trials: tuple[dict[str, Any], ...]

    @property
    def front(self) -> list[dict[str, Any]]:
        """The trials that no other beats, the best in the first objective at first."""
        sign = -1 if self.objectives[0].name == "delta_m" else 1
        label = self.objectives[0].label
        chosen = [one for one in self.trials if one["pareto"]]
        return sorted(chosen, key=lambda one: (sign * one["values"][label], one["number"]))

    def counts(self) -> dict[str, int]:
        """How many trials are in each state."""
        states = [one["state"] for one in self.trials]
        return {state: states.count(state) for state in dict.fromkeys(states)}


def collect(sweep: SweepConfig, study: Study) -> Found:
    """The trials of a study."""
    search = sweep.search
    assert search is not None
    front = {one.number for one in study.front()}
    labels = [one.label for one in search.objectives]
    return Found(
        search.objectives,
        tuple(
            {
                "number": one.number,
                "name": trial_name(one.number),
                "state": one.state.name.lower(),
                "parameters": {key: one.params[key] for key in search.parameters if key in one.params},
                "values": dict(zip(labels, one.values, strict=True))
                if one.state.name == "COMPLETE" and one.values is not None
                else None,
                "seeds": one.user_attrs.get(SEEDS),
                "pareto": one.number in front,
                "reason": one.user_attrs.get(REASON),
            }
            for one in study.trials()
        ),
    )


def write_found(
    sweep: SweepConfig,
    found: Found,
    out: Path,
    name: str,
    command: str,
    overrides: Sequence[str],
    *,
    smoke: bool,
) -> None:
    """Write search.json, search.md, a figure for each further objective, and the best recipes. Raises OSError."""
    planes = {f"pareto-{_slug(plane.title)}.svg": plane for plane in figures(found)}
    for file, plane in planes.items():
        write_text(out / file, drawn(plane))
    results = {
        "version": 1,
        "name": name,
        "command": command,
        "objectives": [one.label for one in found.objectives],
        "trials": list(found.trials),
    }
    write_text(out / SEARCH, json.dumps(results, indent=1) + "\n")
    write_text(out / SEARCH_TABLE, describe(sweep, found, name, command, planes))
    with new_folder(out / SEARCH_BEST) as folder:
        for one in found.front:
            jobs = trial_jobs(sweep, one["number"], one["parameters"], out, overrides, smoke=smoke)
            values = ", ".join(f"{label} {_value(label, value)}" for label, value in one["values"].items())
            header = f"# {one['name']} of the search {name}: {values}\n"
            (folder / f"{one['name']}.yaml").write_text(
                header + dump_recipe(jobs[0].resolved.recipe), encoding="utf-8"
            )


def describe(sweep: SweepConfig, found: Found, name: str, command: str, planes: Mapping[str, Plane]) -> str:
    """The page: how far the search is, the best trials, the figures, all trials."""
    counts = ", ".join(f"{count} {state}" for state, count in found.counts().items())
    parts = [f"# {name}: search", sweep.description, f"`{command}`", f"Trials: {counts or 'none'}."]
    if found.front:
        parts += ["## Best trials", markdown(front_cells(found))]
        parts.append(f"Their recipes are in `{SEARCH_BEST}/`, for `compactmtl train RECIPE`.")
    parts += [f"![{plane.title}]({file})" for file, plane in planes.items()]
    if found.trials:
        parts += ["## All trials", markdown(trial_cells(found))]
    return "\n\n".join(part for part in parts if part) + "\n"


def front_cells(found: Found) -> Table:
    """The trials that no other beats, with their parameters."""
    caption = "no other trial is at least as good in every objective and better in one; means over seeds"
    return _cells(found, found.front, caption, state=False)


def trial_cells(found: Found) -> Table:
    """Every trial by number."""
    reasons = [f"{one['name']}: {one['reason']}" for one in found.trials if one["reason"]]
    caption = "every trial; means over seeds" + "".join(f"; {reason}" for reason in reasons)
    return _cells(found, found.trials, caption, state=True)


def _cells(found: Found, trials: Sequence[Mapping[str, Any]], caption: str, *, state: bool) -> Table:
    keys = list(dict.fromkeys(key for one in found.trials for key in one["parameters"]))
    rows = []
    for one in trials:
        values = [
            NOTHING
            if one["values"] is None
            else Cell(_value(objective.label, one["values"][objective.label]))
            for objective in found.objectives
        ]
        texts = [
            Cell(_parameter(one["parameters"][key])) if key in one["parameters"] else NOTHING for key in keys
        ]
        rows.append(Row(one["name"], (*([Cell(one["state"])] if state else []), *values, *texts)))
    columns = (*(["state"] if state else []), *map(_heading, found.objectives), *keys)
    return Table(tuple(columns), tuple(rows), caption)


def _heading(objective: ObjectiveConfig) -> str:
    if objective.name == "delta_m":
        return "Δm ↑"
    named = {"macs": "MACs", "parameters": "parameters", "latency": f"latency on {objective.target}"}
    return f"{named[objective.name]} ↓"


def _value(label: str, value: float) -> str:
    if label == "delta_m":
        return fmt.signed_percent(value, 2)
    return fmt.count(value) if label in ("macs", "parameters") else fmt.milliseconds(value)


def _parameter(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def figures(found: Found) -> list[Plane]:
    """The first objective over each other one, of finished trials; none below two of them."""
    done = [one for one in found.trials if one["values"] is not None]
    if len(done) < 2:
        return []
    first = found.objectives[0]
    return [_plane(done, first, other) for other in found.objectives[1:]]


def _plane(trials: Sequence[Mapping[str, Any]], first: ObjectiveConfig, other: ObjectiveConfig) -> Plane:
    places = [
        Place(
            label=str(one["number"]),
            series=FRONT if one["pareto"] else OTHERS,
            x=_scaled(other, one["values"][other.label]),
            y=_scaled(first, one["values"][first.label]),
            y_std=0.0,
            words=f"{one['name']}: "
            + ", ".join(f"{label} {_value(label, value)}" for label, value in one["values"].items()),
        )
        for one in sorted(trials, key=lambda one: one["values"][other.label])
    ]
    curves = {series: [one for one in places if one.series == series] for series in (FRONT, OTHERS)}
    title = f"{_plain(first)} against {_plain(other)}"
    return Plane(
        title,
        _axis(other, [one.x for one in places]),
        _axis(first, [one.y for one in places]),
        {series: places for series, places in curves.items() if places},
        loose=(OTHERS,),
    )


def _plain(objective: ObjectiveConfig) -> str:
    return _heading(objective)[:-2]


def _scaled(objective: ObjectiveConfig, value: float) -> float:
    return value * {"delta_m": 100, "macs": 1e-6, "parameters": 1e-6, "latency": 1}[objective.name]


def _axis(objective: ObjectiveConfig, values: Sequence[float]) -> Axis:
    unit = {"delta_m": "%", "macs": "millions", "parameters": "millions", "latency": "ms"}[objective.name]
    title = f"{_plain(objective)}, {unit}"
    if objective.name != "delta_m" and min(values) > 0 and math.isfinite(max(values)):
        return ratio_axis(values, title)
    return axis(values, title, margin=0.08)


def _slug(title: str) -> str:
    words = title.replace("Δm", "delta-m").replace(" against ", " ").lower().split()
    return "-".join("".join(one if one.isalnum() or one in ".-" else "-" for one in word) for word in words)
