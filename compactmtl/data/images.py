"""From an image file to the network's input: decoding, resizing and normalization, one way for training and use."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from compactmtl.data.base import Preprocessing
from compactmtl.data.pixels import ImageInfo, read_rgb

if TYPE_CHECKING:  # reading and normalizing a picture for a deployed model loads no torch
    from torch import Tensor


def read_image(path: Path | str, size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
    """The file as RGB uint8 (3, H, W), upright, stretched to `size` (height, width) with an antialiased bilinear filter.

    `pixels` says what becomes of each kind of file. Raises DataError, naming the file, where it is missing, not a whole
    image, or of a kind that has no rule.
    """
    return read_picture(path, size)[0]


def read_picture(
    path: Path | str, size: tuple[int, int] | None = None, *, upright: bool = True
) -> tuple[NDArray[np.uint8], ImageInfo]:
    """As `read_image`, and what maps of the image must fit. Without `upright` the pixels stay as they are stored."""
    image, picture = read_rgb(Path(path), upright=upright)
    if size is not None and image.size != (size[1], size[0]):
        image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    pixels: NDArray[np.uint8] = np.ascontiguousarray(np.asarray(image, np.uint8).transpose(2, 0, 1))
    return pixels, picture


def normalize_array(images: NDArray[Any], preprocessing: Preprocessing) -> NDArray[np.float32]:
    """`normalize` of an array: images (B, 3, H, W) of values 0 to 255 as the network's float32 input."""
    mean, std = (
        np.array(values, np.float32).reshape(1, 3, 1, 1) for values in (preprocessing.mean, preprocessing.std)
    )
    # The order of the operations is that of `normalize`, so that both round alike.
    scaled: NDArray[np.float32] = images.astype(np.float32) * (1 / (255 * std)) + -mean / std
    return scaled


def normalize(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Images (B, 3, H, W) of values 0 to 255, uint8 or float, as the network's float32 input."""
    import torch

    mean = torch.tensor(preprocessing.mean, dtype=torch.float32).view(1, 3, 1, 1)
    std = torch.tensor(preprocessing.std, dtype=torch.float32).view(1, 3, 1, 1)
    return torch.addcmul(-mean / std, images.to(torch.float32), 1 / (255 * std))


def denormalize(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """The inverse of `normalize`, for pictures: uint8 (B, 3, H, W)."""
    import torch

    mean = torch.tensor(preprocessing.mean, dtype=torch.float32).view(1, 3, 1, 1)
    std = torch.tensor(preprocessing.std, dtype=torch.float32).view(1, 3, 1, 1)
    return ((images * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
