"""What a sweep trains: one job for each entry and seed, every recipe resolved before the first begins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from glob import glob
from pathlib import Path

from compactmtl.config import Resolved, resolve_recipe
from compactmtl.config.smoke import resolve_smoke
from compactmtl.config.sweep import EntryConfig, SweepConfig
from compactmtl.errors import ConfigError

HOLDOUT = 0.1  # share of the training split that a search sets aside where the recipe sets none aside


@dataclass(frozen=True)
class Job:
    """One run to be: its entry, its seed, its recipe and its folder."""

    entry: str
    seed: int
    resolved: Resolved
    path: Path


def plan_jobs(
    sweep: SweepConfig,
    out: Path,
    overrides: Sequence[str] = (),
    *,
    only: Sequence[str] = (),
    seeds: Sequence[int] = (),
    smoke: bool = False,
) -> list[Job]:
    """The jobs of a sweep, seed by seed, so that a table of all entries exists early.

    `overrides` are laid over every entry's own. `only` and `seeds` keep some entries and seeds; `smoke` makes each
    run one of two steps. Entries of runs made elsewhere have no jobs.

    Raises ConfigError for an entry that the sweep has not, and for a recipe or override that cannot be used, naming
    the entry.
    """
    chosen = _chosen(sweep, only)
    return [
        Job(
            name,
            seed,
            _resolve(sweep, name, entry, seed, overrides, smoke=smoke),
            out / name / f"seed{seed}",
        )
        for seed in dict.fromkeys(seeds or sweep.seeds)
        for name, entry in chosen.items()
        if not entry.runs
    ]


def elsewhere(sweep: SweepConfig, only: Sequence[str] = ()) -> dict[str, list[Path]]:
    """The run folders of entries whose runs were made elsewhere. Raises ConfigError where a glob finds none."""
    by_entry: dict[str, list[Path]] = {}
    for name, entry in _chosen(sweep, only).items():
        for pattern in entry.runs:
            paths = [Path(path) for path in sorted(glob(pattern))]  # noqa: PTH207  (it may be absolute)
            if not paths:
                raise ConfigError(f"entries.{name}.runs: {pattern} names no folder", "give finished runs")
            by_entry.setdefault(name, []).extend(paths)
    return by_entry


def _chosen(sweep: SweepConfig, only: Sequence[str]) -> dict[str, EntryConfig]:
    for name in only:
        if name not in sweep.entries:
            raise ConfigError(
                f"the sweep has no entry {name!r}", f"its entries are {', '.join(sweep.entries)}"
            )
    return {name: entry for name, entry in sweep.entries.items() if not only or name in only}


def _resolve(
    sweep: SweepConfig, name: str, entry: EntryConfig, seed: int, overrides: Sequence[str], *, smoke: bool
) -> Resolved:
    recipe = entry.recipe or sweep.recipe
    assert recipe is not None  # the sweep was validated
    words = [*sweep.overrides, *entry.overrides, *overrides, f"seed={seed}"]
    try:
        return resolve_for(sweep, recipe, words, entry.tasks, smoke=smoke)
    except ConfigError as error:
        raise ConfigError(f"entry {name}: {error.message}", error.hint) from error


def resolve_for(
    sweep: SweepConfig, recipe: str, words: Sequence[str], tasks: Sequence[str], *, smoke: bool
) -> Resolved:
    """A recipe of a sweep with `key=value` words; of a search with a held-out split that chooses the epochs.

    Raises ConfigError as `resolve_recipe`, and where a word lets a search choose on val.
    """

    def resolve(more: Sequence[str]) -> Resolved:
        if smoke:
            return resolve_smoke(recipe, [*words, *more], tasks=tasks, two_steps=True)
        return resolve_recipe(recipe, [*words, *more], tasks=tasks)

    resolved = resolve(())
    data = resolved.recipe.data
    if sweep.search is None or data.select_on == "holdout":
        return resolved
    if resolved.origins.get("data.select_on") == "override":
        raise ConfigError(
            "data.select_on=val: a search chooses among many networks, which would wear val out",
            f"leave the override out: the search selects on the holdout, of data.holdout={data.holdout or HOLDOUT:g}",
        )
    return resolve(
        ["data.select_on=holdout", *([] if data.holdout else [f"data.holdout={HOLDOUT:g}"])],
    )
