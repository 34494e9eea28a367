"""The lists of docs/reference/lists.md: recipes, sweeps, targets, data sets, kinds of task, balancers, penalties, backends."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from compactmtl.backends.registry import backend_names, get_backend
from compactmtl.balancing.registry import balancer_class
from compactmtl.config.keys import keys
from compactmtl.config.lookup import Kind, entries
from compactmtl.config.recipe import Recipe
from compactmtl.data import DATASETS
from compactmtl.data.datasets import dataset_module
from compactmtl.sparsity.registry import penalty_class
from compactmtl.tasks.registry import all_classes

ROOT = Path(__file__).resolve().parents[1]


def lists() -> Iterator[str]:
    """The page's lines."""
    yield from ("# Lists of what is built in", "")
    yield from ("## Recipes", "", "`compactmtl train RECIPE` trains one.", "", *_entries("recipe"))
    yield from ("## Sweeps", "", "`compactmtl sweep SWEEP` trains one.", "", *_entries("sweep"))
    yield from (
        "## Targets",
        "",
        "`compactmtl export RUN --target TARGET` exports to one.",
        "",
        *_entries("target"),
    )
    yield from ("## Data sets", "", "The value of `data.name`. `compactmtl data check NAME` reads one.", "")
    for name in DATASETS:
        yield from _dataset(name)
    yield from ("## Kinds of task", "", "The value of `tasks.*.kind`. The first loss is the default.", "")
    for name, kind in all_classes().items():
        yield from _task(name, kind)
    yield from ("## Balancers", "", "The value of `balancing.name`.", "")
    for name in _names("balancing.name"):
        yield from _options(f"### `{name}`", *balancer_options(name))
    yield from ("## Penalties", "", "The value of `sparsity.penalty`.", "")
    for name in _names("sparsity.penalty"):
        penalty = penalty_class(name)
        yield from (f"### `{name}`", "", _first_line(penalty), "")
        yield from _option_table(penalty.Options, "sparsity.penalty_options.")
    yield from (
        "## Backends",
        "",
        "The value of a target's `backend`.",
        "",
        "| name | what |",
        "| --- | --- |",
    )
    yield from (f"| `{name}` | {_first_line(type(get_backend(name)))} |" for name in backend_names())
    yield ""


def _entries(kind: Kind) -> Iterator[str]:
    yield from ("| name | description |", "| --- | --- |")
    for entry in entries(kind):
        if entry.path.resolve().is_relative_to(
            ROOT
        ):  # not what lies in the working folder of whoever runs this
            yield f"| `{entry.name}` | {entry.description} |".replace("|  |", "| |")
    yield ""


def _dataset(name: str) -> Iterator[str]:
    module = dataset_module(name)
    height, width = module.DEFAULT_SIZE
    splits = ", ".join(module.SPLITS)
    text = f"{module.DESCRIPTION[0].upper()}{module.DESCRIPTION[1:]}. Splits: {splits}. Usual size: {height}×{width}."
    yield from _options(f"### `{name}`", module.Options, "data.options.", text)


def _task(name: str, kind: type[Any]) -> Iterator[str]:
    losses = ", ".join(f"`{loss}`" for loss in kind.losses)
    text = f"{_first_line(kind)}\n\nLosses: {losses}. Main metric: `{kind.primary}`."
    yield from _options(f"### `{name}`", kind.Options, "tasks.*.options.", text)


def _options(heading: str, model: type[BaseModel], prefix: str, text: str = "") -> Iterator[str]:
    """A heading, a text, and the options of a model."""
    yield from (heading, "")
    if text:
        yield from (text, "")
    yield from _option_table(model, prefix)


def _option_table(model: type[BaseModel], prefix: str) -> Iterator[str]:
    """The options of a model with what its docstring says of them."""
    rows = list(keys(model, prefix))
    if not rows:
        yield from ("No options.", "")
        return
    yield from (_first_line(model), "", "| option | type | default | meaning |", "| --- | --- | --- | --- |")
    for key in rows:
        default = "required" if key.default is None else f"`{key.default}`"
        yield f"| `{key.name}` | {key.type} | {default} | {key.description} |".replace("|  |", "| |")
    yield ""


def _first_line(thing: type[Any]) -> str:
    return inspect.cleandoc(thing.__doc__ or "").split("\n\n")[0].replace("\n", " ")


# What is built in, by name.


def balancer_options(name: str) -> tuple[type[BaseModel], str, str]:
    """The options of a balancing method, where a recipe has them, and what the method is."""
    method = balancer_class(name)
    return method.Options, "balancing.options.", _first_line(method)


def _names(key: str) -> list[str]:
    """The names that a key of a recipe takes, without that of a class of the user's own."""
    choices = next(one.choices for one in keys(Recipe) if one.name == key)
    return [name for name in choices if ":" not in name]
