"""Read YAML 1.2 into values that know where they were written, and write it; nothing in a file can run code."""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    CollectionEndEvent,
    DocumentStartEvent,
    Event,
    MappingStartEvent,
    NodeEvent,
    ScalarEvent,
    SequenceStartEvent,
)

from compactmtl.errors import ConfigError

Plain = None | bool | int | float | str
MAX_DEPTH = 32  # a recipe is five deep; a file of ten thousand brackets must not exhaust the stack

# The core schema of YAML 1.2.2, section 10.3.2: what a plain scalar means.
_NULL = re.compile(r"null|Null|NULL|~|")
_BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?(\.inf|\.Inf|\.INF)|\.nan|\.NaN|\.NAN")
_BARE = re.compile(r"[A-Za-z_][\w./-]*( [\w./()-]+)*", re.ASCII)  # text that needs no quotes anywhere

_READ = (DocumentStartEvent, NodeEvent, CollectionEndEvent)


@dataclass(frozen=True)
class Place:
    """Where a value was written: a file and its line, or an override on the command line."""

    file: Path | None
    line: int = 0

    def __str__(self) -> str:
        return "override" if self.file is None else f"{shown(self.file)}:{self.line}"


@dataclass(frozen=True)
class Node:
    """A value of a YAML document with its place. What stands under a key has the key's place.

    A removed node stands for a mapping that a null laid over it took away; it is no value.
    """

    value: Plain | list[Node] | dict[str, Node]
    place: Place
    removed: bool = False

    def plain(self) -> Any:
        """The value alone, as nested dict, list and scalar."""
        if isinstance(self.value, dict):
            return {key: child.plain() for key, child in self.value.items() if not child.removed}
        if isinstance(self.value, list):
            return [child.plain() for child in self.value]
        return self.value


def node_of(value: Any, place: Place) -> Node:
    """Plain values as a document's, all of them written at `place`."""
    if isinstance(value, dict):
        return Node({str(key): node_of(inner, place) for key, inner in value.items()}, place)
    if isinstance(value, list | tuple):
        return Node([node_of(inner, place) for inner in value], place)
    return Node(value, place)


def shown(path: Path) -> str:
    """A path as a user knows it: relative to the working folder where it lies inside."""
    try:
        return str(path.relative_to(Path.cwd()))
    except (ValueError, OSError):
        return str(path)


def read_yaml(path: Path) -> Node:
    """Read one YAML document whose top level is a mapping.

    Tags, anchors, duplicate keys, keys that are not text and numbers that are not finite are errors.

    Raises:
        ConfigError: naming the file and line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{shown(path)}: not UTF-8 text ({error.reason} at byte {error.start})", "save the file as UTF-8"
        ) from None
    except OSError as error:
        raise ConfigError(
            f"{shown(path)}: cannot be read ({error.strerror})", "name a readable YAML file"
        ) from None
    node = _parse(text, path)
    if not isinstance(node.value, dict):
        found = "nothing" if node.value is None else describe(node.value)
        raise ConfigError(
            f"{shown(path)}: expected a mapping of keys to values, found {found}", "write `key: value` lines"
        )
    return node


def parse_override(text: str) -> Node:
    """A value given on the command line: a scalar as YAML reads it, or a flow list, mapping or quoted text.

    Anything else is text to its last character; `#` and `: ` mean nothing in it.
    """
    text = text.strip()
    if text[:1] in ("[", "{", '"', "'"):
        return _parse(text, None)
    return Node(_plain_scalar(text, Place(None)), Place(None))


def top_level_text(path: Path, key: str) -> str:
    """The text of one top-level key, read without parsing what follows it; empty where there is none."""
    depth = 0
    name: str | None = None
    with path.open(encoding="utf-8") as stream:
        for event in _events(stream):
            if isinstance(event, (MappingStartEvent, SequenceStartEvent)):
                depth += 1
                name = None
            elif isinstance(event, CollectionEndEvent):
                depth -= 1
            elif isinstance(event, ScalarEvent) and depth == 1:
                if name == key:
                    return " ".join(event.value.split())
                name = event.value if name is None else None
    return ""


def dump_yaml(data: Mapping[str, Any]) -> str:
    """Block-style YAML that `read_yaml` reads back equal, keys in their own order, leaf lists on one line."""
    return "".join(f"{line}\n" for line, _ in yaml_lines(data))


def yaml_lines(data: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The lines of `dump_yaml`, each with the keys that lead to it."""
    indent = "  " * len(path)
    for key, value in data.items():
        here = (*path, key)
        if isinstance(value, Mapping) and value:
            yield f"{indent}{_text(key)}:", here
            yield from yaml_lines(value, here)
        else:
            yield f"{indent}{_text(key)}: {flow(value)}", here


def describe(value: object) -> str:
    """What a value is, in the words of YAML, for an error message."""
    if isinstance(value, Node):
        value = value.value
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return f"the number {value}"
    if isinstance(value, str):
        return f"the text {value!r}"
    if isinstance(value, Mapping):
        return "a mapping"
    listing = str(value)
    return f"the list {listing}" if len(listing) <= 60 and "Node(" not in listing else "a list"


def flow(value: object) -> str:
    """A value on one line, as YAML's flow style writes it. Raises TypeError for what a recipe cannot hold."""
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_text(key)}: {flow(child)}" for key, child in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(flow(child) for child in value) + "]"
    if value is None or isinstance(value, (bool, int)):
        return json.dumps(value)
    if isinstance(value, float) and math.isfinite(value):
        return repr(value)
    raise TypeError(f"not a value of a recipe: {value!r}")


def _events(stream: TextIO) -> Iterator[Event]:
    events: Iterator[Event] = YAML(typ="safe", pure=True).parse(stream)
    return events


def _parse(text: str, file: Path | None) -> Node:
    where = "override" if file is None else shown(file)
    # Read lazily: what is nested too deep stops here before the parser walks all of it.
    events = (event for event in _events(io.StringIO(text)) if isinstance(event, _READ))
    try:
        if next(events, None) is None:
            return Node(None, Place(file, 1))
        node = _build(next(events), events, file, 0)
        if next(events, None) is not None:
            raise ConfigError(
                f"{where}: expected one YAML document, found several", "remove the line `---` between them"
            )
    except MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark and file is not None else ""
        raise ConfigError(f"{where}{line}: {error.problem or error.context}", "write valid YAML") from None
    except YAMLError as error:  # a character that YAML forbids
        raise ConfigError(f"{where}: {' '.join(str(error).split())}", "write valid YAML") from None
    return node


def _build(event: Event, rest: Iterator[Event], file: Path | None, depth: int) -> Node:
    place = Place(file, event.start_mark.line + 1)
    if isinstance(event, AliasEvent) or getattr(event, "anchor", None) is not None:
        raise ConfigError(
            f"{place}: anchors and aliases are not supported",
            "write the value out, or put it in a file that others extend",
        )
    tag = getattr(event, "tag", None)
    if tag is not None:
        raise ConfigError(f"{place}: the tag {tag} is not supported", "remove the tag")
    if depth > MAX_DEPTH:
        raise ConfigError(
            f"{place}: nested deeper than {MAX_DEPTH} levels", "no recipe or target is that deep"
        )
    if isinstance(event, ScalarEvent):
        _check_text(event.value, place)
        plain = event.style is None and event.implicit[0]
        return Node(_plain_scalar(event.value, place) if plain else event.value, place)
    if isinstance(event, SequenceStartEvent):
        items: list[Node] = []
        while not isinstance(child := next(rest), CollectionEndEvent):
            items.append(_build(child, rest, file, depth + 1))
        return Node(items, place)
    mapping: dict[str, Node] = {}
    while not isinstance(child := next(rest), CollectionEndEvent):
        key = _build(child, rest, file, depth + 1)
        value = _build(next(rest), rest, file, depth + 1)
        if not isinstance(key.value, str):
            raise ConfigError(
                f"{key.place}: expected a name as key, found {describe(key)}",
                "put the key in quotes if it is a name",
            )
        if key.value in mapping:
            raise ConfigError(
                f"{key.place}: the key `{key.value}` was given before, on line {mapping[key.value].place.line}",
                "keep one of the two",
            )
        mapping[key.value] = Node(value.value, key.place)
    return Node(mapping, place)


def _check_text(text: str, place: Place) -> None:
    """Raise ConfigError for half a character, as an escape such as "\\udcff" gives it: no file and no model can hold one."""
    if any("\ud800" <= char <= "\udfff" for char in text):
        raise ConfigError(
            f"{place}: {text!a} is not text: it has a surrogate in it", "write whole characters"
        )


def _plain_scalar(text: str, place: Place) -> Plain:
    if _NULL.fullmatch(text):
        return None
    if _BOOL.fullmatch(text):
        return text.lower() == "true"
    if _INT.fullmatch(text) and len(text) <= 100:  # Python reads no more than 4300 digits; the rest is text
        return int(text, 0) if text[:2] in ("0o", "0x") else int(text)
    if _NOT_FINITE.fullmatch(text) or (_FLOAT.fullmatch(text) and not math.isfinite(float(text))):
        raise ConfigError(
            f"{place}: expected a finite number, found {text}",
            "write a finite number, or null where none is meant",
        )
    return float(text) if _FLOAT.fullmatch(text) else text


def _text(text: str) -> str:
    bare = _BARE.fullmatch(text) and not (_NULL.fullmatch(text) or _BOOL.fullmatch(text))
    if bare:
        return text
    quoted = json.dumps(text, ensure_ascii=False)
    return "".join(char if char.isprintable() else f"\\U{ord(char):08x}" for char in quoted)
