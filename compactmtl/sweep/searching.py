"""A search as the command goes through it: checked and opened, worked on, written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from compactmtl.artifacts.layout import SEARCH_JOURNAL
from compactmtl.config import Resolved, SweepConfig
from compactmtl.errors import CompactError
from compactmtl.report.table import Table
from compactmtl.runs import Run
from compactmtl.sweep.found import collect, front_cells, write_found
from compactmtl.sweep.run import Failure, SweepRuns
from compactmtl.sweep.search import Worker, baselines, for_trials, front_runs
from compactmtl.sweep.space import check_space, identity
from compactmtl.sweep.storage import require_optuna, shown
from compactmtl.sweep.study import Study, open_study
from compactmtl.train import check_recipe


@dataclass(frozen=True)
class Searching:
    """An opened search. `sweep` is the sweep with what the objectives need."""

    sweep: SweepConfig
    study: Study
    name: str
    out: Path
    overrides: Sequence[str]
    smoke: bool
    storage: str  # as it may be printed

    def run(self, runs: SweepRuns, total: int, console: Console) -> dict[str, Failure]:
        """Do trials until there are `total`; what failed here, by folder. `runs` has the baseline's.

        Raises ConfigError where the baseline lacks a seed, and what `Worker.run` raises.
        """
        worker = Worker(
            self.sweep, self.study, self.out, self.overrides, self.smoke, baselines(self.sweep, runs), console
        )
        return worker.run(total)

    def front(self) -> dict[str, list[Run]]:
        """The runs of the trials that no other beats, by trial."""
        return front_runs(self.sweep, self.study, self.out)

    def write(self, command: str) -> Table | None:
        """Write the results; the best trials as a table, none where no trial has finished. Raises OSError."""
        found = collect(self.sweep, self.study)
        write_found(self.sweep, found, self.out, self.name, command, self.overrides, smoke=self.smoke)
        return front_cells(found) if found.front else None


def open_search(
    sweep: SweepConfig,
    name: str,
    out: Path,
    storage: str | None,
    overrides: Sequence[str],
    *,
    smoke: bool,
    must_exist: bool,
) -> Searching:
    """Check a sweep's search and open its study, made where there is none unless it `must_exist`.

    `name` is the study's where the search names none. Without `storage` it is a journal in `out`.

    Raises ConfigError for a space that makes no recipes or a study of another one, what training would raise at its start
    where no trial has begun, and what `open_study` raises.
    """
    assert sweep.search is not None
    require_optuna()
    base = check_space(sweep, overrides, smoke=smoke)
    wanted = identity(sweep, base, overrides, smoke=smoke)
    place = storage or str(out / SEARCH_JOURNAL)
    named = sweep.search.study or name
    study = open_study(sweep.search, named, place, out, wanted, must_exist=must_exist)
    if not must_exist and not study.trials():
        _check_first(base)
    return Searching(for_trials(sweep), study, named, out, overrides, smoke, shown(place))


def _check_first(base: Resolved) -> None:
    try:
        check_recipe(base.recipe)
    except CompactError as error:
        raise type(error)(
            f"the search with each parameter's first value: {error.message}", error.hint
        ) from error
