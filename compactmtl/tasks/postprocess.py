"""What an exported model may compute behind a task's raw output, and the way back to one that decodes to the same.

A kind names what it offers in `Task.postprocess`. The way back is there in torch and in numpy: with a class map as
one-hot logits, and probabilities as their logarithms or logits, metrics and predictions need no second form.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from compactmtl.tasks.decoding import Decoding, Values

if TYPE_CHECKING:
    from torch import Tensor

Array = NDArray[Any]
SMALLEST = 1e-30  # a probability that float32 has as 0 has no logarithm
EDGE = 1e-7  # of a probability, so that its logit is finite


@dataclass(frozen=True)
class PostProcess:
    """One function behind a raw output (B, channels, ...). The way back is given the number of channels."""

    apply: Callable[[Tensor], Tensor]
    restore: Callable[[Tensor, int], Tensor]
    restore_array: Callable[[Array, int], Array]
    values: Values  # what the numbers are behind it
    meaning: str  # the same in words
    decoding: Callable[[Decoding], Decoding]  # how the new output becomes the value, from how the raw one did


def _one_hot(index: Tensor, channels: int) -> Tensor:
    from torch.nn.functional import one_hot

    return one_hot(index, channels).movedim(-1, 1).float()


def _one_hot_array(index: Array, channels: int) -> Array:
    return np.moveaxis(np.eye(channels, dtype=np.float32)[index], -1, 1)


def _logarithm(shares: Tensor, channels: int) -> Tensor:
    return shares.clamp_min(SMALLEST).log()


def _logarithm_array(shares: Array, channels: int) -> Array:
    logits: NDArray[np.float32] = np.log(np.maximum(shares.astype(np.float32), np.float32(SMALLEST)))
    return logits


def _logit(shares: Tensor, channels: int) -> Tensor:
    return shares.logit(eps=EDGE)


def _logit_array(shares: Array, channels: int) -> Array:
    share = shares.astype(np.float32).clip(EDGE, 1 - EDGE)
    logits: NDArray[np.float32] = np.log(share / (1 - share))
    return logits


def _done(raw: Decoding) -> Decoding:
    return Decoding(op="none", how="take the numbers as they are", gives=raw.gives)


def _most_probable(raw: Decoding) -> Decoding:
    return Decoding(
        op="argmax", how="take the index of the largest probability along axis 1", gives=raw.gives
    )


def _likely(raw: Decoding) -> Decoding:
    if raw.op == "sigmoid":
        return _done(raw)
    return Decoding(
        op="threshold",
        how="a label is there where its probability is above 0.5",
        gives=raw.gives,
        threshold=0.5,
    )


POSTPROCESS: Mapping[str, PostProcess] = {
    "argmax": PostProcess(
        lambda output: output.argmax(dim=1),
        _one_hot,
        _one_hot_array,
        "class index",
        "class index, taken by argmax in the model file",
        _done,
    ),
    "softmax": PostProcess(
        lambda output: output.softmax(dim=1),
        _logarithm,
        _logarithm_array,
        "probabilities",
        "probability of each class, softmax in the model file",
        _most_probable,
    ),
    "sigmoid": PostProcess(
        lambda output: output.sigmoid(),
        _logit,
        _logit_array,
        "probabilities",
        "probability, sigmoid in the model file",
        _likely,
    ),
}
