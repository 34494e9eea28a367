"""From an image file to the network's input: decoding, resizing and normalization, one way for training and use."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from compactmtl.data.bands import read_pixels
from compactmtl.data.base import Preprocessing
from compactmtl.data.fit import Fit, fit_to
from compactmtl.data.pixels import ImageInfo

if TYPE_CHECKING:  # reading and normalizing a picture for a deployed model loads no torch
    from torch import Tensor


def read_image(path: Path | str, size: tuple[int, int] | Fit | None = None) -> NDArray[np.uint8]:
    """The file as uint8 (C, H, W), upright, brought to `size` with an antialiased bilinear filter.

    A size (height, width) is stretched to, in RGB; a `Fit` says how, and how many channels. `pixels` and `bands` say what
    becomes of each kind of file. Raises DataError, naming the file, where it is missing, not a whole image, or of a kind
    that has no rule.
    """
    return read_picture(path, size)[0]


def read_picture(
    path: Path | str, size: tuple[int, int] | Fit | None = None, *, upright: bool = True
) -> tuple[NDArray[np.uint8], ImageInfo]:
    """As `read_image`, and what maps of the image must fit. Without `upright` the pixels stay as they are stored."""
    fit = None if size is None else fit_to(size)
    channels, limits = (3, None) if fit is None else (fit.channels, fit.range)
    pixels, picture = read_pixels(Path(path), channels, upright=upright, limits=limits)
    return (pixels if fit is None else fit.picture(pixels)), picture


def normalize_array(images: NDArray[Any], preprocessing: Preprocessing) -> NDArray[np.float32]:
    """`normalize` of an array: images (B, C, H, W) of values 0 to 255 as the network's float32 input."""
    mean, std = (
        np.array(values, np.float32).reshape(1, -1, 1, 1)
        for values in (preprocessing.mean, preprocessing.std)
    )
    # The order of the operations is that of `normalize`, so that both round alike.
    scaled: NDArray[np.float32] = images.astype(np.float32) * (1 / (255 * std)) + -mean / std
    return scaled


def normalize(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Images (B, C, H, W) of values 0 to 255, uint8 or float, as the network's float32 input."""
    import torch

    mean = torch.tensor(preprocessing.mean, dtype=torch.float32).view(1, -1, 1, 1)
    std = torch.tensor(preprocessing.std, dtype=torch.float32).view(1, -1, 1, 1)
    return torch.addcmul(-mean / std, images.to(torch.float32), 1 / (255 * std))


def denormalize(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """The inverse of `normalize`, for pictures: uint8 (B, C, H, W)."""
    import torch

    mean = torch.tensor(preprocessing.mean, dtype=torch.float32).view(1, -1, 1, 1)
    std = torch.tensor(preprocessing.std, dtype=torch.float32).view(1, -1, 1, 1)
    return ((images * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
