"""The space of a search: its parameters as Optuna's distributions and as overrides, and what tells two spaces apart."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compactmtl.artifacts.layout import SEARCH_TRIALS
from compactmtl.config import Resolved, SweepConfig
from compactmtl.config.search import ParameterConfig, SearchConfig
from compactmtl.config.yaml import flow
from compactmtl.errors import ConfigError
from compactmtl.runs.identity import deciding
from compactmtl.sweep.jobs import Job, plan_jobs, resolve_for

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

Params = Mapping[str, Any]  # by the recipe's key, as Optuna has them


def distributions(search: SearchConfig) -> dict[str, BaseDistribution]:
    """Where each parameter's values are drawn from. A choice is drawn as its text, which may be a list's."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    drawn: dict[str, BaseDistribution] = {}
    for key, one in search.parameters.items():
        if one.kind == "choice":
            drawn[key] = CategoricalDistribution(texts(one))
            continue
        assert one.low is not None and one.high is not None  # the search was validated
        if one.kind == "int":
            drawn[key] = IntDistribution(int(one.low), int(one.high), log=one.log, step=int(one.step or 1))
        else:
            drawn[key] = FloatDistribution(one.low, one.high, log=one.log, step=one.step)
    return drawn


def texts(parameter: ParameterConfig) -> list[str]:
    """The values of a choice as overrides have them; of a number its ends."""
    if parameter.kind == "choice":
        return [flow(value) for value in parameter.values]
    ends = (parameter.low, parameter.high)
    return [_text(int(end) if parameter.kind == "int" else end) for end in ends if end is not None]


def words(params: Params) -> list[str]:
    """The values of a trial as `key=value` words."""
    return [f"{key}={_text(value)}" for key, value in params.items()]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else flow(value)


def trial_name(number: int) -> str:
    """What a trial is called: its folder and its row."""
    return f"trial-{number:04d}"


def trial_folder(out: Path, number: int) -> Path:
    """The folder of a trial's runs."""
    return out / SEARCH_TRIALS / trial_name(number)


def trial_jobs(
    sweep: SweepConfig, number: int, params: Params, out: Path, overrides: Sequence[str], *, smoke: bool
) -> list[Job]:
    """The runs of a trial, one a seed. Raises ConfigError where its values do not make a recipe."""
    return [
        Job(
            trial_name(number),
            seed,
            _resolve(sweep, words(params), overrides, seed, smoke=smoke),
            trial_folder(out, number) / f"seed{seed}",
        )
        for seed in sweep.seeds
    ]


def _resolve(
    sweep: SweepConfig, values: Sequence[str], overrides: Sequence[str], seed: int, *, smoke: bool
) -> Resolved:
    search = sweep.search
    assert search is not None
    recipe = search.recipe or sweep.recipe
    assert recipe is not None  # the sweep was validated
    every = [*sweep.overrides, *search.overrides, *overrides, *values, f"seed={seed}"]
    return resolve_for(sweep, recipe, every, search.tasks, smoke=smoke)


def check_space(sweep: SweepConfig, overrides: Sequence[str], *, smoke: bool) -> Resolved:
    """The recipe with each parameter's first value, after every end of a number and every choice was tried in it.

    Raises ConfigError naming the parameter and the value that a recipe does not take, and the parameter that an
    override sets as well.
    """
    search = sweep.search
    assert search is not None
    for word in (*sweep.overrides, *search.overrides, *overrides):
        if (key := word.partition("=")[0].strip()) in search.parameters:
            raise ConfigError(
                f"override `{word}`: search.parameters.{key} varies this key",
                "leave one of the two out",
            )
    first = {key: texts(one)[0] for key, one in search.parameters.items()}
    base = None
    for key, one in search.parameters.items():
        for text in texts(one):
            values = [f"{name}={value}" for name, value in {**first, key: text}.items()]
            try:
                found = _resolve(sweep, values, overrides, sweep.seeds[0], smoke=smoke)
            except ConfigError as error:
                raise ConfigError(f"search.parameters.{key}, {text}: {error.message}", error.hint) from error
            base = base or found
    assert base is not None  # a search has a parameter
    return base


def identity(sweep: SweepConfig, base: Resolved, overrides: Sequence[str], *, smoke: bool) -> dict[str, Any]:
    """What all trials of a study must share: the space, the objectives, the seeds, and the recipes that decide results."""
    search = sweep.search
    assert search is not None
    wanted: dict[str, Any] = {
        "parameters": {
            key: one.model_dump(mode="json", exclude_defaults=True) for key, one in search.parameters.items()
        },
        "objectives": [one.label for one in search.objectives],
        "seeds": list(sweep.seeds),
        "tasks": list(search.tasks),
        "recipe": {
            key: value
            for key, value in deciding(base.recipe, defaults=False).items()
            if key != "seed" and not _is_varied(key, search)
        },
    }
    if sweep.baseline is not None and any(one.name == "delta_m" for one in search.objectives):
        entry = sweep.entries[sweep.baseline]
        jobs = plan_jobs(sweep, Path(), overrides, only=[sweep.baseline], seeds=sweep.seeds[:1], smoke=smoke)
        wanted["baseline"] = {
            "runs": list(entry.runs),
            **{
                key: value
                for job in jobs
                for key, value in deciding(job.resolved.recipe, defaults=False).items()
                if key != "seed"
            },
        }
    plain: dict[str, Any] = json.loads(json.dumps(wanted))
    return plain


def _is_varied(key: str, search: SearchConfig) -> bool:
    return any(key == one or key.startswith(f"{one}.") for one in search.parameters)


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """What two identities differ in, with both values."""
    first, second = dict(_flat(one, "")), dict(_flat(other, ""))
    return [
        f"{key}: {json.dumps(first.get(key))} and {json.dumps(second.get(key))}"
        for key in sorted({*first, *second})
        if first.get(key) != second.get(key)
    ]


def _flat(value: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, child in value.items():
        dotted = f"{prefix}: {key}" if prefix else key
        if isinstance(child, dict):
            yield from _flat(child, dotted)
        else:
            yield dotted, child
