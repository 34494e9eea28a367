"""From an image file to the network's input: decoding, resizing and normalization, one way for training and use."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from compactmtl.data.base import Preprocessing
from compactmtl.errors import DataError

if TYPE_CHECKING:  # reading and normalizing a picture for a deployed model loads no torch
    from torch import Tensor


def read_image(path: Path | str, size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
    """The file as RGB uint8 (3, H, W), upright, stretched to `size` (height, width) with an antialiased bilinear filter.

    Raises DataError, naming the file, where it is missing or not a whole image.
    """
    path = Path(path)
    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened).convert("RGB")
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such image", "check the path") from error
    except IsADirectoryError as error:
        raise DataError(f"{path}: a folder, not an image", "name an image file in it") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(
            f"{path}: not a whole image ({_reason(error)})", "remove the file or fetch it again"
        ) from error
    if size is not None and image.size != (size[1], size[0]):
        image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    pixels: NDArray[np.uint8] = np.ascontiguousarray(np.asarray(image, np.uint8).transpose(2, 0, 1))
    return pixels


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


def _reason(error: Any) -> str:
    text = str(error)
    return "unknown format" if text.startswith("cannot identify") else text or type(error).__name__
