"""Averages of the weights of a network that shrinks."""

from __future__ import annotations

import torch
from torch import nn

from compactmtl.graph.copies import copy_model


@torch.no_grad()
def mask(average: nn.Module, model: nn.Module) -> None:
    """Set to zero in an average of weights, in place, what is exactly zero in the model: surgery then removes the same."""
    for mine, theirs in zip(average.parameters(), model.parameters(), strict=True):
        mine.masked_fill_((theirs == 0).to(mine.device), 0.0)


def masked(average: nn.Module, model: nn.Module) -> nn.Module:
    """A copy of an average of weights, with zeros wherever the model has them."""
    copied = copy_model(average)
    mask(copied, model)
    return copied
