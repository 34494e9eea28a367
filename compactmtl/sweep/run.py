"""Train a sweep's runs one after the other, and go on where it stopped: finished runs stay, interrupted ones resume."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from compactmtl.config import SweepConfig, load_target
from compactmtl.errors import ArtifactError, CompactError, TrainingError, command
from compactmtl.export import export_run
from compactmtl.sweep.jobs import Job, elsewhere
from compactmtl.train import Run, TrainingInterrupted, compact_run, is_run, train
from compactmtl.train.dry_run import check_recipe
from compactmtl.train.probe import probe_run
from compactmtl.train.run import check_compact, check_same_recipe


@dataclass
class SweepRuns:
    """What a sweep has: finished runs and seeds without one by entry, and why runs failed."""

    finished: dict[str, list[Run]] = field(default_factory=dict)
    missing: dict[str, list[int]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)  # run folder -> why


def run_sweep(sweep: SweepConfig, jobs: Sequence[Job], console: Console) -> dict[str, str]:
    """Train every job that is not finished, then compact, probe and export it where the sweep says so.

    A run that cannot go on, such as one whose loss is not finite, is left and the others go on; the result maps its
    folder to the reason. Raises TrainingInterrupted after Ctrl-C or SIGTERM, and what `train` raises where the recipe,
    the data or the folder are at fault.
    """
    check_entries(jobs)
    failed: dict[str, str] = {}
    for number, job in enumerate(jobs, 1):
        console.print(f"[{number}/{len(jobs)}] {job.path}", highlight=False, markup=False, soft_wrap=True)
        try:
            run = train(job.resolved, job.path, resume=is_run(job.path), console=console)
        except TrainingInterrupted as error:
            raise TrainingInterrupted(error.message, "give the same command again to go on") from error
        except TrainingError as error:
            console.print(f"failed: {error.message}", highlight=False, markup=False, soft_wrap=True)
            failed[str(job.path)] = error.message
            continue
        finish(run, sweep, console)
    return failed


def check_entries(jobs: Sequence[Job]) -> None:
    """Build the session of every entry that has not begun, before the first of them trains for hours.

    Raises what training would raise at its start, naming the entry.
    """
    first: dict[str, Job] = {}
    for job in jobs:
        if not is_run(job.path):
            first.setdefault(job.entry, job)
    for name, job in first.items() if len(first) > 1 else ():
        try:
            check_recipe(job.resolved.recipe)
        except CompactError as error:
            raise type(error)(f"entry {name}: {error.message}", error.hint) from error


def finish(run: Run, sweep: SweepConfig, console: Console) -> None:
    """Compact, probe and export a trained run as the sweep says, unless that is done."""
    if sweep.compact and not _is_compacted(run):
        result = compact_run(run)
        report = result.report
        console.print(f"compact: {report.macs_after:,} of {report.macs_before:,} MACs", highlight=False)
    if sweep.probe is not None:
        probe_run(run, samples=sweep.probe, seed=run.recipe.seed)
    for target in sweep.targets:
        if not (run.path / "export" / target / "verification.json").exists():
            found = export_run(run, target, load_target(target))
            console.print(f"{target}: gates {'passed' if found.passed else 'FAILED'}", highlight=False)


def collect_runs(sweep: SweepConfig, jobs: Sequence[Job], only: Sequence[str] = ()) -> SweepRuns:
    """The finished runs of the jobs and of entries made elsewhere.

    Raises ArtifactError for a damaged run, ConfigError for one of another recipe than its job's.
    """
    found = SweepRuns()
    for job in jobs:
        run = Run.open(job.path) if is_run(job.path) else None
        if run is not None and run.finished:
            check_same_recipe(job.path, job.resolved.recipe)
            found.finished.setdefault(job.entry, []).append(run)
        else:
            found.missing.setdefault(job.entry, []).append(job.seed)
    for name, paths in elsewhere(sweep, only).items():
        found.finished.setdefault(name, []).extend(_finished(path) for path in paths)
    # in the sweep's order, whichever came to its end first
    found.finished = {name: found.finished[name] for name in sweep.entries if name in found.finished}
    return found


def _finished(path: Path) -> Run:
    run = Run.open(path)
    if not run.finished:
        raise ArtifactError(
            f"{path} has not finished",
            f"`{command('train', path / 'recipe.yaml', '--out', path.parent, '--name', path.name, '--resume')}` goes on",
        )
    return run


def _is_compacted(run: Run) -> bool:
    if not run.has_compact:
        return False
    try:
        check_compact(run.path)
    except CompactError:  # of another checkpoint: compact again
        return False
    return True
