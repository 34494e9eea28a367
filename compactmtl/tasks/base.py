"""What a task is: its target's format, loss, metrics, decoding and picture.

Shape suffixes: B batch, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # whoever only reads a bundle loads no torch
    from torch import Tensor

TargetKind = Literal["mask", "depth", "normals", "disparity", "class", "multilabel", "scalar", "instances"]


@dataclass(frozen=True)
class TargetSpec:
    """What a data set says of one of its targets.

    Formats of a batched target by kind:
      mask     int64 (B, H, W), class index; `ignore_index` marks pixels that count nowhere
      depth    float32 (B, 1, H, W) in `unit`; 0 where unknown
      normals  float32 (B, 3, H, W), unit vectors in the camera frame (x right, y down, z forward); 0 where unknown
      class    int64 (B,), class index; `ignore_index` marks images whose class is unknown
      scalar   float32 (B,) in `unit`; not a number where unknown
      disparity  float32 (B, 1, H, W), proportional to inverse depth; 0 where unknown
      multilabel float32 (B, len(classes)), 1 present, 0 absent, -1 unknown
      instances  int64 (B, 2, H, W): instance number from 1 (0 none, -1 a crowd to ignore) and class index
    """

    kind: TargetKind
    classes: tuple[str, ...] = ()
    unit: str = ""
    ignore_index: int | None = None
    mean: float = 0.0  # of a scalar (or a depth) over the training split, for a head that starts at the mean
    std: float = 1.0
    # of a mask: pairs of classes that change places in a mirror image, such as a left and a right eye
    mirrored: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        # A run's folder keeps it as JSON, which knows lists alone.
        object.__setattr__(self, "mirrored", tuple((one, other) for one, other in self.mirrored))


@dataclass(frozen=True)
class MetricInfo:
    """How to read one metric: which way is better, and in which unit."""

    higher_is_better: bool
    unit: str = ""
    share: bool = False  # lies in [0, 1] and is shown as a percentage
    gain: bool = True  # counts in Δm, as in the papers' tables


class Metrics(Protocol):
    """Accumulates over a whole split; exact, never a mean of batch means."""

    def update(self, output: Tensor, target: Tensor) -> None: ...

    def compute(self) -> dict[str, float]: ...


class Task(Protocol):
    """One output of the network. Built by `build_task(name, config, spec)`.

    `channels` is the width of the head's last layer; `dense` says whether the output is a map
    (B, channels, H, W) at the input's size or one vector an image (B, channels). A dense task with an attribute
    `stride` gives a map of cells of so many pixels a side instead, and makes the input's size of it when it decodes.
    """

    primary: ClassVar[str]  # the metric that a one-line summary shows
    meaning: ClassVar[str]  # what a value of the raw output is, for those who deploy the model

    @property
    def metric_info(self) -> Mapping[str, MetricInfo]:
        """Every metric that `metrics().compute()` gives, in its order, with the target's unit."""

    @property
    def name(self) -> str: ...

    @property
    def kind(self) -> str: ...

    @property
    def target(self) -> str:
        """Name of the target in the data set; the task's own name unless the recipe says otherwise."""

    @property
    def spec(self) -> TargetSpec: ...

    @property
    def channels(self) -> int: ...

    @property
    def dense(self) -> bool: ...

    @property
    def weight(self) -> float: ...

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Scalar loss of a batch; zero (with a graph) where every element is ignored."""

    def metrics(self) -> Metrics:
        """A fresh accumulator."""

    def decode(self, output: Tensor) -> Tensor:
        """The head's raw output as a prediction in the target's own format and unit (of boundaries: probabilities)."""

    def picture(self, value: NDArray[Any], reference: NDArray[Any] | None = None) -> NDArray[np.uint8]:
        """One decoded prediction or target (no batch dimension) as an (H, W, 3) picture.

        `reference` fixes the color scale, so that target and predictions compare.
        """

    def caption(self, value: NDArray[Any]) -> str:
        """One decoded value in words, such as "31.2 years" or "female"; empty for maps."""
