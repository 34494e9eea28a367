"""What happens between two calls of a loop: backward passes and steps of the optimizer, seen by their own hooks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from compactmtl.errors import TrainingError
from compactmtl.loops.settings import in_own_words
from compactmtl.loops.steering import Steering
from compactmtl.sparsity import questions
from compactmtl.sparsity.grouped_tensor import GroupedTensor


class Watch:
    """Lets a control observe each step's gradients in time, and knows whether the optimizer has stepped.

    A closure that is handed to the optimizer's step has the gradients only then: it is observed too.
    """

    def __init__(self, optimizer: Optimizer, steering: Steering) -> None:
        self.steering = steering
        self._backward = self._observed = False
        self._stepped = 0
        self._handles: list[Any] = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        ]
        self._hooks: list[Any] = []
        self.rebind()

    def rebind(self) -> None:
        """The groups or their parameters are others."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self._held = self.steering.control.held
        self._parts: dict[int, list[tuple[int, GroupedTensor]]] = {}
        for index, family in enumerate(self.steering.groups.bound):
            for part in family.tensors:
                self._parts.setdefault(id(part.parameter), []).append((index, part))
        for parts in self._parts.values():
            parameter: Any = parts[0][1].parameter
            self._hooks.append(parameter.register_post_accumulate_grad_hook(self._after_backward))
        self.stepping_done()

    def close(self) -> None:
        for handle in (*self._handles, *self._hooks):
            handle.remove()
        self._handles = self._hooks = []

    @property
    def pending(self) -> bool:
        """Whether there was a backward pass or a step of the optimizer since `stepped` was asked."""
        return self._backward or self._stepped > 0

    def observe(self) -> None:
        """Look at the gradients now, and not again before the step."""
        if not self._backward:
            raise TrainingError(
                "observe() without a backward pass since the last step",
                "call it after loss.backward(), and before clipping and the optimizer's step",
            )
        self._look()

    def stepped(self) -> bool:
        """Whether the optimizer has stepped since this was asked last. Raises TrainingError where nothing happened."""
        count, backward = self._stepped, self._backward
        self._stepped, self._backward, self._observed = 0, False, False
        if count > 1:
            raise TrainingError(
                f"the optimizer stepped {count} times since the last step()",
                "call step() after every step of the optimizer",
            )
        if not count and not backward:
            raise TrainingError(
                "step() without a backward pass since the last one",
                "call it after loss.backward() and optimizer.step(), once for each step",
            )
        return bool(count)

    def stepping_done(self) -> None:
        """The control has stepped: what is held at zero gets no gradients from now on."""
        self._held = self.steering.control.held
        self._some = [
            # elsewhere asking costs more than a pass over the gradient
            not questions.on_host(flags.device) or bool(flags.any())
            for flags in self._held or ()
        ]

    def _after_backward(self, parameter: Tensor) -> None:
        self._backward = True
        if self._held is None or parameter.grad is None:
            return
        for index, part in self._parts.get(id(parameter), ()):
            if self._some[index]:
                part.zero_(parameter.grad, self._held[index])

    @torch.no_grad()
    def _look(self) -> None:
        with in_own_words():
            self.steering.observe()
        self._observed = True

    def _before_step(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        _unscale(optimizer)
        # args are those of the unbound method: the optimizer comes first
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if closure is None:
            if not self._observed:
                self._look()
            return None

        def observed() -> Any:
            value = closure()
            if not self._observed:
                self._look()
            return value

        if len(args) > 1:
            return (args[0], observed, *args[2:]), kwargs
        return args, {**kwargs, "closure": observed}

    def _after_step(self, optimizer: Optimizer, *_: Any) -> None:
        self._observed = False
        found = getattr(optimizer, "found_inf", None)
        # a scaler lets a fused optimizer skip a step within itself
        if found is None or not float(found):
            self._stepped += 1


@torch.no_grad()
def _unscale(optimizer: Optimizer) -> None:
    """Take a loss scaler's factor off the gradients, which a fused optimizer would do within its step."""
    scale = getattr(optimizer, "grad_scale", None)
    if scale is None:
        return
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None:
                parameter.grad.div_(scale.to(parameter.grad.device))
    optimizer.grad_scale = None  # type: ignore[attr-defined]
