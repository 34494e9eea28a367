"""What the proximal step needs to know of an optimizer: rate, metric, and the state of a group."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import SGD, Adam, Optimizer

from compactmtl.errors import ConfigError, TrainingError
from compactmtl.sparsity import questions
from compactmtl.sparsity.grouped_tensor import GroupedTensor, Scratch
from compactmtl.sparsity.prox import Metric

_MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer")


class OptimizerView:
    """The optimizer as the proximal step sees it: SGD with or without momentum, Adam or AdamW.

    Raises ConfigError at construction for any other optimizer, and for a tensor of the groups that is not in
    it, does not train, or has weight decay (which would shrink it a second time).
    """

    def __init__(
        self, optimizer: Optimizer, tensors: Iterable[GroupedTensor], *, decay_allowed: bool = False
    ) -> None:
        self.optimizer = optimizer
        self.kind: Literal["sgd", "adam"]
        if isinstance(optimizer, Adam):  # AdamW is one
            self.kind = "adam"
        elif isinstance(optimizer, SGD):
            self.kind = "sgd"
        else:
            raise ConfigError(
                f"no proximal step for optimizer {type(optimizer).__name__}", "use SGD, Adam or AdamW"
            )
        # Positions, not the dicts: loading a state replaces them.
        self._position = {
            id(p): index for index, group in enumerate(optimizer.param_groups) for p in group["params"]
        }
        self._tensors = list(tensors)
        self._steps: dict[int, float] = {}  # tensor -> the optimizer's steps, where `read_steps` read them
        for s in self._tensors:
            if id(s.parameter) not in self._position or not s.parameter.requires_grad:
                raise ConfigError(
                    f"{s.name} belongs to a channel group and does not train",
                    "give it to the optimizer, or leave its layer out of the groups' scope",
                )
            if self.kind == "sgd" and not self.options(s)["momentum"] < 1:
                raise ConfigError(
                    f"SGD's momentum is {self.options(s)['momentum']}", "give a momentum below 1"
                )
            if not decay_allowed and self.options(s)["weight_decay"] != 0:
                raise ConfigError(
                    f"{s.name} belongs to a channel group and has weight decay, which would shrink it twice",
                    "build the optimizer from split_parameter_groups(model, groups, weight_decay)",
                )

    def options(self, s: GroupedTensor) -> dict[str, Any]:
        """The optimizer's parameter group of a tensor."""
        return self.optimizer.param_groups[self._position[id(s.parameter)]]

    def rate(self, s: GroupedTensor) -> float:
        """The rate at which a steady gradient moves a tensor, in units of the metric.

        Adam's moment is an average of gradients and SGD's momentum buffer a sum, in which each gradient
        counts (1 − dampening)/(1 − momentum) times. With the bare learning rate the penalty would be as many
        times too weak against the loss.
        """
        options = self.options(s)
        rate = float(options["lr"])
        if self.kind == "sgd":
            rate *= (1 - options["dampening"] * bool(options["momentum"])) / (1 - options["momentum"])
        return rate

    def stepped(self, s: GroupedTensor) -> bool:
        """Whether the optimizer has moved this tensor yet."""
        return self.kind == "sgd" or "exp_avg_sq" in self.optimizer.state.get(s.parameter, {})

    def read_steps(self) -> None:
        """Read how often each tensor was stepped, by one wait for all; `metric` goes by it until the next call."""
        counts = {
            id(s.parameter): self.optimizer.state.get(s.parameter, {}).get("step") for s in self._tensors
        }
        there = {
            key: step
            for key, step in counts.items()
            if isinstance(step, Tensor) and not questions.on_host(step.device)
        }
        self._steps = {}
        if there:
            device = next(iter(there.values())).device
            values = torch.stack([step.to(device) for step in there.values()]).tolist()
            self._steps = dict(zip(there, values, strict=True))

    def metric(self, s: GroupedTensor, scratch: Scratch | None = None) -> Metric:
        """D with which the optimizer's last step divided: √v̂ + ε for Adam, bias-corrected; 1 for SGD.

        Its values lie in `scratch`, where there is one. Raises TrainingError where the optimizer has not moved the tensor yet.
        """
        if self.kind == "sgd":
            return Metric(torch.ones((), dtype=s.parameter.dtype, device=s.parameter.device))
        if not self.stepped(s):
            raise TrainingError(
                f"the optimizer has not stepped {s.name}, which belongs to a channel group",
                "every grouped layer must take part in the loss; call optimizer.step() before the proximal step",
            )
        state, options = self.optimizer.state[s.parameter], self.options(s)
        second: Tensor = state["max_exp_avg_sq" if options["amsgrad"] else "exp_avg_sq"]
        step = self._steps.get(id(s.parameter))
        steps = float(state["step"]) if step is None else step
        correction: float = (1 - float(options["betas"][1]) ** steps) ** 0.5
        out = scratch.take(second) if scratch is not None else torch.empty_like(second)
        values = torch.sqrt(second, out=out).add_(float(options["eps"]) * correction)
        return Metric(values, 1 / correction, owned=True)  # the scale apart spares a pass over memory

    def forget(self, s: GroupedTensor, groups: Tensor) -> None:
        """Clear the moments of the flagged `groups`, bool (n,): a dead group must not be pushed by its past."""
        for value in self.moments(s).values():
            s.zero_(value, groups.to(value.device))

    def moments(self, s: GroupedTensor) -> dict[str, Tensor]:
        """The optimizer's moments of a tensor by name, those that it has yet; not copies."""
        state = self.optimizer.state.get(s.parameter, {})
        return {
            name: value for name, value in state.items() if name in _MOMENTS and isinstance(value, Tensor)
        }
