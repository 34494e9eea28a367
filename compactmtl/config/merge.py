"""Merge YAML files and overrides: `extends`, key by key; null or {} removes an inherited mapping."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from compactmtl.config.lookup import SUFFIXES, Kind, find, name_hint
from compactmtl.config.yaml import Node, Place, describe, parse_override, read_yaml, shown
from compactmtl.errors import ConfigError


def read_extended(kind: Kind, path: Path, ancestors: tuple[Path, ...] = ()) -> Node:
    """Read a file and merge it with all that it extends; later files override earlier ones.

    `extends` holds a name, or a path relative to the file that ends in .yaml, or a list of them.

    Raises:
        ConfigError: for a cycle, or a file that is not there; naming the line of `extends`.
    """
    path = path.resolve()
    return extended(kind, read_yaml(path), path, ancestors)


def extended(kind: Kind, node: Node, path: Path, ancestors: tuple[Path, ...] = ()) -> Node:
    """A document of the file `path` merged with all that it extends. Raises as `read_extended` does."""
    assert isinstance(node.value, dict)
    own = dict(node.value)
    own.pop("extends", None)
    merged = Node({}, node.place)
    for parent in parents(node):
        parent_path = _find_parent(kind, parent, path)
        if parent_path in (*ancestors, path):
            chain = " -> ".join(shown(file) for file in (*ancestors, path, parent_path))
            raise ConfigError(f"{parent.place}: extends forms a circle: {chain}", "remove one `extends`")
        merged = merge(merged, read_extended(kind, parent_path, (*ancestors, path)))
    return merge(merged, Node(own, node.place))


def merge(base: Node, over: Node) -> Node:
    """Merge `over` into `base`: mappings merge key by key, everything else is replaced.

    Under a key null removes a mapping, and an empty one, `{}`, takes its place: what was inherited is gone. A mapping laid
    over a list of mappings that have an `alias` or a `name` is merged into those that its keys name.
    """
    if (listed := _into_named(base, over)) is not None:
        return listed
    if not (isinstance(base.value, dict) and isinstance(over.value, dict)):
        return over
    result = dict(base.value)
    for key, node in over.value.items():
        under = result.get(key)
        if under is not None and node.value is None and (under.removed or isinstance(under.value, dict)):
            result[key] = Node(None, node.place, removed=True)
        elif node.value == {}:
            result[key] = node
        else:
            result[key] = node if under is None else merge(under, node)
    return Node(result, over.place)


def _into_named(base: Node, over: Node) -> Node | None:
    """A list of named mappings with others merged into it by their names; none where it is not that.

    Raises ConfigError for a name that the list does not have.
    """
    if not (isinstance(base.value, list) and isinstance(over.value, dict) and over.value):
        return None
    items: list[Node] = list(base.value)
    places = {name: number for number, item in enumerate(items) if (name := _name_of(item)) is not None}
    if not places:
        return None
    if unknown := [name for name in over.value if name not in places]:
        raise ConfigError(
            f"{over.value[unknown[0]].place}: {unknown[0]!r} is none of what the list under that key names: {', '.join(places)}",
            name_hint(unknown[0], list(places)),
        )
    for name, node in over.value.items():
        items[places[name]] = merge(items[places[name]], node)
    return Node(items, base.place)


def _name_of(item: Node) -> str | None:
    """What a mapping in a list is called: its `alias`, else its `name`, of a class of the user's own the class's."""
    if not isinstance(item.value, dict):
        return None
    named = (item.value[key].value for key in ("alias", "name") if key in item.value)
    return next((name.rpartition(":")[2] for name in named if isinstance(name, str)), None)


def apply_overrides(node: Node, overrides: Sequence[str]) -> Node:
    """Apply `dotted.key=value` words to a document, in their order.

    Raises:
        ConfigError: for a word without `=`, an empty key, or a value that starts as a list and isn't one.
    """
    for word in overrides:
        key, equals, text = word.partition("=")
        parts = key.strip().split(".")
        if not equals or not all(parts):
            raise ConfigError(f"override `{word}`: expected key=value", "write it like train.epochs=3")
        try:
            value = parse_override(text)
        except ConfigError as error:
            raise ConfigError(
                f"override `{word}`: {error.message.removeprefix('override: ')}", error.hint
            ) from None
        for part in reversed(parts):
            value = Node({part: value}, Place(None))
        node = merge(node, value)
    return node


def parents(node: Node) -> list[Node]:
    """Return what a file extends, as it is written there.

    Raises:
        ConfigError: where that is neither text nor a list of texts.
    """
    extends = node.value.get("extends") if isinstance(node.value, dict) else None
    if extends is None or extends.value is None:
        return []
    named = extends.value if isinstance(extends.value, list) else [extends]
    for parent in named:
        if not isinstance(parent.value, str):
            raise ConfigError(
                f"{parent.place}: expected a name, a path or a list of them after `extends`, found {describe(parent)}",
                "write `extends: scenes/dense`",
            )
    return named


def _find_parent(kind: Kind, parent: Node, child: Path) -> Path:
    name = str(parent.value)
    try:
        if name.endswith(SUFFIXES):
            return find(kind, (child.parent / name).resolve())
        return find(kind, name).resolve()
    except ConfigError as error:
        raise ConfigError(f"{parent.place}: extends: {error.message}", error.hint) from None
