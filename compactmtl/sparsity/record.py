"""What shrinking knows of each channel and task, as data for files: importance.json."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from compactmtl.sparsity.selective import SelectiveShrinking

VERSION = 1
DIGITS = 6  # of a share: a float32 mean over a few batches is known to fewer


def importance_record(control: SelectiveShrinking, names: Sequence[str]) -> dict[str, Any] | None:
    """Each channel's share of each task's importance, by layer (`names`, one a family), with what was removed.

    Of removed channels it is the share when they were chosen to go, of the others the share now. None where the tasks were
    never looked at.
    """
    tasks = control.tasks
    if not tasks.known:
        return None
    layers = []
    for name, (removed, shares) in zip(names, tasks.whole(control.held), strict=True):
        layers.append(
            {
                "name": name,
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
        "importance": control.config.importance,
        "tasks": list(tasks.tasks),
        "looks": tasks.looks,
        "seconds": tasks.seconds,
        "layers": layers,
        "bounds": None if control.bounds is None else control.bounds.report(),
    }
