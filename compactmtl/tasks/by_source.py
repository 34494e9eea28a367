"""Metrics of a task on each data set that labels it, where several do: under the task's name, an @ and the source's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from compactmtl.config.sources import AT

T = TypeVar("T")


def on_source(task: str, source: str) -> str:
    """What the metrics of a task on one source's samples are called."""
    return f"{task}{AT}{source}"


def task_of(name: str) -> str:
    """The task whose metrics have this name."""
    return name.partition(AT)[0]


def names_by_source(labels_apart: Mapping[str, Iterable[str]]) -> list[str]:
    """The names of metrics on one source, of tasks that several sources label (task → sources)."""
    return [on_source(task, source) for task, sources in labels_apart.items() for source in sources]


def measured(tasks: Mapping[str, T], names: Iterable[str]) -> dict[str, T]:
    """What is measured of the tasks: a task of several sources once on each, where `names` has metrics by source.

    Over these Δm and scores are means, so that a large data set does not hide a small one.
    """
    by_task: dict[str, list[str]] = {}
    for name in names:
        if AT in name:
            by_task.setdefault(task_of(name), []).append(name)
    return {name: task for own, task in tasks.items() for name in by_task.get(own, [own])}


def rows_by_source(sources: Sequence[str]) -> dict[str, list[int]]:
    """The rows of a batch by the data set that they are of; `sources` is each row's."""
    rows: dict[str, list[int]] = {}
    for row, source in enumerate(sources):
        rows.setdefault(source, []).append(row)
    return rows
