"""What a bundle's model file takes and gives, in arrays: pictures in, raw outputs back."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from compactmtl.data.base import Preprocessing
from compactmtl.data.images import normalize_array

SMALLEST = 1e-30  # a probability that float32 has as 0 has no logarithm
EDGE = 1e-7  # of a probability, so that its logit is finite


def feed(image: NDArray[np.uint8], preprocessing: Preprocessing, *, baked: bool) -> NDArray[Any]:
    """One image, uint8 (3, H, W), as the file takes it.

    Where preprocessing is baked into the file, uint8 (1, H, W, 3); else normalized float32 (1, 3, H, W).
    """
    if baked:
        return np.ascontiguousarray(image.transpose(1, 2, 0)[None])
    return normalize_array(image[None], preprocessing)


def restore(output: NDArray[Any], after: str | None, channels: int) -> NDArray[Any]:
    """The file's output as a raw output that decodes to the same; `after` is what was put behind it.

    A class map becomes one-hot, a probability its logarithm or its logit.
    """
    if after == "argmax":
        return np.moveaxis(np.eye(channels, dtype=np.float32)[output], -1, 1)
    if after == "softmax":
        shares: NDArray[np.float32] = np.log(np.maximum(output.astype(np.float32), np.float32(SMALLEST)))
        return shares
    if after == "sigmoid":
        share = output.astype(np.float32).clip(EDGE, 1 - EDGE)
        logits: NDArray[np.float32] = np.log(share / (1 - share))
        return logits
    return output
