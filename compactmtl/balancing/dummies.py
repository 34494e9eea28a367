"""Random frozen heads: a head's architecture with weights that a seed decides, outside of every optimizer."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from compactmtl.errors import ConfigError
from compactmtl.graph.copies import copy_model
from compactmtl.models.features import last_map
from compactmtl.models.mtan import MTANHead

Features = Tensor | Sequence[Tensor]

Initialization = Literal[
    "default", "xavier_uniform", "xavier_normal", "kaiming_uniform", "kaiming_normal", "orthogonal"
]
_INITIALIZERS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "xavier_uniform": nn.init.xavier_uniform_,
    "xavier_normal": nn.init.xavier_normal_,
    "kaiming_uniform": nn.init.kaiming_uniform_,
    "kaiming_normal": nn.init.kaiming_normal_,
    "orthogonal": nn.init.orthogonal_,
}
ACTIVATIONS: Mapping[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "identity": nn.Identity,
}


def random_head(
    head: nn.Module, task: str, number: int, seed: int, initialization: Initialization = "default"
) -> nn.Module:
    """A copy of `head` with weights drawn anew; torch's generators are left alone.

    The weights depend on task, number and seed alone: more dummies or tasks leave the others as they are. They are drawn
    on the CPU, so that every device has the same. Raises ConfigError for a layer that cannot draw its own weights.
    """
    device = next((parameter.device for parameter in head.parameters()), torch.device("cpu"))
    copied = copy_model(head).cpu()
    digest = hashlib.sha256(f"{seed}/{task}/{number}".encode()).digest()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        for name, module in copied.named_modules():
            if not any(True for _ in module.parameters(recurse=False)):
                continue
            reset = getattr(module, "reset_parameters", None)
            if reset is None:
                raise ConfigError(
                    f"the head of task {task!r} has a layer {name or 'itself'} ({type(module).__name__}) that cannot "
                    "draw random weights",
                    "build the head of torch's layers, or give its layer a method reset_parameters()",
                )
            reset()
            if initialization != "default" and not isinstance(
                module, _NormBase | nn.GroupNorm | nn.LayerNorm
            ):
                _initialize(module, initialization)
    return copied.to(device)


def _initialize(module: nn.Module, initialization: Initialization) -> None:
    for parameter in module.parameters(recurse=False):
        if parameter.ndim >= 2:
            _INITIALIZERS[initialization](parameter)
        else:
            nn.init.zeros_(parameter)


def template_of(head: nn.Module, activation: str | None = None) -> nn.Module:
    """A copy of `head` whose outputs are a function of weights and features alone: without dropout, and with batch
    norm by the batch, no running statistics. `activation` replaces each ReLU."""
    template = copy_model(head).eval().requires_grad_(False)
    for module in list(template.modules()):
        if isinstance(module, _NormBase):
            module.track_running_stats = False
            module.running_mean = module.running_var = module.num_batches_tracked = None
        for name, child in module.named_children():
            if activation is not None and isinstance(child, nn.ReLU):
                setattr(module, name, ACTIVATIONS[activation]())
    return template


class DummyHeads:
    """`count` random copies of one head, their weights side by side: weights[name] is (count, *shape)."""

    def __init__(
        self,
        head: nn.Module,
        task: str,
        count: int,
        seed: int,
        *,
        activation: str | None = None,
        initialization: Initialization = "default",
    ) -> None:
        heads = [random_head(head, task, number, seed, initialization) for number in range(count)]
        states = [dict(one.named_parameters()) for one in heads]
        self.count = count
        self.template = template_of(head, activation)
        self.weights = {name: torch.stack([state[name].detach() for state in states]) for name in states[0]}

    def chunk(self, start: int, stop: int) -> dict[str, Tensor]:
        """Weights of dummies `start` to `stop`, as leaves that a gradient can be taken by."""
        return {name: stack[start:stop].detach().requires_grad_() for name, stack in self.weights.items()}

    def outputs(
        self, weights: Mapping[str, Tensor], call: Callable[[Callable[..., Tensor]], Tensor]
    ) -> list[Tensor]:
        """One output for each dummy of `weights`; `call` calls the head that it is given.

        Several are evaluated as one. Raises ConfigError where torch cannot do that with this head.
        """
        count = len(next(iter(weights.values())))

        def one(state: Mapping[str, Tensor]) -> Tensor:
            return call(lambda *args: torch.func.functional_call(self.template, dict(state), args))

        if count == 1:
            return [one({name: stack[0] for name, stack in weights.items()})]
        try:
            stacked: Tensor = torch.func.vmap(one)(dict(weights))
        except RuntimeError as error:
            if "vmap" not in str(error):
                raise
            raise ConfigError(
                f"dummy heads cannot be evaluated together: {error}", "set regularization.dgr.chunk to 1"
            ) from error
        return list(stacked.unbind())

    def apply(self, fn: Callable[[Tensor], Tensor]) -> None:
        """Move or cast everything, as nn.Module's `_apply`."""
        self.template._apply(fn)  # type: ignore[no-untyped-call]
        self.weights = {name: fn(stack) for name, stack in self.weights.items()}


def call_head(
    architecture: nn.Module,
    head: Callable[..., Tensor],
    features: Features,
    size: tuple[int, int] | None,
    attention: nn.Module | None,
) -> Tensor:
    """Call `head`, which is built like `architecture`, as MultiTaskModel does, or with features alone without a size."""
    if isinstance(architecture, MTANHead):
        return head(features, size, attention)
    given = features if getattr(architecture, "needs", "last") != "last" else last_map(features)
    return head(given) if size is None else head(given, size)
