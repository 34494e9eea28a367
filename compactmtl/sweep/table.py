"""Write what a sweep found: sweep.md with both tables, sweep.json with everything, and report.html."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from compactmtl.artifacts.files import write_text
from compactmtl.artifacts.layout import SWEEP, SWEEP_TABLE
from compactmtl.report import delta_cells, markdown, write_collected
from compactmtl.report.deployed import deployed_cells, planes, with_deployed
from compactmtl.report.model import Report
from compactmtl.report.paired import paired_cells, sweep_report
from compactmtl.report.probes import probe_tables
from compactmtl.report.samples import ValSplits
from compactmtl.report.selection import selection_cells
from compactmtl.report.svg import drawn
from compactmtl.report.table import Table
from compactmtl.runs.probe import read_probe
from compactmtl.sweep.latency import SeedLatency
from compactmtl.sweep.run import SweepRuns


def write_table(
    name: str,
    description: str,
    command: str,
    runs: SweepRuns,
    baseline: str | None,
    out: Path,
    against: Mapping[str, str] | None = None,
    latencies: Mapping[int, SeedLatency] | None = None,
    targets: Sequence[str] = (),
    series: Mapping[str, str] | None = None,
) -> Report | None:
    """Write the tables of the finished runs into `out` and return the report; None where no run has finished.

    `against`: as in `sweep_report`. `latencies` are those of `sweep_latencies`, of exports to `targets`, and `series`
    the curves of the entries: with them there is a table and, for each target, a figure of Δm against latency.

    Raises ConfigError where runs don't compare, ArtifactError for a damaged run, OSError where `out` can't be written.
    """
    if not runs.finished:
        return None
    report = sweep_report(name, runs.finished, baseline, runs.missing, ValSplits(), against)
    if latencies:
        timed = {seed: (one.latency, one.created) for seed, one in latencies.items()}
        report = with_deployed(report, runs.finished, timed, targets, series or {})
    write_collected(report, [], out)
    for plane in planes(report):
        write_text(out / figure_name(plane.target), drawn(plane))
    write_text(out / SWEEP, report.model_dump_json(indent=1) + "\n")
    write_text(out / SWEEP_TABLE, describe(report, description, command, runs))
    return report


def figure_name(target: str) -> str:
    """The file of a target's figure."""
    return f"pareto-{target}.svg"


def probed(runs: SweepRuns) -> list[Table]:
    """Tables of the probes that the finished runs have, one a task."""
    groups = {
        entry: [probe for run in group if (probe := read_probe(run)) is not None]
        for entry, group in runs.finished.items()
    }
    return probe_tables({entry: probes for entry, probes in groups.items() if probes})


def describe(report: Report, description: str, command: str, runs: SweepRuns) -> str:
    """The tables as Markdown, with the command that makes them again and what is missing."""
    assert report.sweep is not None
    parts = [f"# {report.sweep.name}", description, f"`{command}`"]
    missing = sum(len(seeds) for seeds in runs.missing.values())
    if missing:
        done = sum(len(group) for group in runs.finished.values())
        parts.append(f"**Unfinished: {done} of {done + missing} runs.** The command goes on with the others.")
    parts.append(markdown(delta_cells(report)))
    paired = paired_cells(report)
    if paired is not None:
        parts.append(markdown(paired))
    selected = selection_cells(report, runs.finished)
    if selected is not None:
        parts.append(markdown(selected))
    timed = deployed_cells(report)
    if timed is not None:
        parts.append(markdown(timed))
        parts += [
            f"![Δm against latency on {one.target}]({figure_name(one.target)})" for one in planes(report)
        ]
    parts += [markdown(table) for table in probed(runs)]
    notes = [
        *(
            f"{entry}: no finished run of seed {', '.join(map(str, seeds))}"
            for entry, seeds in runs.missing.items()
        ),
        *(f"{path} failed: {reason}" for path, reason in runs.failed.items()),
        *report.notes,
    ]
    parts += ["\n".join(f"- {note}" for note in notes)] if notes else []
    return "\n\n".join(part for part in parts if part) + "\n"
