"""Channel groups of a network in training, what steers their zeros, and what is reported of them."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from compactmtl.errors import CompactWarning, ConfigError, TrainingError, command
from compactmtl.graph.borrow import borrowed
from compactmtl.graph.space import Flags
from compactmtl.latency import PairedClock
from compactmtl.sparsity import ChannelGroups, Control, LatencyTable, SelectiveShrinking
from compactmtl.sparsity.branches import lies_within
from compactmtl.sparsity.held_out import HeldOut
from compactmtl.sparsity.record import importance_record
from compactmtl.surgery.report import SurgeryReport
from compactmtl.surgery.slice_plan import Kept

Report = dict[str, Any]
SLACK = 5e-3  # of a share: the compact model is counted layer by layer, a choice by what each channel frees


@dataclass(frozen=True)
class Foreseen:
    """What a target leaves of a network, before it has trained: all but the sums may come out differently."""

    macs: float  # for one image
    parameters: float
    channels: dict[str, tuple[int, int]]  # layer -> groups left, of how many
    milliseconds: float | None = None  # by the latency budget's table; none without one
    whole_milliseconds: float | None = None  # of the original network
    measured_on: str = ""  # the budget's target and device


class Steering:
    """A control of channel groups with its report. `align` says what channel counts are multiples of."""

    def __init__(
        self,
        groups: ChannelGroups,
        control: Control,
        align: object | None = None,
        table: LatencyTable | None = None,
        clock: PairedClock | None = None,
        model: nn.Module | None = None,
    ) -> None:
        """`clock` measures what choices to a latency budget leave of `model`, before they are final."""
        self.groups = groups
        self._model = model
        self.table = table
        self.control = control
        self.align = align
        self._sizes = [family.size for family in groups]
        self._names = _unique([family.name for family in groups])
        self._branches = [place for place, family in enumerate(groups) if family.branch]
        self._within = lies_within(groups, groups.removal.branches if groups.removal is not None else ())
        whole = groups.whole()
        self._costs = {}
        for measure in ("macs", "parameters"):
            try:
                self._costs[measure] = groups.cost(measure)(whole)
            except ConfigError:  # a model that can't be traced: groups without what they free
                continue
        if clock is not None and control.target is not None:
            control.target.truth.clock = partial(self._timed, clock)

    def _timed(self, clock: PairedClock, keep: Sequence[Flags]) -> float | None:
        """Milliseconds of what is left with only the groups in `keep`."""
        assert self._model is not None
        with borrowed():  # a measurement must not move what is drawn after it
            return clock(keep, self.groups, self._model)

    def attach(self, optimizer: Optimizer) -> None:
        """Read learning rates and clear moments of dead groups in `optimizer`; once, before the first step."""
        self.control.attach(optimizer)

    def look(self, losses: Mapping[str, Tensor], scale: float = 1.0) -> None:
        """The loss of each task is there with its graph, before the backward pass; `scale` is a loss scaler's factor."""
        self.control.look(losses, scale)

    @property
    def check_due(self) -> bool:
        """Whether the tasks are to be measured on held-out data now, after a step, for `judge`."""
        return self.control.check_due

    def judge(self, model: nn.Module, measure: Callable[[], Mapping[str, HeldOut]]) -> str:
        """Measure the tasks on held-out data, and go on as their bounds allow. What was put back, in words.

        Raises DataError where the held-out data says nothing of a bounded task.
        """
        control = self.control
        assert isinstance(control, SelectiveShrinking) and control.bounds is not None
        start = time.perf_counter()
        found = measure()
        control.bounds.seconds += time.perf_counter() - start
        return control.judge(found, dict(model.named_buffers()))

    def finished(self, found: Mapping[str, HeldOut]) -> None:
        """Note what the tasks have on held-out data in the network that is deployed, for `record`."""
        control = self.control
        if isinstance(control, SelectiveShrinking) and control.bounds is not None:
            control.bounds.finished(found)

    def observe(self) -> None:
        """The gradients are there, and are not clipped yet."""
        self.control.observe()

    def step(self) -> None:
        """The optimizer has stepped."""
        self.control.step()

    @property
    def reached(self) -> bool:
        """With a target: whether it has been met. Of a λ without one: whether the prox has begun."""
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
            if self.table.unreliable:
                again = command("latency", "RECIPE", "--target", self.table.target, "--again")
                lines.append(
                    f"warning: {off[2:]} is too far to choose channels by: measure it again while nothing else runs there: {again}"
                )
        lines += self.control.notes()
        lines += [f"not in sparsity: {name}: {why}" for name, why in self.groups.left_out.items()]
        return lines + [f"counted without it: {name}: {why}" for name, why in self.groups.inexact.items()]

    def dead(self) -> list[Flags]:
        """The groups that are zero now and may be removed, a bool array (n,) a family."""
        held = self.control.held
        if held is not None:
            return [flags.cpu().numpy() for flags in held]
        return [~flags for flags in self.groups.alive()]

    def removable(self) -> list[Flags]:
        """Of `dead` the groups that may leave the network now: those that nothing will put back."""
        settled = self.control.settled
        return self.dead() if settled is None else [flags.cpu().numpy() for flags in settled]

    def check_zeros(self) -> None:
        """Raise TrainingError where groups that are zero for good are not zero in the network as it is."""
        for name, flags, alive in zip(self._names, self.dead(), self.groups.alive(), strict=True):
            if back := int((flags & alive).sum()):
                raise TrainingError(
                    f"{back} of the {int(flags.sum())} channel groups of {name} that were zero are not any more",
                    "weights of before were loaded: load those that were saved with this state",
                )

    def check_met(self) -> None:
        """Raise TrainingError where the groups that are zero for good are too few for the target, and no bound is why."""
        target = self.control.target
        if self.control.short:
            return
        if target is not None and (short := target.shortfall([~flags for flags in self.dead()])):
            raise TrainingError(
                f"the budget is missed: {short}", "take the network as it is: finish(early=True)"
            )

    def warn_of(self, report: SurgeryReport) -> None:
        """Give a CompactWarning where surgery removed less of the MACs or parameters than was asked for, or a bound let it."""
        target = self.control.target
        if self.control.short:
            warnings.warn(self.control.short, CompactWarning, stacklevel=3)
            return
        if target is None or target.config.measure == "latency":
            return
        left = report.parameters_after / report.parameters_before
        found = report.mac_reduction if target.config.measure == "macs" else 1 - left
        if found < target.config.amount - SLACK:
            warnings.warn(
                f"{target.config.key} is {target.config.amount:g}, and surgery could remove {found:.3f}: see what result.report"
                " says of the rest",
                CompactWarning,
                stacklevel=3,
            )

    def rebind(self, model: nn.Module, kept: Kept) -> None:
        """Go on in a smaller network, of whose parameters the indices `kept` are left; the optimizer has them already."""
        self._model = model
        self.control.cut(kept)
        self.groups, survivors = self.groups.after(kept, model)
        self.control.shrink_to(self.groups, [torch.from_numpy(index) for index in survivors])

    def report(self) -> Report:
        """Share of zero groups of all at first (whole, and by layer), λ, and the shares of the model's MACs and
        parameters that surgery can remove, or has removed (none: not known); of a latency budget what was measured of the
        choices so far, and of tasks what their importance and their bounds came to.

        A zero in one layer frees a channel only where all that reads it, or all that writes it, is zero.
        """
        alive = self.groups.alive()
        zeros = [size - int(flags.sum()) for size, flags in zip(self._sizes, alive, strict=True)]
        removable: dict[str, float | None] = {"macs": None, "parameters": None}
        for measure, whole in self._costs.items():
            removable[measure] = 1 - self.groups.cost(measure)(alive) / whole  # type: ignore[arg-type]
        target = self.control.target
        checks = [] if target is None else target.truth.checks
        return {
            **({} if self.table is None else {"latency": [asdict(one) for one in checks]}),
            "groups_zero": sum(zeros) / max(sum(self._sizes), 1),
            "strength": self.control.strength,
            "macs_removable": removable["macs"],
            "parameters_removable": removable["parameters"],
            "layers": {
                name: zero / size for name, zero, size in zip(self._names, zeros, self._sizes, strict=True)
            },
            # what was measured is the same in every run of a recipe; how long it took is in `record`
            **{
                what: {key: value for key, value in found.items() if key != "seconds"}
                for what, found in self.control.report().items()
            },
        }

    def record(self) -> dict[str, Any] | None:
        """What each channel is worth to each task, see `importance_record`; None where that is not known."""
        tasks = self.control.tasks
        if tasks is None or not tasks.known:
            return None
        bounds = self.control.report().get("bounds")
        return importance_record(tasks, self._names, self.dead(), bounds, self._within, self._branches)

    def state_dict(self) -> dict[str, Any]:
        """The control's, tensors and plain numbers."""
        return self.control.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`. Raises ArtifactError for a state of other groups."""
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
