"""One worker of a search: it takes trials until all are done, trains each over the seeds, and tells what came of it.

Every trial is done once, whatever number of workers there is. What ends a worker leaves its trial to the next one, which
goes on from the last checkpoint.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from compactmtl.artifacts.layout import COMPACT, EXPORT, LOG, SURGERY
from compactmtl.artifacts.run_folder import is_run, read_log
from compactmtl.config import SweepConfig
from compactmtl.config.search import ObjectiveConfig, SearchConfig
from compactmtl.errors import GATE, ArtifactError, ConfigError, TrainingError
from compactmtl.export import Bundle
from compactmtl.runs import Run
from compactmtl.sweep.jobs import Job
from compactmtl.sweep.pruning import Costs, Hopeless, Peer, check_hopeless, costs_of
from compactmtl.sweep.run import Failure, SweepRuns, finish, note_failure, say, wait_for
from compactmtl.sweep.space import trial_folder, trial_jobs, trial_name
from compactmtl.sweep.storage import StorageError
from compactmtl.sweep.study import EXPECTED, SEEDS, Claimed, Study
from compactmtl.tasks import delta_m
from compactmtl.train import expected_cost, train
from compactmtl.verify.speed import subject_latency


def for_trials(sweep: SweepConfig) -> SweepConfig:
    """The sweep with what its search's objectives need: compaction where a cost counts, and the targets of latencies."""
    search = sweep.search
    assert search is not None
    costs = any(one.name != "delta_m" for one in search.objectives)
    asked = [one.target for one in search.objectives if one.target is not None]
    targets = tuple(dict.fromkeys([*sweep.targets, *asked]))
    return sweep.model_copy(update={"compact": sweep.compact or costs, "targets": targets})


def baselines(sweep: SweepConfig, runs: SweepRuns) -> dict[int, Run]:
    """The baseline's run of each seed; empty where no objective needs one.

    Raises ConfigError where a seed has none, or one whose epochs were not chosen on a holdout.
    """
    search, name = sweep.search, sweep.baseline
    assert search is not None
    if name is None or all(one.name != "delta_m" for one in search.objectives):
        return {}
    found = {run.recipe.seed: run for run in runs.finished.get(name, ())}
    for seed in sweep.seeds:
        if seed not in found:
            raise ConfigError(
                f"the baseline {name!r} has no finished run of seed {seed}, and Δm is against it",
                "train it first, or give the sweep seeds that it has",
            )
        if found[seed].recipe.data.select_on != "holdout":
            raise ConfigError(
                f"{found[seed].path} chose its epochs on val, and trials are compared on the holdout",
                "give a baseline that was trained with data.select_on=holdout",
            )
    return found


@dataclass
class Worker:
    """This process's part of a search."""

    sweep: SweepConfig  # as `for_trials` gives it
    study: Study
    out: Path
    overrides: Sequence[str]
    smoke: bool
    baselines: Mapping[int, Run]
    console: Console
    failed: dict[str, Failure] = field(default_factory=dict)

    @property
    def search(self) -> SearchConfig:
        assert self.sweep.search is not None
        return self.sweep.search

    def run(self, total: int) -> dict[str, Failure]:
        """Do trials until `total` have come to their end, those of other workers too; what failed here, by folder.

        Raises TrainingInterrupted after Ctrl-C or SIGTERM, HeldError where a run of a trial is being written by
        another command, OSError where the disk refuses, StorageError where the storage does: the trial is then left to
        the next worker.
        """
        said = False
        while True:
            claimed = self.study.claim(total)
            if claimed is not None:
                try:
                    self._do(claimed, total)
                finally:
                    claimed.release()
                continue
            running = self.study.running()
            if not running:
                return self.failed
            if not said:
                say(self.console, f"waiting for {running} trials that other processes do")
                said = True
            wait_for(running)

    def _do(self, claimed: Claimed, total: int) -> None:
        folder, trial = trial_folder(self.out, claimed.number), _Trial(self, claimed)
        after = ", taken over from a worker that ended" if claimed.taken_over else ""
        shown = ", ".join(f"{key}={value}" for key, value in claimed.params.items())
        say(self.console, f"[{claimed.number + 1}/{total}] {folder}{after}: {shown}")
        fine = note_failure(self.failed, str(folder), trial.run, self.console)
        if trial.refused is not None:
            raise trial.refused
        if trial.hopeless is not None:
            say(self.console, str(trial.hopeless))
            self.study.prune(claimed, str(trial.hopeless))
        elif not fine:
            self.study.fail(claimed, self.failed[str(folder)].reason)
        elif broken := [one for one in trial.failed.values() if one.code != GATE]:
            self.study.fail(claimed, "; ".join(one.reason for one in broken))
        else:
            values = [statistics.fmean(by_seed.values()) for by_seed in trial.values]
            named = zip(self.search.objectives, values, strict=True)
            say(self.console, "  ".join(f"{one.label} {value:.4g}" for one, value in named))
            self.study.complete(claimed, values)
        self.failed |= trial.failed


@dataclass
class _Trial:
    """A trial while it is done: a run a seed, and each objective's value by seed."""

    worker: Worker
    claimed: Claimed
    values: list[dict[int, float]] = field(default_factory=list)
    hopeless: Hopeless | None = None
    refused: OSError | StorageError | None = None  # by disk or storage, which is no fault of the trial
    failed: dict[str, Failure] = field(default_factory=dict)  # what follows training

    def run(self) -> None:
        """Train each seed and measure it. Raises what training raises."""
        try:
            self._run()
        except Hopeless as given_up:
            self.hopeless = given_up
        except (OSError, StorageError) as refused:
            self.refused = refused

    def _run(self) -> None:
        worker = self.worker
        self.values = [{} for _ in worker.search.objectives]
        jobs = trial_jobs(
            worker.sweep,
            self.claimed.number,
            self.claimed.params,
            worker.out,
            worker.overrides,
            smoke=worker.smoke,
        )
        costs = self._costs(jobs[0])
        for job in jobs:
            self._check_holdout(job)
            run = train(
                job.resolved,
                job.path,
                resume=is_run(job.path),
                console=worker.console,
                watch=partial(self._look, job, costs),
            )
            finish(run, worker.sweep, worker.console, self.failed)
            if any(one.code != GATE for one in self.failed.values()):
                return
            for by_seed, objective in zip(self.values, worker.search.objectives, strict=True):
                by_seed[job.seed] = measured(objective, run, worker.baselines.get(job.seed))
        labels = [one.label for one in worker.search.objectives]
        self.claimed.note(
            SEEDS,
            {
                label: {str(seed): value for seed, value in by_seed.items()}
                for label, by_seed in zip(labels, self.values, strict=True)
            },
        )

    def _check_holdout(self, job: Job) -> None:
        base, share = self.worker.baselines.get(job.seed), job.resolved.recipe.data.holdout
        if base is not None and base.recipe.data.holdout != share:
            raise ConfigError(
                f"the baseline {base.path} set aside data.holdout={base.recipe.data.holdout:g}, and the trial {share:g}",
                "give both the same share: they are compared on it",
            )

    def _costs(self, job: Job) -> Costs | None:
        """What the trial is expected to cost, for the rule that gives trials up; told to the others."""
        search = self.worker.search
        if search.pruning is None or costs_of(search, None) is not None:
            return ()
        expected = self.claimed.trial.user_attrs.get(EXPECTED)
        if expected is None:
            found = expected_cost(job.resolved.recipe)
            if found is None:
                say(self.worker.console, "what it will cost is not known before, so it is not given up early")
                return None
            expected = list(found)
            self.claimed.note(EXPECTED, expected)
        return costs_of(search, expected)

    def _look(self, job: Job, costs: Costs | None, epoch: int, score: float) -> None:
        """Give the trial up where its scores, which the log has, are too low. Raises Hopeless."""
        pruning = self.worker.search.pruning
        if pruning is not None:
            check_hopeless(pruning, costs, scores_of(job.path), list(self._peers(job.seed)))

    def _peers(self, seed: int) -> Sequence[Peer]:
        found = []
        for one in self.worker.study.trials():
            costs = costs_of(self.worker.search, one.user_attrs.get(EXPECTED))
            if one.state.name == "COMPLETE" and costs is not None:
                folder = trial_folder(self.worker.out, one.number) / f"seed{seed}"
                found.append(Peer(costs, tuple(scores_of(folder))))
        return found


def scores_of(run: Path) -> list[float]:
    """A run's score on the split that chooses its epochs, an epoch each, as its log has them."""
    events = [event for event in read_log(run / LOG) if event.get("event") == "epoch"]
    return [math.nan if event["score"] is None else float(event["score"]) for event in events]


def measured(objective: ObjectiveConfig, run: Run, baseline: Run | None) -> float:
    """An objective's value of a finished run: Δm as a share, MACs for one image, parameters, or milliseconds.

    Raises ArtifactError where what it is read from is missing, TrainingError for a value that is not finite, ConfigError
    where Δm is not defined.
    """
    if objective.name == "delta_m":
        assert baseline is not None  # `baselines` has one for every seed
        tasks = run.measured
        value = delta_m(run.best, {name: one for name, one in baseline.best.items() if name in tasks}, tasks)
    elif objective.name == "latency":
        assert objective.target is not None  # the search was validated
        verification = Bundle.open(run.path / EXPORT / objective.target).verification
        if verification is None:
            raise ArtifactError(
                f"{run.path / EXPORT / objective.target} was not verified", "export the run again"
            )
        value = subject_latency(verification.latency)[1].median_ms
    else:
        surgery: dict[str, Any] = json.loads((run.path / COMPACT / SURGERY).read_text(encoding="utf-8"))
        value = float(surgery[objective.name]["after"])
    if not math.isfinite(value):
        raise TrainingError(
            f"{objective.label} of {run.path} is {value}", f"look at its metrics in {run.path / LOG}"
        )
    return value


def front_runs(sweep: SweepConfig, study: Study, out: Path) -> dict[str, list[Run]]:
    """The runs of the trials that no other beats, by trial."""
    return {
        trial_name(one.number): [
            Run.open(trial_folder(out, one.number) / f"seed{seed}") for seed in sweep.seeds
        ]
        for one in study.front()
    }
