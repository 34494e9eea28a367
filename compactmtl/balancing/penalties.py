"""Penalties on the multi-task loss's own gradient, to compare dummy gradient norms with."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def input_gradient_penalty(loss: Tensor, image: Tensor) -> Tensor:
    """Mean over images of the squared norm of each image's own gradient, of a `loss` that is a mean over the batch.

    image (B, ...) requires a gradient. The result has a graph: following it costs a double backward through the whole
    network. Source: Drucker and LeCun, "Improving generalization performance using double backpropagation", 1992.
    """
    (slope,) = torch.autograd.grad(loss, image, create_graph=True)
    return len(image) * slope.square().sum()


def weight_gradient_penalty(loss: Tensor, weights: Iterable[Tensor]) -> Tensor:
    """Squared norm of the gradient of `loss` by all `weights` together, those that ask for no gradient left out.

    The result has a graph (see `input_gradient_penalty`). Source: arXiv:2202.03599, whose norm is not squared.
    """
    trained = [weight for weight in weights if weight.requires_grad]
    slopes = torch.autograd.grad(loss, trained, create_graph=True, allow_unused=True)
    squares = [slope.square().sum() for slope in slopes if slope is not None]
    return torch.stack(squares).sum()
