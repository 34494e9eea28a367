"""What shrinking knows of each channel and task, as data for files: importance.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from compactmtl.graph.space import Flags
from compactmtl.sparsity.task_importance import TaskImportance

VERSION = 1
DIGITS = 6  # of a share: a float32 mean over a few batches is known to fewer


def importance_record(
    tasks: TaskImportance,
    names: Sequence[str],
    dead: Sequence[Flags],
    bounds: Mapping[str, Any] | None,
    within: Sequence[Sequence[int]] = (),
    branches: Sequence[int] = (),
) -> dict[str, Any]:
    """Each channel's share of each task's importance, by layer (`names`, one a family), with what was removed.

    Of removed channels it is the share when they were chosen to go, of the others the share now. `dead` flags those of the
    network as it is that are at zero for good, bool (n,) a family; `bounds` is the report of the tasks' bounds. `branches` are
    the families that are a branch each; the channels of a family go with any of those that it lies `within`.
    """
    layers = []
    whole = tasks.whole([torch.from_numpy(flags) for flags in dead])
    for index, (name, (removed, shares)) in enumerate(zip(names, whole, strict=True)):
        if within and any(whole[branch][0].all() for branch in within[index]):
            removed = np.ones_like(removed)
        layers.append(
            {
                "name": name,
                **({"branch": True} if index in branches else {}),
                "channels": len(removed),
                "removed": [int(index) for index in np.flatnonzero(removed)],
                "shares": {
                    task: [float(f"{value:.{DIGITS}g}") for value in row]
                    for task, row in zip(tasks.tasks, shares, strict=True)
                },
            }
        )
    return {
        "version": VERSION,
        "importance": tasks.kind,
        "tasks": list(tasks.tasks),
        "looks": tasks.looks,
        "seconds": tasks.seconds,
        "layers": layers,
        "bounds": bounds,
    }
