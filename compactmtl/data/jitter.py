"""Random changes of color, a whole batch at a time."""

from __future__ import annotations

import torch
from torch import Tensor


def jitter(images: Tensor, factors: Tensor, inside: Tensor | None = None) -> Tensor:
    """Brightness, contrast and saturation of float images (B, C, H, W) of values 0 to 255; factors (B, 3), 1 for none.

    The formulas of torchvision's color jitter, in that order and a whole batch at a time; clipped to 0..255 at the end.
    Saturation is of RGB alone; the gray of other numbers of channels is their mean. Padding, where `inside` (B, H, W) is
    0, counts in no mean and stays as it is.
    """
    brightness, contrast, saturation = (factors[:, i].view(-1, 1, 1, 1) for i in range(3))
    channels = images.shape[1]
    luma = [0.299, 0.587, 0.114] if channels == 3 else [1 / channels] * channels
    weights = images.new_tensor(luma).view(1, channels, 1, 1)
    before, images = images, images * brightness
    gray = (images * weights).sum(1, keepdim=True)
    if inside is None:
        mean = gray.mean((2, 3), keepdim=True)
    else:
        shown = inside[:, None].to(images.dtype)
        mean = (gray * shown).sum((2, 3), keepdim=True) / shown.sum((2, 3), keepdim=True).clamp_min(1)
    images = torch.lerp(mean, images, contrast)
    if channels == 3:
        images = torch.lerp((images * weights).sum(1, keepdim=True), images, saturation)
    images = images.clamp_(0, 255)
    return images if inside is None else torch.where(inside[:, None] > 0, images, before)
