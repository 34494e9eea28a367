"""What a network is given: one picture, or several inputs by position, in the order of `data.inputs`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from compactmtl.config.recipe import DataConfig
from compactmtl.data.base import Batch

# A batch of pictures (B, C, H, W); or where `data.inputs` names what the network takes one tensor each, of a vector (B, n).
Images = Tensor | tuple[Tensor, ...]


def given(batch: Batch) -> Images:
    """What a network takes of a batch."""
    return batch.get("inputs", batch["image"])


def parts(images: Images) -> tuple[Tensor, ...]:
    """The tensors, as the network's forward takes them."""
    return (images,) if isinstance(images, Tensor) else images


def each(change: Callable[[Tensor], Tensor], images: Images) -> Images:
    """Every tensor changed."""
    return change(images) if isinstance(images, Tensor) else tuple(change(one) for one in images)


def joined(batches: list[Images]) -> Images:
    """Batches behind one another."""
    if isinstance(batches[0], Tensor):
        return torch.cat([one for batch in batches for one in parts(batch)])
    return tuple(torch.cat(column) for column in zip(*map(parts, batches), strict=True))


def between(images: Images, start: int, stop: int) -> Images:
    """Samples `start` to `stop` (not included)."""
    return each(lambda one: one[start:stop], images)


def count(images: Images) -> int:
    """Samples in a batch."""
    return len(parts(images)[0])


def image_of(images: Images) -> Tensor:
    """The first picture of each sample, (B, C, H, W), whose size the targets' maps have."""
    return next(one for one in parts(images) if one.ndim == 4)


def size_of(images: Images) -> tuple[int, int]:
    """Height and width of the pictures."""
    height, width = image_of(images).shape[-2:]
    return height, width


def to_device(images: Images, device: torch.device | str) -> Images:
    """On `device`; the host goes on where the memory allows."""
    return each(lambda one: one.to(device, non_blocking=True), images)


def random_inputs(config: DataConfig, batch: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    """Random normalized inputs in their order: pictures (batch, C, H, W), vectors (batch, n)."""
    return tuple(
        torch.randn(batch, one.channels, *(config.size if one.is_picture else ()), generator=generator)
        for one in config.given.values()
    )
