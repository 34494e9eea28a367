"""A search's study in Optuna's storage, shared by its workers: which trial is whose, and what has become of each.

A trial belongs to the process that holds the lock of its folder. Where a trial is running and its folder is free, its
worker has died, and the next worker goes on with it under the same number. That is so in every storage, at once and
without clocks; Optuna's heartbeat knows databases alone, waits, and begins such a trial anew as another one.
"""

from __future__ import annotations

import uuid
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compactmtl.artifacts.files import write_text
from compactmtl.artifacts.layout import SEARCH_MARK, SEARCH_TRIALS
from compactmtl.artifacts.lock import writing
from compactmtl.config.search import SamplerConfig, SearchConfig
from compactmtl.errors import ArtifactError, ConfigError, HeldError
from compactmtl.sweep.space import differences, distributions, trial_folder
from compactmtl.sweep.storage import PATIENCE, open_storage, shown, storage_errors

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler
    from optuna.storages import BaseStorage
    from optuna.study import Study as OptunaStudy
    from optuna.trial import FrozenTrial, Trial

IDENTITY = "compactmtl"  # attribute of a study: its space and its folder
REASON, SEEDS, EXPECTED = "reason", "seeds", "expected"  # attributes of a trial
_SPACE, _FOLDER = "space", "folder"  # in it


@dataclass
class Claimed:
    """A trial of this process: nobody else does it before `release`. `taken_over` from a worker that died."""

    number: int
    params: dict[str, Any]
    taken_over: bool
    trial: Trial
    _lock: ExitStack = field(repr=False)
    _storage: str  # as it may be printed

    def note(self, key: str, value: Any) -> None:
        """Keep something beside the trial, as JSON holds it."""
        with storage_errors(self._storage):
            self.trial.set_user_attr(key, value)

    def release(self) -> None:
        """Leave the trial to others, if it has not come to its end."""
        self._lock.close()


class Study:
    """The study of a search, whose runs lie below `out`. Made by `open_study`."""

    def __init__(
        self, search: SearchConfig, study: OptunaStudy, storage: BaseStorage, out: Path, name: str
    ) -> None:
        self._search = search
        self._study = study
        self._storage = storage
        self._out = out
        self._name = name  # of the storage, as it may be printed

    def trials(self) -> list[FrozenTrial]:
        """Every trial by number."""
        with storage_errors(self._name):
            return self._study.get_trials(deepcopy=False)

    def front(self) -> list[FrozenTrial]:
        """The finished trials that no other beats in one objective without being beaten in another, by number."""
        with storage_errors(self._name):
            return sorted(self._study.best_trials, key=lambda one: one.number)

    def claim(self, total: int) -> Claimed | None:
        """A trial for this process: one whose worker died, else a new one where there are fewer than `total`.

        None where there is none to take now. Raises HeldError where others don't come to an end with claiming.
        """
        with self._turn(), storage_errors(self._name):
            trials = self.trials()
            for one in trials:
                if _is(one, "RUNNING") and (taken := self._take_over(one.number)) is not None:
                    return taken
            if len(trials) >= total and not any(_is(one, "WAITING") for one in trials):
                return None
            self._study.sampler = sampler(self._search.sampler, len(trials))
            trial = self._study.ask(fixed_distributions=distributions(self._search))
            return self._claimed(trial, self._lock_of(trial.number), taken_over=False)

    def running(self) -> int:
        """How many trials have begun and not ended."""
        return sum(_is(one, "RUNNING") for one in self.trials())

    def complete(self, claimed: Claimed, values: Sequence[float]) -> None:
        """End a trial with a value for each objective."""
        with storage_errors(self._name):
            self._study.tell(claimed.trial, list(values))

    def fail(self, claimed: Claimed, reason: str) -> None:
        """End a trial that gave no values."""
        self._end(claimed, reason, "FAIL")

    def prune(self, claimed: Claimed, reason: str) -> None:
        """End a trial that was given up."""
        self._end(claimed, reason, "PRUNED")

    def _end(self, claimed: Claimed, reason: str, state: str) -> None:
        from optuna.trial import TrialState

        claimed.note(REASON, reason)
        with storage_errors(self._name):
            self._study.tell(claimed.trial, state=TrialState[state])

    @contextmanager
    def _turn(self) -> Iterator[None]:
        with writing(self._out / SEARCH_TRIALS, "claiming a trial", wait=PATIENCE):
            yield

    def _lock_of(self, number: int) -> ExitStack:
        lock = ExitStack()
        lock.enter_context(writing(trial_folder(self._out, number), "a trial"))
        return lock

    def _take_over(self, number: int) -> Claimed | None:
        """A running trial, if its folder is free and it is still running then; what it lacks of its values is drawn."""
        from optuna.trial import Trial

        try:
            lock = self._lock_of(number)
        except HeldError:
            return None
        found = next(one for one in self.trials() if one.number == number)
        if not _is(found, "RUNNING"):  # it came to its end while the lock was waited for
            lock.close()
            return None
        study_id = self._storage.get_study_id_from_name(self._study.study_name)
        trial = Trial(self._study, self._storage.get_trial_id_from_study_id_trial_number(study_id, number))
        return self._claimed(trial, lock, taken_over=True)

    def _claimed(self, trial: Trial, lock: ExitStack, *, taken_over: bool) -> Claimed:
        try:
            drawn = distributions(self._search)
            if missing := [key for key in drawn if key not in trial.params]:  # killed while they were drawn
                self._study.sampler = sampler(self._search.sampler, trial.number)
                for key in missing:
                    _suggest(trial, key, drawn[key])
            params = {key: trial.params[key] for key in drawn}
        except BaseException:
            lock.close()
            raise
        return Claimed(trial.number, params, taken_over, trial, lock, self._name)


def _suggest(trial: Trial, key: str, drawn: Any) -> None:
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    if isinstance(drawn, CategoricalDistribution):
        trial.suggest_categorical(key, drawn.choices)
    elif isinstance(drawn, FloatDistribution):
        trial.suggest_float(key, drawn.low, drawn.high, log=drawn.log, step=drawn.step)
    else:
        trial.suggest_int(key, drawn.low, drawn.high, log=drawn.log, step=drawn.step)


def _is(trial: FrozenTrial, state: str) -> bool:
    return trial.state.name == state


def sampler(config: SamplerConfig, number: int) -> BaseSampler:
    """The sampler of trial `number`, with a seed of its own: workers with one seed would all draw the same values."""
    import numpy as np
    from optuna.exceptions import ExperimentalWarning
    from optuna.samplers import NSGAIISampler, RandomSampler, TPESampler

    seed = int(np.random.SeedSequence([config.seed % 2**63, number]).generate_state(1)[0])
    if config.name == "random":
        return RandomSampler(seed=seed)
    if config.name == "nsga2":
        return NSGAIISampler(seed=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        # values near those that other workers try now are left to them
        return TPESampler(seed=seed, n_startup_trials=config.startup, constant_liar=True)


def open_study(
    search: SearchConfig, name: str, storage: str, out: Path, wanted: Mapping[str, Any], *, must_exist: bool
) -> Study:
    """The study `name` of a storage, made where there is none unless it `must_exist`; its runs lie below `out`.

    `wanted` is the space's identity. Raises ConfigError where the study is of another space, with what differs, or of
    another folder; StorageError where the storage fails; and what `open_storage` raises.
    """
    import optuna
    from optuna.study import StudyDirection

    directions = [
        StudyDirection.MAXIMIZE if one.name == "delta_m" else StudyDirection.MINIMIZE
        for one in search.objectives
    ]
    if must_exist and not (out / SEARCH_TRIALS).is_dir():
        raise ConfigError(f"there is no search in {out}", "start the search, or name its folder with --out")
    (out / SEARCH_TRIALS).mkdir(
        parents=True, exist_ok=True
    )  # stays, so that no claimer's lock is removed under another
    # tables of a database are made once
    with writing(out / SEARCH_TRIALS, "opening the study", wait=PATIENCE), storage_errors(shown(storage)):
        opened = open_storage(storage, must_exist=must_exist)
        try:
            if must_exist:
                study = optuna.load_study(study_name=name, storage=opened)
            else:
                study = optuna.create_study(
                    study_name=name, storage=opened, directions=directions, load_if_exists=True
                )
            attributes = study.user_attrs
            if not attributes and not must_exist and not study.get_trials(deepcopy=False):
                study.set_user_attr(IDENTITY, {_SPACE: dict(wanted), _FOLDER: _mark(out)})
                attributes = study.user_attrs
        except KeyError as error:
            raise ConfigError(
                f"{shown(storage)} has no study {name!r}",
                "start the search, or name its storage with --storage",
            ) from error
        except (ValueError, TypeError, AttributeError) as error:
            raise ArtifactError(
                f"the storage {shown(storage)} cannot be read: {error}", "name another one with --storage"
            ) from error
        _check(name, storage, attributes.get(IDENTITY), wanted, out)
    return Study(search, study, opened, out, shown(storage))


def _check(
    name: str, storage: str, written: Mapping[str, Any] | None, wanted: Mapping[str, Any], out: Path
) -> None:
    place = f"the study {name!r} in {shown(storage)}"
    if written is None:
        raise ConfigError(
            f"{place} was not made by this command",
            "give search.study another name, or another --storage",
        )
    if differing := differences(written[_SPACE], wanted):
        more = f"; and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise ConfigError(
            f"{place} is of another space ({'; '.join(differing[:3])}{more})",
            "go on with the same file and overrides, give search.study another name, or name another --storage",
        )
    if written[_FOLDER] != _mark(out):
        raise ConfigError(
            f"{place} has its runs in another folder than {out}",
            "give every worker the same --out, on a folder that all of them share",
        )


def _mark(out: Path) -> str:
    """What tells the folder from any other, wherever it is mounted; made where there is none. Under the claimers' lock."""
    path = out / SEARCH_TRIALS / SEARCH_MARK
    if not path.is_file():
        write_text(path, uuid.uuid4().hex + "\n")
    return path.read_text(encoding="utf-8").strip()
