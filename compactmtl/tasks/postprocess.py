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


POSTPROCESS: Mapping[str, PostProcess] = {
    "argmax": PostProcess(lambda output: output.argmax(dim=1), _one_hot, _one_hot_array),
    "softmax": PostProcess(lambda output: output.softmax(dim=1), _logarithm, _logarithm_array),
    "sigmoid": PostProcess(lambda output: output.sigmoid(), _logit, _logit_array),
}
