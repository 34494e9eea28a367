"""The stages of a fit, in order. One that is finished, and was made from what is there now, is not run again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

import compactmtl
from compactmtl.artifacts.files import parse_json, sha256_file, write_text
from compactmtl.artifacts.layout import (
    BEST,
    CHECKPOINTS,
    COMPACT,
    EXPORT,
    REPORT_PAGE,
    SURGERY,
    VERIFICATION_FILE,
)
from compactmtl.artifacts.lock import writing
from compactmtl.artifacts.run_folder import is_run
from compactmtl.backends import align_of, get_backend, surgery_align
from compactmtl.config import Resolved, trust
from compactmtl.config.paths import here_words
from compactmtl.errors import ArtifactError, CompactError, ConfigError
from compactmtl.export import Bundle, export_run
from compactmtl.export.run import check_baseline
from compactmtl.fit.compose import Road
from compactmtl.fit.summary import Outcome
from compactmtl.report import collect, write_collected
from compactmtl.runs import Run, compact_run, recipe_hash
from compactmtl.runs.checkpoint import checked_weights
from compactmtl.runs.run import check_compact, check_same_recipe
from compactmtl.sparsity import LatencyTable
from compactmtl.train import check_recipe, measured_table, train
from compactmtl.train.interrupt import TrainingInterrupted
from compactmtl.verify.result import Verification

Say = Callable[[str], None]
Facts = dict[str, Any]
VERSION = 1


def fit(
    road: Road,
    *,
    baseline: Run | None = None,
    overwrite: bool = False,
    device: torch.device | str = "cpu",
    say: Say = lambda line: None,
    console: Console | None = None,
) -> Outcome:
    """Walk the road from where it was left: measure, train dense, shrink, compact, export, report.

    Args:
        road: what `plan_road` gave.
        baseline: dense run to compare with, where the road trains none itself.
        overwrite: start over, in place of trainings of other recipes and of finished ones.
        device: where the torch models are evaluated, which the artifact is held against.
        say: is told each stage in a line.

    A gate that fails is in the outcome, and the caller decides. Raises what the stages raise: at the start where recipe,
    network, budget or target cannot be; HeldError where another fit writes into the folder; TrainingInterrupted after Ctrl-C.
    """
    get_backend(road.target.backend).require(road.target)
    with writing(road.folder, "fit"):
        walk = _Walk(road, baseline, device, say, console, overwrite, _State.read(road.state))
        again = " without --overwrite" if overwrite else ""
        hint = f"give the same command again{again} to go on from there"
        try:
            return walk.walk()
        except TrainingInterrupted as error:
            raise TrainingInterrupted(error.message, hint) from None
        except KeyboardInterrupt:
            raise TrainingInterrupted("interrupted", hint) from None


@dataclass
class _State:
    """What each finished stage was made from."""

    path: Path
    made_from: dict[str, Facts] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> _State:
        try:
            values = parse_json(path.read_text(encoding="utf-8"))
            if values["version"] == VERSION:
                return cls(path, dict(values["made_from"]))
        except (OSError, ValueError, KeyError, TypeError):
            pass  # none yet, or damaged: whatever it told is found out again
        return cls(path)

    def note(self, stage: str, facts: Facts) -> None:
        self.made_from[stage] = facts
        write_text(self.path, json.dumps({"version": VERSION, "made_from": self.made_from}, indent=1) + "\n")


@dataclass
class _Walk:
    road: Road
    baseline: Run | None
    device: torch.device | str
    say: Say
    console: Console | None
    overwrite: bool
    state: _State

    def walk(self) -> Outcome:
        road = self.road
        if self.overwrite:
            self.state.made_from = {}
        self._measure()
        self._note_code()
        if road.dense is not None:
            self.baseline = self._train("dense", road.dense, road.dense_run, {})
        run = self._train("shrink", road.shrunk, road.run, self._sources())
        surgery = self._compact(run)
        verification = self._export(run)
        page = self._report(run)
        return Outcome(road, run, self.baseline, surgery, verification, page)

    def _measure(self) -> None:
        """Check recipe and network as training will, and measure the budget's latency table where it names none."""
        road, latency = self.road, self.road.reduction.latency
        begun = is_run(road.run) and not self.overwrite
        if latency is None or road.own_table:
            if not begun:
                self.say("check: the recipe, the network and the budget")
                check_recipe(road.plain.recipe)
            return
        facts = {
            "recipe": recipe_hash(road.plain.recipe),
            "target": _digest(road.target.model_dump_json()),
            "align": align_of(road.plain.recipe).channels,
        }
        if self._fresh("table", facts) and _reads(lambda: LatencyTable.load(road.table)):
            self.say(f"table: {road.table} is there")
            return
        if begun:  # the network was shrunk by the table that is there, or by none that is known
            check_same_recipe(road.run, road.shrunk.recipe)
            if road.table.is_file():
                return
        self.say(f"table: what each layer takes on {road.target_name}")
        table = measured_table(road.plain.recipe)
        write_text(road.table, table.model_dump_json() + "\n")
        self.state.note("table", facts)

    def _sources(self) -> Facts:
        """What the shrunk network's training begins with: the table and the dense weights."""
        road = self.road
        facts: Facts = {}
        if road.table.is_file():
            facts["table"] = sha256_file(road.table)
        if road.dense is not None:
            facts["dense"] = checked_weights(road.dense_run / CHECKPOINTS / BEST)
        return facts

    def _train(self, stage: str, resolved: Resolved, path: Path, sources: Facts) -> Run:
        """Train, go on with a training that was interrupted, or take the finished run."""
        begun = is_run(path)
        over = self.overwrite
        if begun and not over:
            check_same_recipe(path, resolved.recipe)
            known = self.state.made_from.get(stage)
            if known is not None and known != sources:
                changed = ", ".join(key for key in {**known, **sources} if known.get(key) != sources.get(key))
                raise ConfigError(
                    f"{path} was trained from something else than is there now: {changed}",
                    "train it again with --overwrite, or choose another --name",
                )
            run = Run.open(path, here_words(resolved.recipe))
            if run.finished:
                self.say(f"{stage}: {path} is finished")
                return run
        self.state.note(stage, sources)
        self.say(f"{stage}: {'going on with' if begun and not over else 'training'} {path}")
        return train(resolved, path, resume=begun and not over, overwrite=over, console=self.console)

    def _compact(self, run: Run) -> Facts:
        facts = {
            "weights": checked_weights(run.path / CHECKPOINTS / BEST),
            "align": surgery_align(run.recipe).channels,
            "unreached": run.recipe.surgery.unreached,
        }
        done = self._fresh("compact", facts) and run.has_compact and _reads(lambda: check_compact(run.path))
        if done:
            self.say(f"compact: {run.path / COMPACT} is finished")
        else:
            self.say("compact: removing the dead channels")
            compact_run(run)
            self.state.note("compact", facts)
        surgery: Facts = parse_json((run.path / COMPACT / SURGERY).read_text(encoding="utf-8"))
        return surgery

    def _export(self, run: Run) -> Verification:
        """The bundle; one that failed a gate is made and measured again."""
        road, folder = self.road, run.path / EXPORT / self.road.target_name
        facts = {
            "weights": sha256_file(run.deployed_weights),
            "target": _digest(road.target.model_dump_json()),
            "baseline": self._baseline_weights(),
            "version": compactmtl.__version__,
        }
        if self._fresh("export", facts) and _reads(lambda: Bundle.open(folder)):
            verification = _verification(folder)
            if verification is not None and verification.passed:
                self.say(f"export: {folder} is finished")
                return verification
        self.say(f"export: {road.target_name}")
        if self.baseline is not None:
            check_baseline(run, self.baseline)
        found = export_run(
            run, road.target_name, road.target, self.baseline, progress=self._tell, device=self.device
        )
        self.state.note("export", facts)
        return found

    def _report(self, run: Run) -> Path:
        page = run.path / REPORT_PAGE
        verification = run.path / EXPORT / self.road.target_name / VERIFICATION_FILE
        facts = {"verification": sha256_file(verification), "baseline": self._baseline_weights()}
        if self._fresh("report", facts) and page.is_file():
            self.say(f"report: {page} is finished")
            return page
        self.say("report: one page of all results")
        with writing(run.path, "report"):
            report, samples = collect([run], self.baseline, device=self.device)
            page = write_collected(report, samples, run.path)
        self.state.note("report", facts)
        return page

    def _baseline_weights(self) -> str | None:
        if self.baseline is None:
            return None
        return checked_weights(self.baseline.path / CHECKPOINTS / BEST)

    def _fresh(self, stage: str, facts: Facts) -> bool:
        return self.state.made_from.get(stage) == facts

    def _tell(self, line: str) -> None:
        self.say(f"  {line} …")

    def _note_code(self) -> None:
        """Say so where the module of a network of the user's own has changed since it was trained."""
        factory = self.road.shrunk.recipe.model.factory
        source = None if factory is None else trust.source_of(factory, "model.factory")
        if source is None or not source.is_file():
            return
        facts = {"sha256": sha256_file(source)}
        known = self.state.made_from.get("code")
        if known is not None and known != facts and is_run(self.road.run):
            self.say(f"note: {source} has changed since {self.road.run} began; --overwrite trains it again")
            return
        self.state.note("code", facts)


def _reads(read: Callable[[], object]) -> bool:
    """Whether an artifact is whole; one that is not is made again."""
    try:
        read()
    except (ArtifactError, CompactError, OSError):
        return False
    return True


def _verification(folder: Path) -> Verification | None:
    try:
        return Verification.model_validate_json((folder / VERIFICATION_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
