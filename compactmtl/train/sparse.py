"""A recipe's structured sparsity during training: what steers it, what it reports, when its model may be chosen."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from compactmtl.backends import Align, align_of, get_backend, load_target
from compactmtl.config.sparsity import SparsityConfig
from compactmtl.data.base import Batch
from compactmtl.errors import ConfigError
from compactmtl.graph.copies import copy_model
from compactmtl.graph.space import Flags
from compactmtl.latency import PairedClock, calibrated, check_target, latency_table, require
from compactmtl.models import MultiTaskModel
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
from compactmtl.surgery.slice_plan import Kept
from compactmtl.train.part import Part, Setup, Training
from compactmtl.train.random_state import random_state, restore_random_state

Report = dict[str, Any]


@dataclass(frozen=True)
class Foreseen:
    """What a target leaves of a network, before it has trained: all but the sums may come out differently."""

    macs: float  # for one image
    parameters: float
    channels: dict[str, tuple[int, int]]  # layer -> groups left, of how many
    milliseconds: float | None = None  # by the latency budget's table; none without one
    whole_milliseconds: float | None = None  # of the original network
    measured_on: str = ""  # the budget's target and device


class Sparsifier(Part):
    """A control of channel groups, with its report for the log.

    `undecayed` names the parameters that the prox shrinks: weight decay would shrink them twice. `align` is what
    channel counts are multiples of where the control chooses them.
    """

    name: ClassVar[str] = "sparsifier"
    logs: ClassVar[str] = "sparsity"

    def __init__(
        self,
        groups: ChannelGroups,
        control: Control,
        align: Align | None = None,
        table: LatencyTable | None = None,
        model: nn.Module | None = None,
    ) -> None:
        self.groups = groups
        self.table = table
        self._model = model
        self.control = control
        self.align = align
        self.undecayed = control.shrunk
        self._sizes = [family.size for family in groups]
        self._names = _unique([family.name for family in groups])
        whole = groups.whole()
        self._costs = {}
        for measure in ("macs", "parameters"):
            try:
                self._costs[measure] = groups.cost(measure)(whole)
            except ConfigError:  # a model that can't be traced: groups without what they free
                continue

    def measure_by(self, clock: PairedClock, device: torch.device) -> None:
        """Hold choices to a latency budget against what `clock` measures of what they leave."""
        target = self.control.target
        assert target is not None  # a budget is a target's

        def timed(keep: Sequence[Flags]) -> float | None:
            assert self._model is not None
            before = random_state(device)  # a measurement must not move what is drawn after it
            try:
                return clock(keep, self.groups, self._model)
            finally:
                restore_random_state(before, device)

        target.truth.clock = timed

    def attach(self, optimizer: Optimizer) -> None:
        """Read learning rates and clear moments of dead groups in `optimizer`; once, before the first step."""
        self.control.attach(optimizer)

    def after_backward(self, training: Training, batch: Batch) -> None:
        self.control.observe()

    def after_step(self, training: Training, batch: Batch) -> None:
        self.control.step()

    @property
    def eligible(self) -> bool:
        """Whether the model as it is may become the best checkpoint.

        With a target: once it is reached, for before that the best model is the denser one. A λ without one has
        no target: once the prox has begun.
        """
        return self.control.reached

    def foreseen(self) -> Foreseen | None:
        """What the target will leave, by the size of the weights as they are now; None without a target."""
        gone = self.control.foresee()
        if gone is None:
            return None
        keep = [~flags for flags in gone]
        return Foreseen(
            self.groups.cost("macs")(keep),
            self.groups.cost("parameters")(keep),
            {name: (int(flags.sum()), len(flags)) for name, flags in zip(self._names, keep, strict=True)},
            *self._milliseconds(keep),
        )

    def _milliseconds(self, keep: Sequence[Flags]) -> tuple[float | None, float | None, str]:
        """Of what is kept and of the whole network, by the budget's table, with where that was measured."""
        if self.table is None:
            return None, None, ""
        cost = self.groups.cost("latency", self.table)
        return cost(keep), cost(self.groups.whole()), f"{self.table.target}, {self.table.device}"

    def notes(self) -> list[str]:
        """What a user should know of the groups before training, in lines."""
        lines = []
        if self.align is not None:
            lines.append(f"channels in multiples of {self.align}")
        if self.table is not None:
            off = "" if self.table.error is None else f", {self.table.error:.0%} off in the median"
            lines.append(f"latency by a table of {self.table.target} on {self.table.device}{off}")
        lines += [f"not in sparsity: {name}: {why}" for name, why in self.groups.left_out.items()]
        return lines + [f"counted without it: {name}: {why}" for name, why in self.groups.inexact.items()]

    def dead(self) -> list[Flags]:
        """The groups that are zero now and may be removed, a bool array (n,) a family."""
        held = self.control.held
        if held is not None:
            return [flags.cpu().numpy() for flags in held]
        return [~flags for flags in self.groups.alive()]

    def rebind(self, model: MultiTaskModel, kept: Kept) -> None:
        self._model = model
        self.groups, survivors = self.groups.after(kept, model)
        self.control.shrink_to(self.groups, [torch.from_numpy(index) for index in survivors])

    def report(self) -> Report:
        """For the log: share of zero groups of all at first (whole, and by layer), λ, and the shares of the model's MACs
        and parameters that surgery can remove, or has removed (none: not known); of a latency budget what was measured of
        the choices so far.

        A zero in one layer frees a channel only where all that reads it, or all that writes it, is zero.
        """
        alive = self.groups.alive()
        zeros = [size - int(flags.sum()) for size, flags in zip(self._sizes, alive, strict=True)]
        removable: dict[str, float | None] = {"macs": None, "parameters": None}
        for measure, whole in self._costs.items():
            removable[measure] = 1 - self.groups.cost(measure)(alive) / whole  # type: ignore[arg-type]
        target = self.control.target
        checks = [] if target is None else target.truth.checks
        measured = {"latency": [asdict(one) for one in checks]} if self.table is not None else {}
        return {
            **measured,
            "groups_zero": sum(zeros) / max(sum(self._sizes), 1),
            "strength": self.control.strength,
            "macs_removable": removable["macs"],
            "parameters_removable": removable["parameters"],
            "layers": {
                name: zero / size for name, zero, size in zip(self._names, zeros, self._sizes, strict=True)
            },
        }

    def state_dict(self) -> dict[str, Any]:
        return self.control.state_dict()

    def load_state_dict(self, training: Training, state: Any) -> None:
        self.control.load_state_dict(state)


def _unique(names: Sequence[str]) -> list[str]:
    """Names with a number where several families begin in the same layer."""
    counts = dict(zip(*np.unique(list(names), return_counts=True), strict=True)) if names else {}
    used: dict[str, int] = {}
    unique = []
    for name in names:
        used[name] = used.get(name, 0) + 1
        unique.append(f"{name}#{used[name]}" if counts[name] > 1 else name)
    return unique


def build_sparsifier(setup: Setup) -> Sparsifier | None:
    """The recipe's sparsity over the shared encoder, or None where it asks for none.

    Raises ConfigError for a target that can't be reached or a model without channels to remove, SurgeryError where
    the model can't be traced.
    """
    recipe, model, inputs = setup.recipe, setup.model, setup.inputs
    config = recipe.sparsity
    if config is None:
        return None
    groups = channel_groups(model, inputs, kind=config.groups, scope=config.scope, block=config.block)
    align = align_of(recipe)
    before = random_state(
        setup.device
    )  # what is measured here or read from the cache must not move what is drawn after it
    budget = latency_budget(
        config, groups, model, inputs, align.channels, auto=recipe.surgery.align == "auto"
    )
    restore_random_state(before)
    if budget is None:
        control = build_control(config, groups, setup.total_steps, align.channels, model, inputs)
        return Sparsifier(groups, control, align)
    control = build_control(config, groups, setup.total_steps, budget.steps, model, inputs, budget.table)
    if recipe.surgery.align == "auto":
        align = Align(
            min(budget.steps), f"{steps_in_words(budget.steps)}, surgery.align: auto, of the latency table"
        )
    sparsifier = Sparsifier(groups, control, align, budget.table, model)
    if budget.clock is not None:
        sparsifier.measure_by(budget.clock, setup.device)
    return sparsifier


def build_control(
    config: SparsityConfig,
    groups: ChannelGroups,
    total_steps: int,
    align: int | Sequence[int],
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    table: LatencyTable | None = None,
) -> Control:
    """What steers the zeros of `groups`, as the recipe says. Raises ConfigError where the target can't be reached."""
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
    clock: PairedClock | None  # none: the budget's target does not run here


def latency_budget(
    config: SparsityConfig,
    groups: ChannelGroups,
    model: MultiTaskModel,
    inputs: tuple[Tensor, ...],
    align: int,
    *,
    auto: bool,
) -> MeasuredBudget | None:
    """The recipe's latency budget: by the file that it names, else measured here or read from the cache.

    Counts are multiples of `align` or, where it is `auto`, of the steps of the table. Raises ConfigError where the file is
    of another target, device or precision than the budget asks for, MissingDependencyError where the target cannot run
    here and no file is named, MachineError where the machine is too busy.
    """
    section = config.target
    budget = None if section is None else section.latency
    if section is None or budget is None:
        return None

    def say(line: str) -> None:
        print(f"  {line} …", file=sys.stderr, flush=True)

    def steps_of(table: LatencyTable) -> tuple[int, ...]:
        return tuple(family_steps(groups, table, align) if auto else [align] * len(groups))

    if budget.target is None:
        assert budget.table is not None
        table = LatencyTable.load(Path(budget.table))
        return MeasuredBudget(table, steps_of(table), None)
    target = load_target(budget.target)
    batch = target.latency.batch
    examples = tuple(one.cpu().expand(batch, *one.shape[1:]).contiguous() for one in inputs)
    plain = contract(copy_model(model)).to("cpu").eval()
    if budget.table is not None:
        table = LatencyTable.load(Path(budget.table))
        check_target(table, budget.target, target)
        if not get_backend(target.backend).availability(target).available:
            say(f"{budget.target} does not run here: the table decides, and nothing is measured")
            return MeasuredBudget(table, steps_of(table), None)
    else:
        require(target, budget.target)
        table = latency_table(plain, examples, target, budget.target, align=align, progress=say)
        name = next(
            name for name in ("controller", "selective", "prune") if getattr(config, name) is not None
        )
        table = calibrated(
            table,
            groups,
            section,
            steps_of(table),
            model,
            examples,
            target,
            section=f"sparsity.{name}",
            progress=say,
        )
    clock = PairedClock(table, budget, plain, examples, target, progress=say)
    return MeasuredBudget(table, steps_of(table), clock)
