"""Check plain values against a typed model. Errors name the place, what was expected and found, and the nearest right key."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from compactmtl.config.keys import keys
from compactmtl.config.lookup import close_names
from compactmtl.config.words import key
from compactmtl.config.yaml import Node, Place, describe, node_of
from compactmtl.errors import ConfigError

M = TypeVar("M", bound=BaseModel)
Path = tuple[str, ...]

_EXPECTED = {
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "none_required": "null",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "dict_type": "a mapping",
    "tuple_type": "a list",
    "list_type": "a list",
}
_BOUNDS = {
    "greater_than": ("greater than", "gt"),
    "greater_than_equal": ("of at least", "ge"),
    "less_than": ("less than", "lt"),
    "less_than_equal": ("of at most", "le"),
}


def validate(model: type[M], node: Node, what: str) -> M:
    """An instance of `model` from a document.

    Args:
        what: what the document is, for the message, such as "recipe demo".

    Raises:
        ConfigError: with one line for each thing that is wrong.
    """
    try:
        # JSON mode: a list is a tuple, an integer is a float, but "3" is no integer and 3.0 none either.
        return model.model_validate_json(json.dumps(node.plain()), strict=True)
    except ValidationError as error:
        raise _explain(model, node, what, error) from None


def validate_options(model_class: type[M], options: Mapping[str, Any], where: str) -> M:
    """An instance of `model_class` from an `options` mapping of a recipe.

    Args:
        where: dotted key of the mapping, such as "data.options", named in the message; empty for a document's own keys.

    Raises:
        ConfigError: naming the key, and the nearest right one if it is unknown.
    """
    node = node_of(dict(options), Place(None))
    try:
        return model_class.model_validate_json(json.dumps(dict(options)), strict=True)
    except ValidationError as error:
        raise _explain(model_class, node, "", error, prefix=where, placed=False) from None


def place_of(node: Node, path: Path) -> Place:
    """Where the deepest node on a path was written, or what took it away."""
    for part in path:
        inner = None if node.removed else _child(node, part)
        if inner is None:
            break
        node = inner
    return node.place


def _child(node: Node, part: str | int) -> Node | None:
    """What stands under a key of a mapping, or at a number of a list of mappings; none where that is nothing."""
    if isinstance(node.value, dict):
        return node.value.get(str(part))
    if isinstance(node.value, list) and str(part).isdecimal() and int(part) < len(node.value):
        item = node.value[int(part)]
        return item if isinstance(item.value, dict) else None
    return None


def _explain(
    model: type[BaseModel],
    node: Node,
    what: str,
    error: ValidationError,
    prefix: str = "",
    placed: bool = True,
) -> ConfigError:
    problems: dict[Path, list[ErrorDetails]] = {}
    for details in error.errors(include_url=False):
        problems.setdefault(_path(node, details), []).append(details)
    messages: list[str] = []
    hints: list[str] = []
    for path, details_of_path in problems.items():
        message, hint = _problem(model, prefix, path, details_of_path)
        place = place_of(node, _named(path, message.partition(" ")[0]))
        messages.append(f"{place}: {message}" if placed else message)
        hints += [hint] if hint and hint not in hints else []
    if len(messages) > 1:
        owner = what or (key(prefix) if prefix else "")
        whose = f"{owner} has " if owner else ""
        messages.insert(0, f"{whose}{len(messages)} faults:")
    return ConfigError("\n".join(messages), "\n".join(hints))


def _named(path: Path, word: str) -> Path:
    """The key that a validator's message begins with, as the validator's model or the whole document has it; else `path`."""
    named = tuple(word.split("."))
    return named if named[: len(path)] == path else (*path, *named)


def _path(node: Node, details: ErrorDetails) -> Path:
    """The keys of an error's location, without pydantic's marks of union branches and positions among plain values."""
    path: list[str] = []
    location = details["loc"]
    for part in location:
        inner = _child(node, part) if isinstance(part, str) or isinstance(node.value, list) else None
        if inner is None:
            of_mapping = isinstance(part, str) and isinstance(node.value, dict)
            if of_mapping and details["type"] == "missing" and part == location[-1]:
                path.append(str(part))
            break
        path.append(str(part))
        node = inner
    return tuple(path)


def _problem(model: type[BaseModel], prefix: str, path: Path, details: list[ErrorDetails]) -> tuple[str, str]:
    first = details[0]
    whole = ".".join([prefix, *path] if prefix else path)
    dotted = key(whole) if whole else ""
    if first["type"] == "extra_forbidden":
        return f"unknown key `{dotted}`", _nearest_key(model, path, whole.removesuffix(".".join(path)))
    if first["type"] == "missing" and isinstance(first["loc"][-1], str):
        return f"`{dotted}` is missing", f"give `{dotted}` a value"
    if first["type"] == "value_error":
        message = first["msg"].removeprefix("Value error, ")
        return message, f"change `{dotted}`" if dotted else ""
    expected = " or ".join(dict.fromkeys(map(_expectation, details)))
    found = f"`{dotted}`: expected {expected}, found {describe(first['input'])}"
    choices = [choice for each in details if each["type"] == "literal_error" for choice in _choices(each)]
    near = close_names(first["input"], choices) if isinstance(first["input"], str) else []
    return found, f"did you mean {' or '.join(near)}?" if near else f"give `{dotted}` {expected}"


def _expectation(details: ErrorDetails) -> str:
    kind, context = details["type"], details.get("ctx", {})
    if kind in _EXPECTED:
        return _EXPECTED[kind]
    if kind == "literal_error":
        choices = _choices(details)
        return f"one of {', '.join(choices)}" if len(choices) > 2 else " or ".join(choices)
    if kind in _BOUNDS:
        words, key = _BOUNDS[kind]
        return f"a number {words} {context[key]:g}"
    if kind == "too_short":
        return f"at least {context['min_length']} of them"
    if kind == "too_long":
        return f"{context['max_length']} items"
    if kind == "missing":  # of a list
        return "a longer list"
    return details["msg"].removeprefix("Input should be ")


def _choices(details: ErrorDetails) -> list[str]:
    return re.findall(r"'([^']*)'", details["ctx"]["expected"]) or [details["ctx"]["expected"]]


def _nearest_key(model: type[BaseModel], path: Path, prefix: str) -> str:
    """The mend of an unknown key: the space that a value needs before it, the nearest key beside it, else of that name
    elsewhere, else all beside it.
    """
    name, colon, value = str(path[-1]).partition(":")
    if colon and value:
        return f"in YAML a space follows the colon: {{{name}: {value}}}"
    every = [one.name for one in keys(model)]
    beside = [one for one in every if _fits(one.split("."), path)]
    ends = [one.rpartition(".")[2] for one in beside]
    stem = prefix + "".join(f"{part}." for part in path[:-1])
    near = [f"{stem}{end}" for end in close_names(path[-1], ends)]
    if not near:
        near = [f"{prefix}{one}" for one in every if one.rpartition(".")[2] == path[-1] and "*" not in one]
    if near:
        return f"did you mean {' or '.join(f'`{key(one)}`' for one in near)}?"
    return f"the keys here are {', '.join(ends)}" if ends else f"remove `{key(prefix + '.'.join(path))}`"


def _fits(parts: list[str], path: Path) -> bool:
    """Whether the parts of a dotted key of the model stand beside the last key of `path`."""
    return len(parts) == len(path) and all(
        mine in ("*", theirs) for mine, theirs in zip(parts, path[:-1], strict=False)
    )
