"""Penalties on the multi-task loss's own gradient, to compare dummy gradient norms with."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from compactmtl.distributed.processes import world
from compactmtl.distributed.sums import averaged, is_joined, summed


def input_gradient_penalty(loss: Tensor, image: Tensor | tuple[Tensor, ...]) -> Tensor:
    """Mean over images of the squared norm of each image's own gradient, of a `loss` that is a mean over the batch.

    image (B, ...) requires a gradient; of several inputs the norm is of all gradients together. The result has a graph: following it costs a double backward through the whole
    network. Source: Drucker and LeCun, "Improving generalization performance using double backpropagation", 1992.
    """
    inputs = (image,) if isinstance(image, Tensor) else image
    slopes = torch.autograd.grad(loss, inputs, create_graph=True)
    squares = [slope.square().sum() for slope in slopes]
    total = squares[0] if len(squares) == 1 else torch.stack(squares).sum()
    if not is_joined():
        return len(inputs[0]) * total
    # each process differentiates the loss that all have, so that its slopes are as many times too large
    total, count = summed(total / world() ** 2, total.new_full((), len(inputs[0])))
    return count * total


def weight_gradient_penalty(loss: Tensor, weights: Iterable[Tensor]) -> Tensor:
    """Squared norm of the gradient of `loss` by all `weights` together, those that ask for no gradient left out.

    The result has a graph (see `input_gradient_penalty`). Source: arXiv:2202.03599, whose norm is not squared.
    """
    trained = [weight for weight in weights if weight.requires_grad]
    slopes = torch.autograd.grad(loss, trained, create_graph=True, allow_unused=True)
    squares = [slope.square().sum() for slope in averaged([slope for slope in slopes if slope is not None])]
    return torch.stack(squares).sum()
