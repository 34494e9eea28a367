"""What is left of a data section and of bounds where some of a recipe's tasks are left out, before the recipe is checked."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import replace

from compactmtl.config.task_losses import LOSSES
from compactmtl.config.yaml import Node

_BY_TASK = ("targets", "classes")  # of a source


def keep_data(data: Node, dropped: Set[str]) -> Node:
    """The data section, a mapping, without what it says of the tasks `dropped`."""
    assert isinstance(data.value, dict)
    values = dict(data.value)
    taught = values.get("pseudo_labels")
    if taught is not None and isinstance(taught.value, dict):
        values["pseudo_labels"] = Node(
            {task: node for task, node in taught.value.items() if task not in dropped}, taught.place
        )
    data = Node(values, data.place)
    return _keep_sources(data, dropped) if "sources" in values else data


def _keep_sources(data: Node, dropped: Set[str]) -> Node:
    """The data section without the tasks `dropped`, without sources that label no other, and with the shares of the rest."""
    assert isinstance(data.value, dict)
    listed = data.value["sources"]
    if not isinstance(listed.value, list):
        return data  # the check of the recipe says what is wrong with it
    rest = [_without(one, dropped) for one in listed.value]
    sources = [one for one in rest if _labels(one)]
    gone = {_called(one) for one in rest if not _labels(one)}
    values = {**data.value, "sources": Node(sources, listed.place)}
    if gone and "mixing" in values:
        values["mixing"] = _mixing(values["mixing"], gone)
    if gone and values.get("name", data).value != "":
        values.pop("name", None)  # it follows from the sources
    return Node(values, data.place)


def keep_losses(recipe: Node, dropped: Set[str]) -> Node:
    """The recipe without what the tasks `dropped` might lose while it shrinks."""
    return _without_keys(recipe, LOSSES.split("."), dropped)


def _without_keys(node: Node, path: Sequence[str], dropped: Set[str]) -> Node:
    """A mapping of which the mapping at `path` has these keys no more; as it is where there is none."""
    if not isinstance(node.value, dict):
        return node  # the check of the recipe says what is wrong with it
    if not path:
        return replace(node, value={name: one for name, one in node.value.items() if name not in dropped})
    first, *rest = path
    if first not in node.value:
        return node
    return replace(node, value={**node.value, first: _without_keys(node.value[first], rest, dropped)})


def _without(source: Node, dropped: Set[str]) -> Node:
    if not isinstance(source.value, dict):
        return source
    values = dict(source.value)
    tasks = values.get("tasks")
    if tasks is not None and isinstance(tasks.value, list):
        values["tasks"] = Node([one for one in tasks.value if one.value not in dropped], tasks.place)
    for key in _BY_TASK:
        section = values.get(key)
        if section is not None and isinstance(section.value, dict):
            kept = {task: node for task, node in section.value.items() if task not in dropped}
            values[key] = Node(kept, section.place)
    return Node(values, source.place)


def _labels(source: Node) -> bool:
    """Whether a source has a task left; what is no source is left for the check."""
    return not (
        isinstance(source.value, dict) and "tasks" in source.value and source.value["tasks"].value == []
    )


def _called(source: Node) -> str:
    """As `SourceConfig.called`."""
    assert isinstance(source.value, dict)
    named = [source.value[key].plain() for key in ("alias", "name") if key in source.value]
    return next((str(name).rpartition(":")[2] for name in named if name), "")


def _mixing(mixing: Node, gone: Set[str]) -> Node:
    """Without the sources that went: shares are of the rest, and an epoch is none of theirs."""
    if not isinstance(mixing.value, dict):
        return mixing
    values = dict(mixing.value)
    shares = values.get("shares")
    if shares is not None and isinstance(shares.value, dict):
        numbers = {name: node for name, node in shares.value.items() if name not in gone}
        total = sum(node.value for node in numbers.values() if isinstance(node.value, int | float))
        scaled = {
            name: replace(node, value=node.value / total)
            if isinstance(node.value, int | float) and total
            else node
            for name, node in numbers.items()
        }
        values["shares"] = Node(scaled, shares.place)
    if "epoch" in values and values["epoch"].value in gone:
        values["epoch"] = Node(None, values["epoch"].place)
    return Node(values, mixing.place)
