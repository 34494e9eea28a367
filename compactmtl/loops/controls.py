"""From a section `sparsity` to what steers the zeros of a network in training, with the latency table of its budget."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from compactmtl.backends import load_target
from compactmtl.config.sparsity import SparsityConfig
from compactmtl.graph.copies import copy_model
from compactmtl.graph.inputs import map_tensors
from compactmtl.latency import calibrated, check_target, latency_table
from compactmtl.overparam import contract
from compactmtl.sparsity import (
    ChannelGroups,
    Control,
    LatencyTable,
    Pruning,
    SelectiveShrinking,
    StrengthController,
    StrengthSchedule,
    build_penalty,
)


def build_control(
    config: SparsityConfig,
    groups: ChannelGroups,
    total_steps: int,
    align: int,
    model: nn.Module,
    inputs: tuple[Any, ...],
    table: LatencyTable | None = None,
) -> Control:
    """What steers the zeros of `groups`, as the section says. Raises ConfigError where the target can't be reached."""
    if config.selective is not None:
        return SelectiveShrinking(groups, config.selective, total_steps, align=align, table=table)
    if config.prune is not None:
        return Pruning(groups, config.prune, total_steps, model, inputs, align=align, table=table)
    penalty = build_penalty(config, groups)
    if config.controller is not None:
        return StrengthController(
            penalty, config.controller, total_steps, config.warmup, align=align, table=table
        )
    return StrengthSchedule(penalty, total_steps, config.warmup, config.schedule)


def budget_table(
    config: SparsityConfig,
    groups: ChannelGroups,
    model: nn.Module,
    inputs: tuple[Any, ...],
    align: int,
) -> LatencyTable | None:
    """The table of the section's latency budget: the file that it names, else measured here or read from the cache.

    Raises ConfigError where the file is of another target, device or precision than the budget asks for,
    MissingDependencyError where the target cannot run here, MachineError where the machine is too busy.
    """
    section = config.target
    budget = None if section is None else section.latency
    if section is None or budget is None:
        return None
    if budget.target is None:
        assert budget.table is not None
        return LatencyTable.load(Path(budget.table))
    target = load_target(budget.target)
    if budget.table is not None:
        table = LatencyTable.load(Path(budget.table))
        check_target(table, budget.target, target)
        return table

    def say(line: str) -> None:
        print(f"  {line} …", file=sys.stderr, flush=True)

    def of_batch(one: Tensor) -> Tensor:
        batch = target.latency.batch
        return one[:1].detach().cpu().expand(batch, *one.shape[1:]).contiguous()

    examples = map_tensors(of_batch, inputs)
    plain = contract(copy_model(model)).to("cpu").eval()
    table = latency_table(plain, examples, target, budget.target, align=align, progress=say)
    name = next(name for name in ("controller", "selective", "prune") if getattr(config, name) is not None)
    return calibrated(
        table, groups, section, align, model, examples, target, section=f"sparsity.{name}", progress=say
    )
