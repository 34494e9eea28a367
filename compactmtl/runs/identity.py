"""Which values of a recipe decide a run's result, and their hash: what two runs must share to be the same run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from compactmtl.artifacts.layout import RECIPE
from compactmtl.config import Recipe
from compactmtl.errors import ArtifactError

# where and beside what a run happens; all else decides its result and must be the same to resume
_PLACE = frozenset(
    {
        "description",
        "targets",
        "surgery.align",
        "surgery.unreached",
        "data.root",
        "data.workers",
        "data.cache",
        "data.on_error",  # a run that it changes had no result without it
        "train.device",
        "train.deterministic",
        "train.threads",
        "train.competition",
        "train.checkpoint_activations",
        "train.compile",
        "train.mlflow",
        "train.mlflow.uri",
        "train.mlflow.experiment",
    }
)

_LAYOUT = "train.channels_last"
_SOURCES = "data.sources"  # a list of sections, each with its own place


def recipe_hash(recipe: Recipe) -> str:
    """SHA-256 over all that decides a run's result; the data's place, workers and device do not.

    Values at their default are left out: a later version's new key does not make old runs foreign.
    """
    text = json.dumps(deciding(recipe, defaults=False), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def recipe_differences(one: Recipe, other: Recipe) -> list[str]:
    """Dotted keys that decide a run's result and differ, with both values."""
    first, second = deciding(one), deciding(other)
    keys = sorted(set(first) | set(second))
    return [
        f"{key}: {json.dumps(first.get(key))} and {json.dumps(second.get(key))}"
        for key in keys
        if first.get(key) != second.get(key)
    ]


def check_recipe_hash(state: Mapping[str, Any], recipe: Recipe, folder: Path) -> None:
    """Whether a checkpoint's state or summary is of `recipe`. Raises ArtifactError."""
    if state.get("recipe_hash") != recipe_hash(recipe):
        raise ArtifactError(
            f"{folder} is a checkpoint of another recipe than {folder.parent.parent / RECIPE}",
            f"put back the run's own checkpoint and {RECIPE}, or train again with --overwrite",
        )


def deciding(recipe: Recipe, defaults: bool = True) -> dict[str, Any]:
    """Every value that decides a run's result, by dotted key; without `defaults` only those that differ from it."""
    flat = dict(_flatten(recipe.model_dump(mode="json", exclude_defaults=not defaults), ""))
    # The default was false before it was auto: a run of then is no other run now. Only true is told apart.
    if flat.get(_LAYOUT) is not True:
        flat.pop(_LAYOUT, None)
    if isinstance(sources := flat.get(_SOURCES), list):
        flat[_SOURCES] = [{key: value for key, value in one.items() if key != "root"} for one in sources]
    return {key: value for key, value in flat.items() if key not in _PLACE}


def _flatten(value: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, child in value.items():
            yield from _flatten(child, f"{prefix}.{key}" if prefix else key)
    else:
        yield prefix, value
