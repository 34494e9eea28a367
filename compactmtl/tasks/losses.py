"""Means and losses over what is known: cross-entropy, soft Dice, focal. All leave ignored elements out, in float32 or wider.

Where several processes are joined (`compactmtl.distributed`), what is known of all their parts of a batch counts together.

Sources: Dice arXiv:1606.04797 (V-Net, section 3; with first powers in the denominator), focal arXiv:1708.02002, eq. 4.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from compactmtl.distributed.sums import summed


def at_least_float32(values: Tensor) -> Tensor:
    """The values as they are, or in float32 where their type is narrower or of integers."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def masked_mean(values: Tensor, valid: Tensor) -> Tensor:
    """Mean of `values` where `valid`; a zero with a graph where nothing is valid.

    Both have the same shape. A value that is not finite at a place that isn't valid does not leak in.
    """
    total, count = summed(torch.where(valid, values, torch.zeros_like(values)).sum(), valid.sum())
    return total / count.clamp(min=1)


def labeled(target: Tensor, ignore_index: int | None) -> Tensor:
    """Where class indices count: bool, of the target's shape."""
    return torch.ones_like(target, dtype=torch.bool) if ignore_index is None else target != ignore_index


def cross_entropy(output: Tensor, target: Tensor, ignore_index: int | None, smoothing: float) -> Tensor:
    """Mean cross-entropy over the elements that count; a zero with a graph where none does.

    output (B, K, ...) logits, target (B, ...) class indices.
    """
    # torch skips -100 by default, which is no class and so skips nothing.
    ignore = -100 if ignore_index is None else ignore_index
    # Its own mean would be 0/0 where every element is ignored. Its own sum over a map has no deterministic form on CUDA.
    reduction = "sum" if output.device.type == "cpu" else "none"
    total = F.cross_entropy(
        at_least_float32(output), target, ignore_index=ignore, reduction=reduction, label_smoothing=smoothing
    ).sum()
    total, count = summed(total, (target != ignore).sum())
    return total / count.clamp(min=1)


def soft_dice(output: Tensor, target: Tensor, ignore_index: int | None) -> Tensor:
    """1 - the mean over classes of 2 Σ p g / (Σ p + Σ g), with sums over all elements of the batch that count.

    output (B, K, ...) logits, target (B, ...) class indices; p is the softmax, g is 1 where the target is the class.
    The mean is over the classes present in the target: an absent one has a Dice of 0 whatever the prediction is.
    A zero with a graph where no element counts.
    """
    valid = labeled(target, ignore_index)
    labels = torch.where(valid, target, torch.zeros_like(target))
    shares = at_least_float32(output).softmax(1) * valid[:, None]
    truth = torch.zeros_like(shares).scatter_(1, labels[:, None], valid[:, None].to(shares.dtype))
    axes = [0, *range(2, output.ndim)]
    overlap, size, predicted = summed((shares * truth).sum(axes), truth.sum(axes), shares.sum(axes))
    dice = 2 * overlap / (predicted + size).clamp(min=torch.finfo(torch.float32).tiny)
    there = size > 0
    return torch.where(there, 1 - dice, torch.zeros_like(dice)).sum() / there.sum().clamp(min=1)


def focal(output: Tensor, target: Tensor, ignore_index: int | None, gamma: float) -> Tensor:
    """Mean over the elements that count of (1 - p)^γ (-log p), p the softmax of the true class.

    output (B, K, ...) logits, target (B, ...) class indices, γ at least 1. A zero with a graph where none counts.
    """
    valid = labeled(target, ignore_index)
    labels = torch.where(valid, target, torch.zeros_like(target))
    surprise = F.cross_entropy(at_least_float32(output), labels, reduction="none")
    # rounding can put p a bit above 1
    missing = (-torch.expm1(-surprise)).clamp(min=0)
    return masked_mean(missing.pow(gamma) * surprise, valid)


def binary_focal(output: Tensor, target: Tensor, valid: Tensor, gamma: float, alpha: float | None) -> Tensor:
    """Mean over `valid` of α_t (1 - p_t)^γ (-log p_t); all three tensors have one shape, target is 0 or 1.

    α weighs the ones and 1 - α the zeros; none for neither. A zero with a graph where nothing is valid.
    """
    from torchvision.ops import sigmoid_focal_loss

    logits = at_least_float32(output)
    labels = torch.where(valid, target, torch.zeros_like(target)).to(logits.dtype)
    values = sigmoid_focal_loss(logits, labels, alpha=-1 if alpha is None else alpha, gamma=gamma)
    return masked_mean(values, valid)
