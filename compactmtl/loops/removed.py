"""Progressive compaction: dead channels leave a network while it trains, and the optimizer's state with them.

The modules stay, their parameters are replaced: what holds on to the network need not know. Saved states are of the
network at its first size, with zeros where channels were removed. On resuming the channels are removed again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from compactmtl.config.words import key
from compactmtl.errors import TrainingError
from compactmtl.graph.borrow import borrowed
from compactmtl.graph.inputs import tensors_in
from compactmtl.graph.space import Flags
from compactmtl.graph.stages import first_line
from compactmtl.sparsity import ChannelGroups
from compactmtl.surgery import Plan, apply_plan
from compactmtl.surgery.apply import slice_in_place
from compactmtl.surgery.slice_plan import Kept, compose, cut, kept_indices, nothing, plan_slices, put_back

# Two float32 networks of the same function whose sums run in another order; a wrong slice is off by far more.
SAME = 1e-3


class Removed:
    """What was removed from a network so far, and how it was before."""

    def __init__(self, model: nn.Module, inputs: tuple[Any, ...], keep: tuple[str, ...] = ()) -> None:
        """`keep` names the beginnings of parameters whose channels stay."""
        self.plan = nothing(model)
        self._keep = keep
        self._inputs = inputs
        self.shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}

    @property
    def plan(self) -> Plan:
        """The plan from the network's first size to its size now."""
        return self._plan

    @plan.setter
    def plan(self, plan: Plan) -> None:
        self._plan = plan
        self.kept = kept_indices(plan)  # what is left of each dimension that was cut
        self._cut = {name for name, _ in self.kept}

    def is_cut(self, name: str) -> bool:
        """Whether a parameter or buffer is smaller than at first."""
        return name in self._cut

    def find(self, model: nn.Module, groups: ChannelGroups, dead: Sequence[Flags]) -> Plan | None:
        """The plan that takes the groups flagged in `dead`, bool (n,) a family, out of the network; None where none can go.

        Raises TrainingError where the smaller network does not run or has another function.
        """
        if not any(flags.any() for flags in dead):
            return None
        failed: TrainingError | None = None
        for equal_widths in (False, True):  # a forward may take one number for the widths of several tensors
            plan = plan_slices(model, self._inputs, list(groups), dead, self._keep, equal_widths=equal_widths)
            if plan.empty:
                return None
            try:
                _compare(model, apply_plan(model, plan), self._inputs)
            except TrainingError as error:
                failed = failed or error
            else:
                return plan
        assert failed is not None
        raise failed

    def remove(self, model: nn.Module, plan: Plan, optimizer: Optimizer) -> Kept:
        """Follow a plan of `find` in the network and in its optimizer. What is left of each dimension that was cut."""
        whole = compose(self.plan, plan)
        kept = cut_model(model, plan, optimizer)
        self.plan = whole
        return kept

    def again(self, model: nn.Module, plan: Plan, optimizer: Optimizer) -> Kept:
        """Remove from the network at its first size what had been removed from it by `plan`."""
        kept = cut_model(model, plan, optimizer)
        self.plan = plan
        return kept

    def whole(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A state_dict of the network at its first size."""
        kept = self.kept
        return {name: put_back(name, value, self.shapes[name], kept) for name, value in state.items()}

    def optimizer_whole(
        self, saved: Mapping[str, Any], optimizer: Optimizer, model: nn.Module
    ) -> dict[str, Any]:
        """The optimizer's state_dict `saved` at the network's first size."""
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        order = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        kept, state = self.kept, {}
        for index, values in saved["state"].items():
            parameter, name = order[index], names.get(id(order[index]))
            state[index] = {
                key: put_back(name, value, self.shapes[name], kept)
                if name is not None and isinstance(value, Tensor) and value.shape == parameter.shape
                else value
                for key, value in values.items()
            }
        return {**saved, "state": state}

    def optimizer_cut(
        self, saved: Mapping[str, Any], optimizer: Optimizer, model: nn.Module
    ) -> dict[str, Any]:
        """The inverse of `optimizer_whole`."""
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        order = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        kept, state = self.kept, {}
        for index, values in saved["state"].items():
            name = (
                names.get(id(order[index])) if index < len(order) else None
            )  # load_state_dict says so itself
            state[index] = {
                key: cut(name, value, kept)
                if name is not None and isinstance(value, Tensor) and tuple(value.shape) == self.shapes[name]
                else value
                for key, value in values.items()
            }
        return {**saved, "state": state}


def cut_model(model: nn.Module, plan: Plan, optimizer: Optimizer | None = None) -> Kept:
    """Cut a network in place by a plan of slices, and its optimizer's state; its memory layout stays.

    What is left of each dimension that was cut.
    """
    before = dict(model.named_parameters())
    last = any(_channels_last(parameter) for parameter in before.values())
    slice_in_place(model, plan)
    if last:
        model.to(memory_format=torch.channels_last)
    kept = kept_indices(plan)
    after = dict(model.named_parameters())
    for name, parameter in before.items():
        if parameter.grad is not None and after[name] is not parameter:  # of steps that still accumulate
            after[name].grad = cut(name, parameter.grad, kept).contiguous()
    if optimizer is not None:
        replace_parameters(optimizer, before, after, kept)
    return kept


def replace_parameters(
    optimizer: Optimizer, before: Mapping[str, nn.Parameter], after: Mapping[str, nn.Parameter], kept: Kept
) -> None:
    """Put the parameters `after` in the place of those `before` by name, with what is left of their state."""
    names = {id(parameter): name for name, parameter in before.items()}
    for group in optimizer.param_groups:
        group["params"] = [
            after[names[id(parameter)]] if id(parameter) in names else parameter
            for parameter in group["params"]
        ]
    for parameter in list(optimizer.state):
        name = names.get(id(parameter))
        if name is None or after[name] is parameter:
            continue
        state = optimizer.state.pop(parameter)
        optimizer.state[after[name]] = {
            key: cut(name, value, kept).contiguous()
            if isinstance(value, Tensor) and value.shape == parameter.shape
            else value
            for key, value in state.items()
        }


def _channels_last(parameter: nn.Parameter) -> bool:
    return (
        parameter.dim() == 4
        and parameter.is_contiguous(memory_format=torch.channels_last)
        and not parameter.is_contiguous()
    )


def _compare(model: nn.Module, small: nn.Module, inputs: tuple[Any, ...]) -> None:
    small.train(model.training)
    modes = {name: module.training for name, module in model.named_modules()}
    for name, module in small.named_modules():
        module.training = modes.get(name, model.training)  # batch norm may be frozen
    with borrowed(model, small, weights=False):
        before = _named(model(*inputs))
        try:
            after = _named(small(*inputs))
        except Exception as failure:  # a forward that counts its channels in a way that no edit follows
            raise TrainingError(
                f"the network does not run without its dead channels: {first_line(failure)}", _mend()
            ) from failure
    for name, expected in before.items():
        if expected.shape != after[name].shape:
            raise TrainingError(
                f"removing dead channels changed the output {name} from {tuple(expected.shape)} to"
                f" {tuple(after[name].shape)}",
                _mend(),
            )
        if not expected.is_floating_point():
            continue
        error = float((expected - after[name]).abs().max() / expected.abs().max().clamp_min(1e-30))
        if not error <= SAME:
            raise TrainingError(
                f"removing dead channels changed the output {name} by {error:.1e} of its largest value",
                f"this should not happen: leave out {key('sparsity.shrink_every')} and report it",
            )


def _mend() -> str:
    return f"leave out {key('sparsity.shrink_every')}: `compact` removes after training what it can prove"


def _named(outputs: object) -> dict[str, Tensor]:
    """The tensors of a network's outputs, by task where these are a mapping, else by number."""
    if isinstance(outputs, Mapping) and all(isinstance(value, Tensor) for value in outputs.values()):
        return {str(name): value for name, value in outputs.items()}
    return {str(index): value for index, value in enumerate(tensors_in(outputs))}
