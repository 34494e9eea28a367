"""Recipes and targets: typed, frozen, loaded from YAML by name. Importing this loads neither torch nor pydantic."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compactmtl.config.load import (
        Resolved,
        ResolvedSweep,
        dump_recipe,
        list_recipes,
        list_sweeps,
        list_targets,
        load_recipe,
        resolve_recipe,
        resolve_sweep,
    )
    from compactmtl.config.lookup import Entry
    from compactmtl.config.recipe import Recipe
    from compactmtl.config.sweep import SweepConfig
    from compactmtl.config.target import Target
    from compactmtl.config.trust import UntrustedError, trusting
    from compactmtl.config.validate import validate_options

_HOME = {
    "Entry": "lookup",
    "Recipe": "recipe",
    "Resolved": "load",
    "ResolvedSweep": "load",
    "SweepConfig": "sweep",
    "Target": "target",
    "UntrustedError": "trust",
    "dump_recipe": "load",
    "list_recipes": "load",
    "list_sweeps": "load",
    "list_targets": "load",
    "load_recipe": "load",
    "resolve_recipe": "load",
    "resolve_sweep": "load",
    "trusting": "trust",
    "validate_options": "validate",
}

__all__ = [
    "Entry",
    "Recipe",
    "Resolved",
    "ResolvedSweep",
    "SweepConfig",
    "Target",
    "UntrustedError",
    "dump_recipe",
    "list_recipes",
    "list_sweeps",
    "list_targets",
    "load_recipe",
    "resolve_recipe",
    "resolve_sweep",
    "trusting",
    "validate_options",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
