"""What a key of a recipe, target or sweep means, in words: the same descriptions as the reference pages."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from compactmtl.config.keys import Key
from compactmtl.config.lookup import Kind, close_names, names
from compactmtl.config.merge import read_extended
from compactmtl.config.yaml import Node, flow
from compactmtl.errors import CompactError, ConfigError

WIDTH = 100
_SHOWN = 6  # files that set a key, named one by one

# Which commands act on a key, by its first word; the rest of a run's commands read it from the run.
READERS: Mapping[Kind, Mapping[str, str]] = {
    "recipe": {
        "description": "recipes list",
        "seed": "train, fit, sweep",
        "data": "train, fit, sweep, data check; and compact --evaluate, export, collect, profile, tasks, report, "
        "predict, probe, which read the run's data again",
        "tasks": "train, fit, sweep, export, collect, report, predict",
        "model": "train, fit, sweep, latency; every command that loads the run's model",
        "train": "train, fit, sweep",
        "balancing": "train, fit, sweep",
        "regularization": "train, fit, sweep",
        "overparam": "train, fit, sweep, compact",
        "sparsity": "train, fit, sweep, latency, export",
        "distillation": "train, fit, sweep",
        "surgery": "compact, fit, and train where sparsity.shrink_every removes channels",
        "targets": "export, fit, tasks, compact (alignment), report",
        "single_task": "train, fit, report",
    },
    "target": {"": "export, profile, latency, and what reads a bundle of the target"},
    "sweep": {"": "sweep"},
}


@dataclass(frozen=True)
class Found:
    """A key, where it stands, and whose it is: empty, or the name of the data set, kind of task or method that has it."""

    kind: Kind
    key: Key
    owner: str = ""


def matches(word: str, known: Sequence[Found], more: Sequence[str] = ()) -> list[Found]:
    """The keys that a word means: a whole dotted key, or else the end of one.

    A name of the user's, such as a task's, stands for `*`. `recipe.`, `target.` or `sweep.` before it says which. Raises
    ConfigError, with the nearest keys, where there is none; also of those in `more`.
    """
    kind, dot, rest = word.partition(".")
    if dot and kind in READERS:
        known, word = [one for one in known if one.kind == kind], rest
    parts = word.split(".")
    whole = [one for one in known if _equal(parts, one.key.name.split("."))]
    if whole:
        return whole
    ends = [one for one in known if _equal(parts, one.key.name.split(".")[-len(parts) :])]
    if ends:
        return ends
    every = list(dict.fromkeys([*(one.key.name for one in known), *more]))
    last = {name.rpartition(".")[2]: name for name in every}
    near = close_names(word, every) or [last[one] for one in close_names(parts[-1], list(last))]
    raise ConfigError(
        f"no key `{word}`",
        f"did you mean {' or '.join(near)}?" if near else "`compactmtl explain` lists the sections",
    )


def explained(found: Found, known: Sequence[Found]) -> Iterator[str]:
    """The lines of one key: meaning, type, default, values, who reads it, who sets it; of a section its keys."""
    key = found.key
    of = f" of {found.owner}" if found.owner else ""
    yield f"{key.name}  ({found.kind} key{of})"
    yield from _entry("meaning", key.description or "(no description)")
    yield from _entry("type", key.type)
    yield from _entry("default", "required" if key.default is None else key.default or '""')
    if key.choices:
        yield from _entry("values", ", ".join(key.choices))
    yield from _entry("read by", _reader(found))
    yield from _entry("set by", _setters(found))
    if others := _others(found, known):
        yield from _entry("see also", ", ".join(others))
    inner = [one for one in known if one.kind == found.kind and _inside(one.key.name, key.name)]
    if inner:
        yield "  keys"
        width = min(44, max(len(one.key.name) for one in inner))
        for one in inner:
            owner = f" [{one.owner}]" if one.owner else ""
            said = first_sentence(one.key.description) or f"{one.key.type}, default {one.key.default}"
            yield f"    {one.key.name:<{width}}  {said}{owner}"


def overview(known: Sequence[Found]) -> Iterator[str]:
    """The top level of every schema."""
    for kind in READERS:
        own = [one.key for one in known if one.kind == kind and "." not in one.key.name]
        width = max(len(key.name) for key in own)
        yield f"{kind} keys"
        yield from (f"  {key.name:<{width}}  {first_sentence(key.description)}" for key in own)
        yield ""


def first_sentence(text: str) -> str:
    """Of a description."""
    head, dot, _ = text.partition(". ")
    return f"{head}." if dot else text


def _equal(parts: Sequence[str], key: Sequence[str]) -> bool:
    """Whether a dotted word is this key, with any name in place of `*`."""
    return len(parts) == len(key) and all(
        one == other or (other == "*" and one.isidentifier()) for one, other in zip(parts, key, strict=True)
    )


def _inside(name: str, section: str) -> bool:
    """Whether a key stands directly in a section, also below names of the user's."""
    if not name.startswith(f"{section}."):
        return False
    rest = name.removeprefix(f"{section}.").split(".")
    return rest[-1] != "*" and rest[:-1] in ([], ["*"])


def _others(found: Found, known: Sequence[Found]) -> list[str]:
    """Keys elsewhere that end as this one does, as `latency` and `sparsity.controller.latency`; of a dotted key none."""
    if "." in found.key.name:
        return []
    same = [one for one in known if one != found and one.key.name.rpartition(".")[2] == found.key.name]
    return [f"{one.kind}.{one.key.name}" for one in same][:_SHOWN]


def _reader(found: Found) -> str:
    readers = READERS[found.kind]
    first = found.key.name.partition(".")[0]
    return f"compactmtl {readers[first] if first in readers else readers['']}"


def _setters(found: Found) -> str:
    """The files by name that give the key a value themselves or by what they extend, with that value."""
    set_by: list[str] = []
    for name, node in _documents(found.kind, Path.cwd()).items():
        for value in _values(node, found.key.name.split(".")):
            text = "" if isinstance(value, dict) else f" ({flow(value)})"
            set_by.append(f"{name}{text}")
            break
    if not set_by:
        return "no file that comes with compactmtl or lies in the working folder"
    more = len(set_by) - _SHOWN
    return ", ".join(set_by[:_SHOWN]) + (f", and {more} more" if more > 0 else "")


@cache
def _documents(kind: Kind, working: Path) -> dict[str, Node]:
    """Every file that can be named from the working folder, with what it extends."""
    documents = {}
    for name, path in names(kind).items():
        try:
            documents[name] = read_extended(kind, path)
        except (CompactError, OSError, ValueError):
            continue  # `recipes check` says what is wrong with a file
    return documents


def _values(node: Node, parts: Sequence[str]) -> Iterator[Any]:
    if node.removed:
        return
    if not parts:
        yield node.plain()
    elif isinstance(node.value, dict):
        first, *rest = parts
        for name, child in node.value.items():
            if first in ("*", name):
                yield from _values(child, rest)


def _entry(title: str, text: str) -> Iterator[str]:
    lines = textwrap.wrap(text, WIDTH - 12, break_long_words=False, break_on_hyphens=False) or [""]
    yield f"  {title:<8}  {lines[0]}"
    yield from (f"  {'':<8}  {line}" for line in lines[1:])
