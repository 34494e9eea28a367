"""Dummy gradient norm regularization: features of which random heads, too, could be learned well.

Source: arXiv:2409.16651. For each task and each of n random frozen heads ψ the norm of ∇_ψ L(h_ψ(z), y) is penalized by
the features z alone. ψ acts on z only, so the penalty's gradient by z is a double backward through the small head, and
the encoder is traversed once for it and the tasks together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Self, cast

import torch
from torch import Tensor, nn

from compactmtl.balancing.dummies import DummyHeads, Features, Initialization, call_head
from compactmtl.balancing.statistics import still_statistics
from compactmtl.distributed.sums import averaged
from compactmtl.errors import ConfigError

Loss = Callable[[Tensor, Tensor], Tensor]


class DummyGradientNorm(nn.Module):
    """The dummy gradient norm: Σ over tasks of the mean over dummies of ‖∇_ψ L(h_ψ(z), y)‖². Source: arXiv:2409.16651.

    A call returns a scalar. Its gradient reaches the features and nothing else: neither heads nor dummies nor the layers
    of `attention`. The module has no parameters and no state; dummies are rebuilt from the seed.

    Args:
        heads: for each task its head, or another module with the architecture that the dummies shall have.
        losses: for each task its scalar loss of an output and a target.
        dummies: random heads per task.
        seed: seed of their weights, together with the task's name and the dummy's number.
        mode: "exact", or "finite_difference" as in the authors' code: (L(ψ + ε·d/‖d‖) − L(ψ))/ε with d = ∇_ψ L.
        norm: "squared", or "plain" for the norm itself.
        epsilon: step length of the finite difference.
        chunk: dummies of a task that are evaluated together. By default all for a target of one or a few values per image,
            one for a map. Fewer need less memory.
        activation: activation function in place of each ReLU of a head.
        initialization: initialization of the weights. "default" is each layer's own.
        attention: what heads of kind mtan receive. It is constant here.

    Raises:
        ConfigError: where heads and losses name different tasks, a count is not positive, no head has a ReLU for
            `activation`, or a layer of a head cannot draw weights.
    """

    def __init__(
        self,
        heads: Mapping[str, nn.Module],
        losses: Mapping[str, Loss],
        *,
        dummies: int = 3,
        seed: int = 0,
        mode: Literal["exact", "finite_difference"] = "exact",
        norm: Literal["squared", "plain"] = "squared",
        epsilon: float = 1e-4,
        chunk: int | None = None,
        activation: str | None = None,
        initialization: Initialization = "default",
        attention: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if heads.keys() != losses.keys() or not heads:
            raise ConfigError(
                f"dummy heads of {', '.join(heads) or 'no task'} and losses of {', '.join(losses) or 'no task'}",
                "give a head and a loss for each task",
            )
        if dummies < 1 or epsilon <= 0 or (chunk is not None and chunk < 1):
            raise ConfigError(
                f"dummies {dummies}, epsilon {epsilon}, chunk {chunk}: each must be positive",
                "see docs/balancing.md",
            )
        if activation is not None and not any(
            isinstance(module, nn.ReLU) for head in heads.values() for module in head.modules()
        ):
            raise ConfigError(
                f"activation {activation} of dummy heads: no head has a ReLU in its place",
                "leave it out, or give the dummies a hidden layer (regularization.dgr.head.depth)",
            )
        self.mode, self.norm, self.epsilon, self._chunk = mode, norm, epsilon, chunk
        self._losses = dict(losses)
        self._heads = {
            task: DummyHeads(head, task, dummies, seed, activation=activation, initialization=initialization)
            for task, head in heads.items()
        }
        self.attend(attention)

    def attend(self, attention: nn.Module | None) -> None:
        """Give heads of kind mtan this attention from now on."""
        self._attention = (attention,)  # in a tuple: not a part of this module

    def forward(
        self,
        features: Features | Mapping[str, Features],
        targets: Mapping[str, Tensor],
        size: tuple[int, int] | None = None,
    ) -> Tensor:
        """Return the penalty of a batch: a scalar in the features' precision, at least float32.

        Args:
            features: (B, C), (B, C, h, w), or the maps that an encoder returns; by task where they are not shared. No map
                may be computed from another (see `balanced_backward`).
            targets: for each task its targets, as its loss takes them.
            size: height and width of the images, with which heads that return maps are called.
        """
        tensors, grads, total = list[Tensor](), list[Tensor](), torch.zeros(())
        by_features: dict[
            int, tuple[tuple[Tensor, ...], int]
        ] = {}  # leaves of features, and where they begin in `tensors`
        for task in self._heads:
            own: Features = features[task] if isinstance(features, Mapping) else features
            maps = (own,) if isinstance(own, Tensor) else tuple(own)
            if id(own) not in by_features:
                by_features[id(own)] = tuple(_leaf(x) for x in maps), len(tensors)
                tensors += maps
                grads += [torch.zeros_like(leaf) for leaf in by_features[id(own)][0]]
            leaves, first = by_features[id(own)]
            given: Features = leaves[0] if isinstance(own, Tensor) else list(leaves)
            value, slopes = self._task(task, given, leaves, targets[task], size)
            total = total.to(value) + value
            for index, gradient in enumerate(slopes, first):
                grads[index] += gradient
        return cast(Tensor, _Known.apply(total, len(tensors), *tensors, *grads))

    def _task(
        self,
        task: str,
        features: Features,
        leaves: Sequence[Tensor],
        target: Tensor,
        size: tuple[int, int] | None,
    ) -> tuple[Tensor, list[Tensor]]:
        """The penalty of one task, and its gradients by `leaves`, chunk by chunk: no graph outlives its chunk."""
        heads = self._heads[task]
        trained = [leaf for leaf in leaves if leaf.requires_grad]
        step = self._chunk or (1 if target.ndim > 2 else heads.count)
        total, grads = leaves[0].new_zeros(()), [torch.zeros_like(leaf) for leaf in leaves]
        attention = self._attention[0]
        still = still_statistics(attention if attention is not None else nn.Identity())
        with torch.enable_grad(), torch.autocast(leaves[0].device.type, enabled=False), still:

            def losses(weights: Mapping[str, Tensor]) -> Tensor:
                outputs = heads.outputs(
                    weights, lambda head: call_head(heads.template, head, features, size, attention)
                )
                return torch.stack([self._losses[task](output, target) for output in outputs])

            for start in range(0, heads.count, step):
                weights = heads.chunk(start, start + step)
                value = self._penalty(losses, weights) / heads.count
                total += value.detach()
                slopes = torch.autograd.grad(value, trained, allow_unused=True) if trained else ()
                pieces = iter(slopes)
                for gradient, leaf in zip(grads, leaves, strict=True):
                    piece = next(pieces) if leaf.requires_grad else None
                    if piece is not None:
                        gradient += piece
        return total, grads

    def _penalty(
        self, losses: Callable[[Mapping[str, Tensor]], Tensor], weights: Mapping[str, Tensor]
    ) -> Tensor:
        """Summed over the dummies of `weights`, as a function of the features."""
        exact = self.mode == "exact"
        values = losses(weights)
        slopes = torch.autograd.grad(
            values.sum(), list(weights.values()), create_graph=exact, retain_graph=True, allow_unused=True
        )
        found = {name: slope for name, slope in zip(weights, slopes, strict=True) if slope is not None}
        known = dict(zip(found, averaged(list(found.values())), strict=True)) if found else {}
        if not known:
            return values.sum() * 0
        squares = torch.stack([slope.flatten(1).square().sum(1) for slope in known.values()]).sum(0)
        # the root of 0, of a batch that knows nothing of the task, has no slope
        norms = squares.clamp(min=torch.finfo(squares.dtype).tiny).sqrt()
        if exact:
            return (squares if self.norm == "squared" else norms).sum()
        moved = {
            name: weight + self.epsilon * known[name] / _column(norms, weight) if name in known else weight
            for name, weight in weights.items()
        }
        rise = (losses({name: weight.detach() for name, weight in moved.items()}) - values) / self.epsilon
        return (rise.square() if self.norm == "squared" else rise).sum()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        for heads in self._heads.values():
            heads.apply(fn)
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call, no-any-return]


class _Known(torch.autograd.Function):
    """A scalar whose gradients by some tensors are known already."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, count: int, *tensors_and_grads: Tensor) -> Tensor:
        ctx.count = count
        ctx.dtypes = [tensor.dtype for tensor in tensors_and_grads[:count]]
        ctx.save_for_backward(*tensors_and_grads[count:])
        return value.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        grads = [(slope * grad).to(dtype) for grad, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)]
        return (None, None, *grads, *[None] * ctx.count)


def _leaf(features: Tensor) -> Tensor:
    """Cut off from the encoder, in float32 or wider: a double backward in half precision would be noise."""
    wide = features.detach().to(torch.promote_types(features.dtype, torch.float32))
    return wide.requires_grad_(features.requires_grad and torch.is_grad_enabled())


def _column(values: Tensor, like: Tensor) -> Tensor:
    return values.detach().view(-1, *[1] * (like.ndim - 1))
