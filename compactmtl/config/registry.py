"""What is found by its file: the modules of a folder of the package give a key of a recipe its names.

Listing names imports nothing. Looking a class up imports its file alone.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import AfterValidator, WithJsonSchema
from pydantic_core import PydanticKnownError

from compactmtl.config.lookup import name_hint
from compactmtl.config.trust import is_class_name
from compactmtl.errors import ConfigError

PACKAGE = Path(__file__).parents[1]
CLASS = "package.module:Class"
CLASS_PATTERN = r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$"


@cache
def file_names(folder: str) -> tuple[str, ...]:
    """The modules of a folder such as "sparsity/penalties", in alphabetical order; those that begin with _ are none."""
    names = sorted(path.stem for path in (PACKAGE / folder).glob("*.py"))
    return tuple(name for name in names if not name.startswith("_"))


def class_in(folder: str, name: str, accepts: Callable[[object], bool], key: str, what: str) -> type[Any]:
    """The one class that the module `name` of a folder defines and `accepts` takes.

    Args:
        folder: as of `file_names`.
        key: the recipe's key that holds the name, for the message.
        what: what the module holds in words, such as "penalty", for the message.

    Raises ConfigError, with the nearest name, where there is no such module.
    """
    if name not in file_names(folder):
        raise ConfigError(f"{key}: there is no {what} {name!r}", name_hint(name, file_names(folder)))
    return defined_class(f"{PACKAGE.name}.{folder.replace('/', '.')}.{name}", accepts)


def defined_class(module_name: str, accepts: Callable[[object], bool]) -> type[Any]:
    """The one class that a module defines itself and `accepts` takes. Raises TypeError where it has none or several."""
    module = importlib.import_module(module_name)
    own: list[type[Any]] = [
        value
        for value in vars(module).values()
        if accepts(value) and getattr(value, "__module__", None) == module.__name__
    ]
    if len(own) != 1:
        found = ", ".join(value.__name__ for value in own) or "none"
        raise TypeError(f"{module_name} must define exactly one class of its kind, found {found}")
    return own[0]


def one_of(folder: str, *, own_class: bool = False) -> AfterValidator:
    """A check that a value names a module of `folder`; with `own_class` it may be `package.module:Class` instead."""
    return one_of_names(file_names(folder), own_class=own_class)


def one_of_names(names: Sequence[str], *, own_class: bool = False) -> AfterValidator:
    """A check that a value is one of `names`; with `own_class` it may be `package.module:Class` instead."""

    def known(name: str) -> str:
        if name not in names and not (own_class and is_class_name(name)):
            expected = [repr(one) for one in (*names, *([CLASS] if own_class else []))]
            # The error of a Literal: messages list what was expected, and the nearest name.
            raise PydanticKnownError(
                "literal_error", {"expected": f"{', '.join(expected[:-1])} or {expected[-1]}"}
            )
        return name

    return AfterValidator(known)


def names_schema(folder: str, *, own_class: bool = False) -> WithJsonSchema:
    """What `one_of` takes, as JSON schema."""
    return some_names_schema(file_names(folder), own_class=own_class)


def some_names_schema(names: Sequence[str], *, own_class: bool = False) -> WithJsonSchema:
    """What `one_of_names` takes, as JSON schema."""
    known: dict[str, Any] = {"enum": list(names)}
    own = {"type": "string", "pattern": CLASS_PATTERN}
    return WithJsonSchema({"anyOf": [known, own]} if own_class else known)
