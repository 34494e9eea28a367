"""From a section `sparsity` to what steers the zeros of a network in training, with the latency table of its budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from compactmtl.artifacts.told import tell
from compactmtl.backends import Align, get_backend, load_target
from compactmtl.config.sparsity import SparsityConfig
from compactmtl.config.target import Target
from compactmtl.errors import ConfigError
from compactmtl.graph.borrow import borrowed
from compactmtl.graph.inputs import map_tensors
from compactmtl.latency import PairedClock, calibrated, check_target, latency_table, require
from compactmtl.latency.measure import conditions_of
from compactmtl.loops.steering import Steering
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
    channel_groups,
)
from compactmtl.sparsity.staircase import family_steps
from compactmtl.sparsity.target import steps_in_words


def build_control(
    config: SparsityConfig,
    groups: ChannelGroups,
    total_steps: int,
    align: int | Sequence[int],
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


@dataclass(frozen=True)
class MeasuredBudget:
    """What a latency budget is followed by: a table, the multiple of each family's counts, and what measures choices."""

    table: LatencyTable
    steps: tuple[int, ...]
    clock: (
        PairedClock | None
    )  # none: the budget's target does not run here, or the table is of another device


def build_steering(
    config: SparsityConfig,
    total_steps: int,
    align: Align,
    model: nn.Module,
    inputs: tuple[Any, ...],
    *,
    auto: bool,
    table: LatencyTable | None = None,
) -> Steering:
    """What steers the zeros of the model's channel groups and reports them, with all that a latency budget needs, see
    `latency_budget`.

    What is measured, or read from the cache, moves no random generator. Raises ConfigError where the target can't be
    reached or the model has no channels to remove, SurgeryError where it can't be traced, and as `latency_budget`.
    """
    groups = channel_groups(
        model, inputs, kind=config.groups, scope=config.scope, block=config.block, branches=config.blocks
    )
    with borrowed():
        budget = latency_budget(config, groups, model, inputs, align.channels, auto=auto, table=table)
        steps = align.channels if budget is None else budget.steps
        own = None if budget is None else budget.table
        control = build_control(config, groups, total_steps, steps, model, inputs, own)
    if budget is None:
        return Steering(groups, control, align)
    if auto and budget.steps:
        source = f"{steps_in_words(budget.steps) or 1}, of the latency table"
        align = Align(min(budget.steps), source)
    return Steering(groups, control, align, budget.table, budget.clock, model)


def latency_budget(
    config: SparsityConfig,
    groups: ChannelGroups,
    model: nn.Module,
    inputs: tuple[Any, ...],
    align: int,
    *,
    auto: bool,
    table: LatencyTable | None = None,
) -> MeasuredBudget | None:
    """The section's latency budget: by `table`, by the file that it names, else measured here or read from the cache.

    `table` is one that was handed in or that training began with: it decides whatever machine it is of, and is corrected by
    measurements where its target runs here. Counts are multiples of `align` or, where it is `auto`, of the steps of the
    table. Raises ConfigError where the file is of another target, device or precision than the budget asks for,
    MissingDependencyError where the target cannot run here and no table is given, MachineError where the machine is too busy.
    """
    section = config.target
    budget = None if section is None else section.latency
    if section is None or budget is None:
        return None
    given = table if table is not None or budget.table is None else LatencyTable.load(Path(budget.table))
    if budget.target is None:
        assert given is not None
        return MeasuredBudget(given, _steps(groups, given, align, auto), None)
    why = None if table is None else _elsewhere(table, budget.target)
    if why is None:
        target = load_target(budget.target)
        if given is not None and table is None:
            check_target(given, budget.target, target)
        if given is not None and not _runs_here(given, target):
            why = "it is of another machine"
    if why is not None:
        assert given is not None
        tell(f"the table of {budget.target} decides, and nothing is measured here: {why}")
        return MeasuredBudget(given, _steps(groups, given, align, auto), None)
    require(target, budget.target)

    def of_batch(one: Tensor) -> Tensor:
        batch = target.latency.batch
        return one[:1].detach().cpu().expand(batch, *one.shape[1:]).contiguous()

    examples = map_tensors(of_batch, inputs)
    if given is None:
        found = latency_table(model, examples, target, budget.target, align=align, progress=tell)
        given = calibrated(
            found,
            groups,
            section,
            _steps(groups, found, align, auto),
            model,
            examples,
            target,
            section=f"sparsity.{config.section}",
            progress=tell,
        )
    plain = contract(model).to("cpu").eval()  # a copy
    clock = PairedClock(given, budget, plain, examples, target, progress=tell)
    return MeasuredBudget(given, _steps(groups, given, align, auto), clock)


def _steps(groups: ChannelGroups, table: LatencyTable, align: int, auto: bool) -> tuple[int, ...]:
    return tuple(family_steps(groups, table, align) if auto else [align] * len(groups))


def _elsewhere(table: LatencyTable, name: str) -> str | None:
    """Why choices by a table that was handed in cannot be measured on the target of this name; None where they can.

    A table knows its target by the name that it had where it was made, or by the backend of a target without a name.
    """
    try:
        check_target(table, name, load_target(name), anywhere=True)
    except ConfigError as error:
        return error.message
    return None


def _runs_here(table: LatencyTable, target: Target) -> bool:
    """Whether a target runs on this machine, and its table is of it and not of a device kit."""
    if not get_backend(target.backend).availability(target).available:
        return False
    return table.kit is None and table.device in ("", conditions_of(target, target.latency.batch)["device"])
