"""Bring a table into agreement with the network that a budget leads to: that network is cut out and timed itself."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from compactmtl.artifacts.layout import MODEL_FILE
from compactmtl.artifacts.told import Progress
from compactmtl.config.sparsity import ReductionConfig
from compactmtl.config.target import Target
from compactmtl.graph.copies import copy_model
from compactmtl.graph.space import Flags
from compactmtl.latency.cuts import revive
from compactmtl.latency.measure import BUSY, conditions_of
from compactmtl.latency.observe import observe
from compactmtl.latency.store import Store
from compactmtl.overparam import contract
from compactmtl.sparsity import ChannelGroups
from compactmtl.sparsity.latency import LatencyTable
from compactmtl.sparsity.target import Target as Reduction
from compactmtl.surgery import compact

TOLERANCE = 0.02  # of the measured time, within which a table is believed
ROUNDS = 3
FAR = 1.25  # of what the table says, above which a time is more likely the machine's than the network's
AGAIN = 2  # further timings of such a network

Choice = TypeVar("Choice")


def agree(
    table: LatencyTable,
    choose: Callable[[LatencyTable], tuple[Choice, float]],
    measure: Callable[[Choice, float], float | None],
    progress: Progress = lambda line: None,
) -> LatencyTable:
    """Scale a table until what it says of its own choice is what is measured of that.

    `choose` gives what a table leads to and the milliseconds that it says of it. `measure` gives of these two the
    milliseconds that it takes, or None where they could not be measured: the table then stays as it is.
    """
    for _ in range(ROUNDS):
        choice, predicted = choose(table)
        measured = measure(choice, predicted)
        if measured is None:
            return table
        progress(
            f"the network that the budget leads to takes {measured:.3g} ms, {predicted:.3g} ms by the table"
        )
        if abs(measured / predicted - 1) <= TOLERANCE:
            return table
        table = table.scaled(measured / predicted)
    return table


def calibrated(
    table: LatencyTable,
    groups: ChannelGroups,
    config: ReductionConfig,
    align: int | Sequence[int],
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    target: Target,
    *,
    section: str = "sparsity",
    store: Store | None = None,
    progress: Progress = lambda line: None,
) -> LatencyTable:
    """The table for training to a budget: right near the network that the budget leads to, by the weights as they are.

    `groups` are those of `model`, `config` its section with the budget, `inputs` of the target's batch size. A measurement is
    read from the cache where it was made before, so that a resumed run chooses by the same table. Raises ConfigError where
    the budget cannot be met.
    """
    cache = store or Store(conditions_of(target, len(inputs[0])))

    def choose(current: LatencyTable) -> tuple[list[Flags], float]:
        aim = Reduction(groups, config, align, section, current)
        keep = [~flags for flags in aim.by_magnitude()]
        return keep, aim.cost(keep)

    def measure(keep: list[Flags], predicted: float) -> float | None:
        key = _key(table, keep)
        if (known := cache.milliseconds(key)) is not None:
            return known
        small = cut_to(groups, keep, model, inputs)
        with tempfile.TemporaryDirectory(prefix="compactmtl-") as folder:
            path = Path(folder) / MODEL_FILE
            ms = shortest(lambda: _timed(small, inputs, target, path), predicted)
        if ms is None:
            progress("the machine is too busy to check the table")
            return None
        return cache.keep_milliseconds(key, ms)

    return agree(table, choose, measure, progress)


def shortest(timed: Callable[[], float | None], predicted: float) -> float | None:
    """Milliseconds of a network, timed again while they are far above what a table says of it; None where the machine was
    too busy each time. Other work only ever adds to a time, evenly too, so the shortest is the network's own.
    """
    best = timed()
    for _ in range(AGAIN):
        if best is not None and best <= FAR * predicted:
            break
        again = timed()
        best = again if best is None else best if again is None else min(best, again)
    return best


def _timed(small: nn.Module, inputs: tuple[Tensor, ...], target: Target, path: Path) -> float | None:
    """Milliseconds of a network; None where they vary too much to tell."""
    found = observe(small, inputs, {}, target, path)
    return found.wall if found.variation <= BUSY else None


def cut_to(
    groups: ChannelGroups, keep: Sequence[Flags], model: nn.Module, inputs: tuple[Tensor, ...]
) -> nn.Module:
    """A plain copy of a model with only the groups in `keep`; the model is left as it was."""
    copied = copy_model(model)
    revive(copied)
    for family, flags in zip(groups.in_model(copied).bound, keep, strict=True):
        gone = torch.from_numpy(~np.asarray(flags))
        for part in family.tensors:
            part.zero_(part.parameter.detach(), gone.to(part.parameter.device))
    return compact(contract(copied).to("cpu").eval(), inputs).model


def _key(table: LatencyTable, keep: Sequence[Flags]) -> str:
    digest = hashlib.sha256(table.model_dump_json().encode())
    for flags in keep:
        digest.update(np.packbits(flags).tobytes())
    return digest.hexdigest()[:24]
