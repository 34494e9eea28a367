"""Paths in recipes and sweeps: relative to the file that names them, so that they hold from any working folder.

In a recipe of the user's own a relative path begins at the folder of the file it is written in; on the command line, and in
a recipe that comes with the package, at the working folder. What is resolved has absolute paths.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from compactmtl.artifacts.files import expanded
from compactmtl.artifacts.layout import META, RECIPE
from compactmtl.config.lookup import PACKAGE, SUFFIXES, Kind
from compactmtl.config.sparsity import REDUCTIONS
from compactmtl.config.yaml import Node, Place, flow, shown
from compactmtl.errors import ConfigError

if TYPE_CHECKING:
    from compactmtl.config.recipe import Recipe

_RECIPE = (
    "data.root",
    "data.pseudo_labels.*.teacher",
    "model.encoder.weights",
    "model.weights",
    "distillation.teacher",
    "distillation.features.teacher",
    "distillation.features.encoder.weights",
    *(f"sparsity.{section}.{key}" for section in REDUCTIONS for key in ("latency_table", "latency.table")),
)
# what a verb that reads a run takes as key=value: where its data lies and how it is read
HERE = ("data.root", "data.workers", "data.cache")
_ROOT_OF_SOURCE = re.compile(r"data\.sources\.[^.=]+\.root")  # and where one of several data sets lies
_NAMES = {
    "distillation.teacher": "self",
    "distillation.features.teacher": "self",
}  # a word that is no path
PACKAGE_PREFIX = "package:"  # of weights that an installed package holds


def anchor(kind: Kind, node: Node) -> Node:
    """A document with every path in it absolute.

    Raises:
        ConfigError: where a path is not below the folder of its file and is below the working folder, which is where
            it would have been looked for on the command line.
    """
    if kind == "recipe":
        for key in _RECIPE:
            node = _at(node, key.split("."), _path(key))
        node = _at(
            node, ["data", "sources"], _each(lambda one: _at(one, ["root"], _path("data.sources.*.root")))
        )
        for section in REDUCTIONS:
            node = _at(node, ["sparsity", section, "latency", "target"], _file("latency.target"))
        return _at(node, ["targets"], _each(_file("targets")))
    if kind == "sweep":
        node = _at(node, ["recipe"], _file("recipe"))
        node = _at(node, ["overrides"], _each(_override))
        node = _at(node, ["search", "recipe"], _file("recipe"))
        node = _at(node, ["search", "overrides"], _each(_override))
        node = _at(node, ["entries", "*", "recipe"], _file("recipe"))
        node = _at(node, ["entries", "*", "overrides"], _each(_override))
        return _at(node, ["entries", "*", "runs"], _each(_path("runs")))
    return node


def check_here(run: Path, overrides: Sequence[str]) -> None:
    """Check that overrides only say where a run's data is and how it is read. Raises ConfigError for any other."""
    for word in overrides:
        if "=" not in word:
            raise ConfigError(
                f"{word} is neither a run nor key=value", "name one run, and values such as data.root=/data"
            )
        if not is_here(word):
            raise ConfigError(
                f"override `{word}`: {run} is trained, and this key cannot change afterwards",
                f"only {', '.join(HERE)} can be given for a run; to change anything else, train another run",
            )


def here_words(recipe: Recipe) -> list[str]:
    """Overrides for `check_here`: where a recipe's data is, and how it is read."""
    own = [
        f"data.sources.{source.called}.root={flow(source.root)}"
        for source in recipe.data.sources
        if source.root is not None
    ]
    return [*(f"{key}={flow(getattr(recipe.data, key.partition('.')[2]))}" for key in HERE), *own]


def is_here(word: str) -> bool:
    """Whether a `key=value` word is one of those that `check_here` passes."""
    key, equals, _ = word.partition("=")
    return bool(equals) and (key.strip() in HERE or _ROOT_OF_SOURCE.fullmatch(key.strip()) is not None)


def is_bundled(file: Path) -> bool:
    """Whether a file comes with the package; there, and in a checkout of it, the working folder is the user's place."""
    for folder in (PACKAGE / "_bundled", PACKAGE.parent / "recipes", PACKAGE.parent / "export"):
        checkout = (PACKAGE.parent / "pyproject.toml").is_file()
        if (folder.parent == PACKAGE or checkout) and file.resolve().is_relative_to(folder.resolve()):
            return True
    return False


def _is_of_run(file: Path) -> bool:
    """Whether a run wrote the file: what is relative in it is an older version's, for the working folder."""
    return file.name == RECIPE and file.with_name(META).is_file()


def _at(node: Node, keys: list[str], change: Callable[[Node], Node]) -> Node:
    """The document with `change` made to what stands at `keys`; `*` is every key."""
    if node.removed:
        return node
    if not keys:
        return change(node)
    if not isinstance(node.value, dict):
        return node
    first, *rest = keys
    changed = {
        key: _at(child, rest, change) if first in ("*", key) else child for key, child in node.value.items()
    }
    return Node(changed, node.place)


def _each(change: Callable[[Node], Node]) -> Callable[[Node], Node]:
    def every(node: Node) -> Node:
        if not isinstance(node.value, list):
            return node
        return Node([change(item) for item in node.value], node.place)

    return every


def _path(key: str) -> Callable[[Node], Node]:
    def absolute(node: Node) -> Node:
        text = node.value
        if (
            not isinstance(text, str)
            or not text
            or text == _NAMES.get(key)
            or "://" in text
            or text.startswith(PACKAGE_PREFIX)
        ):
            return node
        return Node(_absolute(text, key, node.place), node.place)

    return absolute


def _file(key: str) -> Callable[[Node], Node]:
    """A name stays a name; what ends in .yaml is a path."""

    def absolute(node: Node) -> Node:
        is_path = isinstance(node.value, str) and node.value.endswith(SUFFIXES)
        return _path(key)(node) if is_path else node

    return absolute


def _override(node: Node) -> Node:
    """An override that a sweep holds: its path begins where the sweep lies."""
    if not isinstance(node.value, str):
        return node
    key, equals, text = node.value.partition("=")
    if not equals or not any(fnmatchcase(key.strip(), one) for one in _RECIPE):
        return node
    value = _path(key.strip())(Node(text.strip().strip("'\""), node.place))
    return Node(f"{key.strip()}={value.value}", node.place)


def _absolute(text: str, key: str, place: Place) -> str:
    at_home = expanded(text)
    if at_home.is_absolute():
        return str(at_home) if text.startswith("~") else text
    here = os.path.abspath(text)  # noqa: PTH100  (links stay as they are written)
    if place.file is None or is_bundled(place.file) or _is_of_run(place.file):
        return here
    there = os.path.abspath(place.file.parent / text)  # noqa: PTH100
    if not _exists(there) and _exists(here):
        raise ConfigError(
            f"{place}: `{key}`: {text} is relative to the file that names it, and {shown(Path(there))} does not "
            f"exist; {here} does",
            f"write {os.path.relpath(here, place.file.parent)} there, or give {key}={text} on the command line",
        )
    return there


def _exists(path: str) -> bool:
    """Whether something is there; of a pattern such as runs/seed* or runs/seed{seed}, the folder before it."""
    fixed = Path(path)
    while any(mark in fixed.as_posix() for mark in "*?[{"):
        fixed = fixed.parent
    return fixed.exists()
