"""A task of every kind: on a target of the kind's format, with the options that the kind's own test names."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

from compactmtl.config.recipe import TaskConfig
from compactmtl.tasks import TargetSpec, Task, build_task
from compactmtl.tasks.registry import all_classes, task_kinds

CLASSES = ("floor", "wall", "lamp")
UNITS = {"depth": "m", "disparity": "px", "scalar": "years"}


def _options_named_in_its_test(kind: str) -> dict[str, Any]:
    test = f"tests.tasks.kinds.test_{kind}"
    options: dict[str, Any] = getattr(import_module(test), "OPTIONS", {}) if find_spec(test) else {}
    return options


# Read now: hypothesis allows no import of a module with its tests inside of one of its tests.
_OPTIONS = {kind: _options_named_in_its_test(kind) for kind in task_kinds()}


def usual_options(kind: str) -> dict[str, Any]:
    """`OPTIONS` of the kind's test, for a kind that needs some to be built or to show all that it does."""
    return dict(_OPTIONS[kind])


def usual_task(kind: str, options: dict[str, Any] | None = None) -> Task:
    """The task `it` of a kind, with `usual_options` where none are given."""
    target = all_classes()[kind].target_kind
    classes = CLASSES if target in ("mask", "class", "multilabel", "instances") else ()
    spec = TargetSpec(target, classes=classes, unit=UNITS.get(target, ""))
    given = usual_options(kind) if options is None else options
    return build_task("it", TaskConfig.model_validate({"kind": kind, "options": given}), spec)
