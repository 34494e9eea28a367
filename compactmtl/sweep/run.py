"""Train a sweep's runs one after the other, and go on where it stopped: finished runs stay, interrupted ones resume.

No run ends the sweep. What fails is noted and the next one begins; what another process is writing is left until the
others are done.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from compactmtl.artifacts.files import sha256_file
from compactmtl.artifacts.layout import EXPORT, RECIPE
from compactmtl.artifacts.lock import writing
from compactmtl.artifacts.run_folder import is_run
from compactmtl.backends import load_target
from compactmtl.config import SweepConfig
from compactmtl.errors import (
    BUG,
    GATE,
    USAGE,
    ArtifactError,
    CompactError,
    ConfigError,
    HeldError,
    command,
    machine_fault,
)
from compactmtl.export import Bundle, export_run
from compactmtl.runs import Run, compact_run
from compactmtl.runs.probe import Question
from compactmtl.runs.run import check_compact, check_same_recipe
from compactmtl.runs.teachers import teacher_paths
from compactmtl.sweep.jobs import Job, elsewhere
from compactmtl.train import TrainingInterrupted, train
from compactmtl.train.dry_run import check_recipe
from compactmtl.train.probe import probe_run

POLL = 5.0  # seconds between looks at runs that other processes write


@dataclass(frozen=True)
class Failure:
    """Why a run, or what follows its training, is not done; `code` is the exit code that it gives the command."""

    reason: str
    code: int = USAGE


@dataclass
class SweepRuns:
    """What a sweep has: finished runs and seeds without one by entry, and why runs failed."""

    finished: dict[str, list[Run]] = field(default_factory=dict)
    missing: dict[str, list[int]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)  # run folder, or that and what follows -> why


def run_sweep(sweep: SweepConfig, jobs: Sequence[Job], console: Console) -> dict[str, Failure]:
    """Train every job that is not finished, then compact, probe and export it where the sweep says so.

    What fails is noted and the others go on; the result maps the run's folder, with the stage that failed after it, to
    the failure. Runs that other processes hold are come back to when the others are done, until they are free.

    Raises TrainingInterrupted after Ctrl-C or SIGTERM; and before anything is trained what `train` raises where a
    recipe, the data or a folder are at fault.
    """
    check_entries(jobs)
    turn = _Turn(sweep, console, len(jobs))
    held = [one for one in enumerate(jobs, 1) if not turn.take(*one)]
    turn.waits = True
    while held:
        postponed = [one for one in held if not turn.take(*one)]
        if len(postponed) == len(held):
            wait_for(len(held))
        held = postponed
    return turn.failed


def wait_for(count: int) -> None:
    """Wait a while for `count` runs of other processes. Raises TrainingInterrupted after Ctrl-C."""
    try:
        time.sleep(POLL)
    except KeyboardInterrupt:
        raise TrainingInterrupted(
            f"interrupted while waiting for {count} runs that other processes write",
            "give the same command again to go on",
        ) from None


def exit_code(failed: dict[str, Failure]) -> int:
    """The command's exit code: of a bug before any other failure, of a failed gate after it."""
    codes = {failure.code for failure in failed.values()}
    if not codes:
        return 0
    return BUG if BUG in codes else min(codes - {GATE}, default=GATE)


@dataclass
class _Turn:
    """A sweep going through its jobs."""

    sweep: SweepConfig
    console: Console
    count: int
    failed: dict[str, Failure] = field(default_factory=dict)
    waits: bool = False  # whether only runs are left that others held
    _reported: set[str] = field(default_factory=set)

    def take(self, number: int, job: Job) -> bool:
        """Do a job, or note why it fails; False where another process holds its run."""
        try:
            with writing(job.path, "sweep"):
                say(self.console, f"[{number}/{self.count}] {job.path}")
                self._do(job)
        except HeldError as error:
            line = f"[{number}/{self.count}] {'waiting' if self.waits else 'left for later'}: {error.message}"
            if line not in self._reported:
                self._reported.add(line)
                say(self.console, line)
            return False
        return True

    def _do(self, job: Job) -> None:
        runs: list[Run] = []

        def train_it() -> None:
            runs.append(train(job.resolved, job.path, resume=is_run(job.path), console=self.console))

        if note_failure(self.failed, str(job.path), train_it, self.console):
            finish(runs[0], self.sweep, self.console, self.failed)


def say(console: Console, line: str) -> None:
    """Print a line as it is."""
    console.print(line, highlight=False, markup=False, soft_wrap=True)


def note_failure(failed: dict[str, Failure], name: str, work: Callable[[], object], console: Console) -> bool:
    """Do some work; where it fails, say so, note it under `name` and return False.

    Raises TrainingInterrupted and HeldError, which are no failures.
    """
    mend = ""
    try:
        work()
    except TrainingInterrupted as error:
        raise TrainingInterrupted(error.message, "give the same command again to go on") from error
    except HeldError:
        raise
    except CompactError as error:
        failed[name], mend = Failure(error.message, error.exit_code), error.hint
    except Exception as error:
        fault = machine_fault(error)
        if fault is None and not isinstance(error, OSError):
            traceback.print_exc()
        reason = f"{type(error).__name__}: {error}" if fault is None else fault.message
        code = fault.exit_code if fault else (USAGE if isinstance(error, OSError) else BUG)
        failed[name] = Failure(reason, code)
    if name not in failed:
        return True
    say(console, f"failed: {failed[name].reason}" + (f"\n  {mend}" if mend else ""))
    return False


def check_entries(jobs: Sequence[Job]) -> None:
    """Look at runs that are there, and build the session of every entry that has not begun, before any is trained.

    One that learns from a run of the sweep, which is trained before it and is not there yet, cannot be built: what is
    wrong with it is found at its turn.

    Raises ConfigError where a run is of another recipe than its job's, and what training would raise at its start,
    naming the entry.
    """
    first: dict[str, Job] = {}
    before: set[Path] = set()
    for job in jobs:
        if is_run(job.path):
            _check_recipe_of(job)
        elif not _awaits(job, before):
            first.setdefault(job.entry, job)
        before.add(job.path.resolve())
    for name, job in first.items() if len(jobs) > 1 else ():
        try:
            check_recipe(job.resolved.recipe)
        except CompactError as error:
            raise type(error)(f"entry {name}: {error.message}", error.hint) from error


def _awaits(job: Job, before: Collection[Path]) -> bool:
    """Whether a job learns from one `before` it that is not finished."""
    own = [path for path in teacher_paths(job.resolved.recipe) if path.resolve() in before]
    return not all(is_run(path) and Run.open(path).finished for path in own)


def _check_recipe_of(job: Job) -> None:
    try:
        check_same_recipe(job.path, job.resolved.recipe)
    except ConfigError as error:
        raise ConfigError(
            error.message,
            "give the sweep and the overrides that its runs were trained with, or another folder with --out",
        ) from error


def finish(run: Run, sweep: SweepConfig, console: Console, failed: dict[str, Failure]) -> None:
    """Compact, probe and export a trained run as the sweep says, unless that is done; what fails goes into `failed`.

    A run that cannot be compacted is not exported: the bundle would be of another model.
    """

    def compact_it() -> None:
        report = compact_run(run).report
        say(console, f"compact: {report.macs_after:,} of {report.macs_before:,} MACs")

    def probe_it() -> None:
        probe_run(run, Question(samples=sweep.probe, seed=run.recipe.seed))

    if (
        sweep.compact
        and not _is_compacted(run)
        and not note_failure(failed, f"{run.path} compact", compact_it, console)
    ):
        return
    if sweep.probe is not None:
        note_failure(failed, f"{run.path} probe", probe_it, console)
    for target in sweep.targets:
        name = f"{run.path} export {target}"

        def export_it(target: str = target, name: str = name) -> None:
            passed = _exported(run, target)
            if passed is None:
                passed = export_run(run, target, load_target(target)).passed
                say(console, f"{target}: gates {'passed' if passed else 'FAILED'}")
            if not passed:
                failed[name] = Failure("its gates failed, as its report shows", GATE)

        note_failure(failed, name, export_it, console)


def _exported(run: Run, target: str) -> bool | None:
    """Whether the gates of the run's bundle for a target held; None where there is no whole bundle of this model."""
    bundle = current_bundle(run, run.path / EXPORT / target)
    return None if bundle is None or bundle.verification is None else bundle.verification.passed


def current_bundle(run: Run, path: Path) -> Bundle | None:
    """The verified bundle in a folder of a run; None where there is none, or it is damaged or of another model."""
    try:
        bundle = Bundle.open(path)
        current = bundle.info.weights_sha256 in (None, sha256_file(run.deployed_weights))
        return bundle if bundle.verification is not None and current else None
    except CompactError:  # export again
        return None


def collect_runs(sweep: SweepConfig, jobs: Sequence[Job], only: Sequence[str] = ()) -> SweepRuns:
    """The finished runs of the jobs and of entries made elsewhere.

    Raises ArtifactError for a damaged run, ConfigError for one of another recipe than its job's.
    """
    collected = SweepRuns()
    for job in jobs:
        run = Run.open(job.path) if is_run(job.path) else None
        if run is not None and run.finished:
            check_same_recipe(job.path, job.resolved.recipe)
            collected.finished.setdefault(job.entry, []).append(run)
        else:
            collected.missing.setdefault(job.entry, []).append(job.seed)
    for name, paths in elsewhere(sweep, only).items():
        collected.finished.setdefault(name, []).extend(_finished(path) for path in paths)
    # in the sweep's order, whichever came to its end first
    collected.finished = {
        name: collected.finished[name] for name in sweep.entries if name in collected.finished
    }
    return collected


def _finished(path: Path) -> Run:
    run = Run.open(path)
    if not run.finished:
        raise ArtifactError(
            f"{path} has not finished",
            f"`{command('train', path / RECIPE, '--out', path.parent, '--name', path.name, '--resume')}` goes on",
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
