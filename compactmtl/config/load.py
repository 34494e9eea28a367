"""Load recipes and sweeps by name or path, with overrides, and know where each value came from.

Targets are read here too (`read_document`); `compactmtl.backends.targets` checks them with their backend's keys.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compactmtl.config.kept import keep_data, keep_losses
from compactmtl.config.lookup import Entry, Kind, close_names, entries, find, name_of
from compactmtl.config.merge import apply_overrides, merge, read_extended
from compactmtl.config.paths import anchor
from compactmtl.config.recipe import Frozen, Recipe
from compactmtl.config.sources import AT
from compactmtl.config.sweep import SweepConfig
from compactmtl.config.validate import validate
from compactmtl.config.yaml import Node, Place, dump_yaml
from compactmtl.errors import ConfigError


@dataclass(frozen=True)
class Resolved:
    """A recipe with the origin of each of its values.

    `origins` maps a dotted key to "file:line", "override" or "default"; `path` is the file that was named.
    """

    recipe: Recipe
    origins: Mapping[str, str]
    name: str
    path: Path


@dataclass(frozen=True)
class ResolvedSweep:
    """A sweep, what it is called, and the file that was named."""

    sweep: SweepConfig
    name: str
    path: Path


def resolve_recipe(
    name_or_path: str | Path,
    overrides: Sequence[str] = (),
    *,
    overlays: Sequence[str | Path] = (),
    tasks: Sequence[str] = (),
) -> Resolved:
    """Load a recipe by name or path, apply `key=value` overrides, and record the origin of each value.

    Args:
        name_or_path: a name such as `utkface/dense`, or the path of a YAML file.
        overrides: words such as `train.epochs=3`, applied in their order.
        overlays: recipe files by name or path, such as `_smoke`, applied before the overrides.
        tasks: tasks to keep. By default all.

    Paths in a recipe start where `config.paths` says. They are absolute in the result.

    Raises:
        ConfigError: with file and line, the key, what was expected and found, and the nearest right key or name.
    """
    path, node = read_document("recipe", name_or_path, overrides, overlays)
    if tasks:
        node = _keep_tasks(node, tasks)
    return _resolved(node, name_of("recipe", path), path)


def resolve_layers(base: Node, overrides: Sequence[str], name: str, path: Path) -> Resolved:
    """A recipe that no file holds: `base`, with `key=value` overrides laid over it.

    `name` is what it is called, `path` the file that it comes from. Raises ConfigError as `resolve_recipe` does.
    """
    return _resolved(anchor("recipe", apply_overrides(base, overrides)), name, path)


def _resolved(node: Node, name: str, path: Path) -> Resolved:
    recipe = validate(Recipe, node, f"recipe {name}")
    return Resolved(recipe, dict(origins(recipe, node)), name, path)


def load_recipe(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Load a recipe by name or path and apply `key=value` overrides.

    Raises ConfigError as `resolve_recipe` does.
    """
    return resolve_recipe(name_or_path, overrides).recipe


def resolve_sweep(name_or_path: str | Path) -> ResolvedSweep:
    """Load a sweep by name or path. Raises ConfigError as `resolve_recipe` does."""
    path, node = read_document("sweep", name_or_path, ())
    name = name_of("sweep", path)
    return ResolvedSweep(validate(SweepConfig, node, f"sweep {name}"), name, path)


def dump_recipe(recipe: Recipe) -> str:
    """Return a recipe as YAML text with every value. `load_recipe` reads it back equal."""
    return dump_yaml(recipe.model_dump(mode="json"))


def list_recipes() -> list[Entry]:
    """List every recipe that can be named, sorted by name."""
    return entries("recipe")


def list_sweeps() -> list[Entry]:
    """List every sweep that can be named, sorted by name."""
    return entries("sweep")


def list_targets() -> list[Entry]:
    """List every target that can be named, sorted by name."""
    return entries("target")


def read_document(
    kind: Kind,
    name_or_path: str | Path,
    overrides: Sequence[str],
    overlays: Sequence[str | Path] = (),
) -> tuple[Path, Node]:
    """The file and the values of a recipe, sweep or target, with what it extends and what is laid over it."""
    path = find(kind, name_or_path)
    node = read_extended(kind, path)
    for overlay in overlays:
        node = merge(node, read_extended(kind, find(kind, overlay)))
    node = apply_overrides(node, overrides)
    return path, anchor(kind, node)


def _keep_tasks(node: Node, kept: Sequence[str]) -> Node:
    """The recipe with these tasks alone, and the single-task numbers of these alone."""
    assert isinstance(node.value, dict)
    section = node.value.get("tasks")
    named = section.value if section is not None and isinstance(section.value, dict) else {}
    offered = [name for name, task in named.items() if not task.removed]
    for name in kept:
        if name not in offered:
            near = close_names(name, offered)
            hint = f"did you mean {' or '.join(near)}?" if near else f"its tasks are {', '.join(offered)}"
            raise ConfigError(f"the recipe has no task {name!r}", hint)
    gone = Node(None, Place(None))
    dropped = {name: gone for name in offered if name not in kept}
    if not dropped:
        return node
    over: dict[str, Node] = {"tasks": Node(dropped, Place(None))}
    numbers = node.value.get("single_task")
    if numbers is not None and isinstance(numbers.value, dict):
        # also those on one of several sources, such as segmentation@rooms
        numbered = {name: gone for name in numbers.value if name.partition(AT)[0] in dropped}
        over |= {"single_task": Node(numbered, Place(None))} if numbered else {}
    merged = keep_losses(merge(node, Node(over, Place(None))), set(dropped))
    assert isinstance(merged.value, dict)
    data = merged.value.get("data")
    if data is None or not isinstance(data.value, dict):
        return merged
    return Node({**merged.value, "data": keep_data(data, set(dropped))}, merged.place)


def origins(model: Frozen, node: Node) -> Iterator[tuple[str, str]]:
    """The origin of each value of a model that was read from a document, by its dotted key."""
    for path in _leaves(model.model_dump(mode="json")):
        yield ".".join(path), _origin(node, path)


def _leaves(data: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in data.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, (*path, key))
        else:
            yield (*path, key)


def _origin(node: Node, path: tuple[str, ...]) -> str:
    for part in path:
        if node.removed:
            break
        if not isinstance(node.value, dict) or part not in node.value:
            return "default"
        node = node.value[part]
    return str(node.place)
