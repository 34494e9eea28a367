"""meta.json of a run: its recipe's name and hash, the versions that made it, and its targets' specifications."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from typing import Any

import compactmtl
from compactmtl.artifacts.told import now
from compactmtl.config import Resolved
from compactmtl.runs.identity import recipe_hash
from compactmtl.tasks import TargetSpec

VERSION = 1
CHANNELS_LAST = "channels_last"  # key: whether the run trains in the NHWC layout


def new_meta(
    resolved: Resolved,
    specs: Mapping[str, TargetSpec],
    teachers: Sequence[Mapping[str, Any]] = (),
    channels_last: bool = False,
) -> dict[str, Any]:
    """The contents of meta.json: where a run comes from, its teachers, and the targets' specifications of its data set."""
    return {
        "version": VERSION,
        "recipe": resolved.name,
        "recipe_hash": recipe_hash(resolved.recipe),
        "overrides": [key for key, origin in resolved.origins.items() if origin == "override"],
        "seed": resolved.recipe.seed,
        "created": now(),
        "versions": versions(),
        "teachers": list(teachers),
        CHANNELS_LAST: channels_last,
        "specs": specs_to_json(specs),
    }


def versions() -> dict[str, str]:
    """Versions that a run's numbers depend on."""
    names = ("torch", "torchvision", "timm", "numpy")
    return {
        "compactmtl": compactmtl.__version__,
        **{name: metadata.version(name) for name in names},
        "python": platform.python_version(),
        "platform": platform.platform(),
    }


def specs_to_json(specs: Mapping[str, TargetSpec]) -> dict[str, dict[str, Any]]:
    """Target specifications as JSON values."""
    return {name: asdict(spec) for name, spec in specs.items()}


def specs_from_json(values: Mapping[str, Mapping[str, Any]]) -> dict[str, TargetSpec]:
    """The inverse of `specs_to_json`."""
    return {
        name: TargetSpec(**{**value, "classes": tuple(value["classes"])}) for name, value in values.items()
    }
