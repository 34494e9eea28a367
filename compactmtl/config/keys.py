"""Every key of a recipe, target or sweep with its type, default and meaning, read from the pydantic models."""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, Union

from pydantic import AfterValidator, BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError, PydanticKnownError, PydanticUndefined

from compactmtl.config.schema import Scalar
from compactmtl.config.yaml import flow

_WORDS = {bool: "true or false", int: "integer", float: "number", str: "text", type(None): "null"}
_PLURALS = {
    word: f"{word}s" for word in ("integer", "number", "text", "list", "mapping", "scalar", "section")
}
_BOUNDS = (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<"))


@dataclass(frozen=True)
class Key:
    """One key of a schema.

    `name` is dotted; `*` in it stands for a name that the user chooses, such as a task's, or for a place in a list. `type` says in words which
    values are allowed; `choices` are the names among them. `default` is written as in YAML; it is None where the key must
    be given. A `section` has keys of its own, which follow it.
    """

    name: str
    type: str
    default: str | None
    description: str
    section: bool = False
    choices: tuple[str, ...] = ()


def keys(model: type[BaseModel], prefix: str = "") -> Iterator[Key]:
    """Every key of a model and of the models in it, in the order in which they are declared."""
    for name, field in model.model_fields.items():
        dotted = f"{prefix}{name}"
        sections = list(_sections(field.annotation, dotted))
        parts = list(dict.fromkeys(_choices(field.annotation, field.metadata)))
        names = tuple(part.strip("`") for part in parts if part.startswith("`"))
        yield Key(dotted, _listed(parts), _default(field), field.description or "", bool(sections), names)
        for section, path in sections:
            yield from keys(section, f"{path}.")


def _sections(annotation: Any, key: str) -> Iterator[tuple[type[BaseModel], str]]:
    """The models inside an annotation, each with the dotted name under which its keys stand."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation, key
    elif origin in (Union, types.UnionType):
        for argument in arguments:
            yield from _sections(argument, key)
    elif origin is typing.Annotated:
        yield from _sections(arguments[0], key)
    elif origin is dict:
        yield from _sections(arguments[1], f"{key}.*")
    elif origin is tuple:
        yield from _sections(arguments[0], f"{key}.*")


def _type(annotation: Any) -> str:
    return _listed(list(dict.fromkeys(_choices(annotation, ()))))


def _listed(parts: list[str]) -> str:
    """A type in words, such as `integer ≥ 1 or null`."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} or {parts[-1]}"


def _choices(annotation: Any, metadata: Iterable[Any]) -> Iterator[str]:
    """What a value may be: the types of a union and the values of a Literal one by one."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        yield from _choices(arguments[0], [*metadata, *arguments[1:]])
    elif origin in (Union, types.UnionType):
        scalars = typing.get_args(Scalar)
        if set(scalars) <= set(arguments):
            yield "scalar"
            arguments = tuple(one for one in arguments if one not in scalars)
        for argument in arguments:
            yield from _choices(argument, metadata)
    elif annotation is str and (names := _names(metadata)):
        yield from (f"`{name}`" for name in names)
    elif origin is Literal:
        yield from (f"`{flow(value)}`" for value in arguments)
    elif origin is dict:
        yield f"mapping of names to {_plural(_type(arguments[1]))}"
    elif origin in (tuple, list):
        items = [argument for argument in arguments if argument is not Ellipsis]
        fixed = f"{len(items)} " if origin is tuple and Ellipsis not in arguments else ""
        yield f"list of {fixed}{_plural(_type(items[0]))}"
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield "section"
    else:
        word = _WORDS.get(annotation, getattr(annotation, "__name__", str(annotation)))
        bounds = _bounds(metadata) if annotation in (int, float) else ""
        yield f"{word} {bounds}".rstrip()


def _names(metadata: Iterable[Any]) -> list[str]:
    """The names that a check of a text takes: it lists them when it refuses another."""
    for check in metadata:
        if isinstance(check, AfterValidator):
            try:
                check.func("")  # type: ignore[call-arg]
            except PydanticKnownError as error:
                if error.type == "literal_error":
                    return re.findall(r"'([^']+)'", str((error.context or {})["expected"]))
            except PydanticCustomError:
                continue  # a check of the form alone
    return []


def _bounds(metadata: Iterable[Any]) -> str:
    """The bounds of a number: `≥ 1`, `> 0 and ≤ 1`."""
    flat = [part for one in metadata for part in (one.metadata if isinstance(one, FieldInfo) else [one])]
    texts = [
        f"{sign} {getattr(one, name):g}"
        for name, sign in _BOUNDS
        for one in flat
        if getattr(one, name, None) is not None
    ]
    return " and ".join(texts)


def _plural(words: str) -> str:
    first, space, rest = words.partition(" ")
    return f"{_PLURALS.get(first, first)}{space}{rest}"


def _default(field: FieldInfo) -> str | None:
    """A field's default as YAML; of a section the values that differ from its keys' own defaults."""
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined:
        return None
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json", exclude_defaults=True)
    return flow(value)
