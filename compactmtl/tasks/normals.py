"""Surface normals: one unit vector a pixel, in the camera frame."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from compactmtl.config.recipe import Frozen, TaskConfig
from compactmtl.tasks import pictures
from compactmtl.tasks.base import MetricInfo, TargetSpec
from compactmtl.tasks.common import check_spec, choose_loss, masked_mean, nothing_valid, read_options


class NormalsOptions(Frozen):
    """A normals task has no options yet."""


@dataclass(frozen=True)
class NormalsTask:
    """Vectors (B, 3, H, W) of any length against unit normals of that shape; a target of 0 is unknown.

    Loss: 1 - cos of the angle to the target, over known pixels. Metrics over all known pixels of the split at once:
    `mean_angle` and `median_angle` in degrees, `within_11_25`, `within_22_5`, `within_30` as shares. The median is
    within 0.0001° of that of the float32 angles, all others are exact.
    """

    name: str
    target: str
    spec: TargetSpec
    weight: float
    loss_name: str
    options: NormalsOptions

    kind: ClassVar[str] = "normals"
    dense: ClassVar[bool] = True
    channels: ClassVar[int] = 3
    losses: ClassVar[tuple[str, ...]] = ("cosine",)
    primary: ClassVar[str] = "mean_angle"
    meaning: ClassVar[str] = (
        "surface normal at each pixel (x right, y down, z forward), of any length; divide by its length"
    )
    metric_info: ClassVar[Mapping[str, MetricInfo]] = {
        "mean_angle": MetricInfo(higher_is_better=False, unit="°"),
        "median_angle": MetricInfo(higher_is_better=False, unit="°"),
        "within_11_25": MetricInfo(higher_is_better=True, share=True),
        "within_22_5": MetricInfo(higher_is_better=True, share=True),
        "within_30": MetricInfo(higher_is_better=True, share=True),
    }

    @classmethod
    def build(cls, name: str, config: TaskConfig, spec: TargetSpec) -> Self:
        """Raises ConfigError where target, loss or options do not fit."""
        check_spec(name, config, spec, "normals")
        options = read_options(NormalsOptions, name, config)
        loss = choose_loss(name, config, cls.losses)
        return cls(name, config.target or name, spec, config.weight, loss, options)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        cosine = F.cosine_similarity(output.float(), target, dim=1)
        return masked_mean(1 - cosine, known_normals(target))

    def metrics(self) -> NormalsMetrics:
        return NormalsMetrics(self)

    def decode(self, output: Tensor) -> Tensor:
        """Unit vectors (B, 3, H, W)."""
        return F.normalize(output, dim=1)

    def picture(self, value: NDArray[Any], reference: NDArray[Any] | None = None) -> NDArray[np.uint8]:
        return pictures.normals_picture(value)

    def caption(self, value: NDArray[Any]) -> str:
        return ""


def known_normals(target: Tensor) -> Tensor:
    """Where normals (B, 3, H, W) count: bool (B, H, W)."""
    return (target != 0).any(1)


def angles(a: Tensor, b: Tensor) -> Tensor:
    """Angles in degrees between vectors (B, 3, ...) of any length, (B, ...); 90 where one has no direction.

    By the arc tangent: the arc cosine of a float32 dot product is off by up to 0.03° near 0 and 180°.
    """
    (ax, ay, az), (bx, by, bz) = a.unbind(1), b.unbind(1)
    # Written out: torch.linalg.cross and a norm along a strided dimension take six times as long on a CPU.
    sine = ((ay * bz - az * by).square() + (az * bx - ax * bz).square() + (ax * by - ay * bx).square()).sqrt()
    cosine = ax * bx + ay * by + az * bz
    # atan2(0, 0) is 0: a dead head's zeros would score as a perfect prediction.
    sine = sine.masked_fill((sine == 0) & (cosine == 0), 1.0)
    return torch.rad2deg(torch.atan2(sine, cosine))


BINS = 2**20  # of 180°: 0.00017° each, 8 MiB in all, however many pixels a split has
THRESHOLDS = {"within_11_25": 11.25, "within_22_5": 22.5, "within_30": 30.0}


class NormalsMetrics:
    """How many known pixels of the split have which angle, and the sum of the angles.

    Every state is a sum over pixels: those of parts of a split add up to those of the split (`merge`).
    """

    def __init__(self, task: NormalsTask) -> None:
        self._name = task.name
        self._total = np.float64(0)  # of the angles; NaN from the first angle that is none
        self._within = dict.fromkeys(THRESHOLDS, 0)
        self._counts = np.zeros(BINS, np.int64)

    def update(self, output: Tensor, target: Tensor) -> None:
        found = angles(output.float(), target.float())
        values = found[known_normals(target)].cpu().numpy()
        self._total += values.sum(dtype=np.float64)
        for name, threshold in THRESHOLDS.items():
            self._within[name] += int((values < threshold).sum())
        values = np.where(np.isnan(values), np.float32(180), values)  # the mean says that there was one
        places = (values.astype(np.float64) * (BINS / 180)).astype(np.int64)
        self._counts += np.bincount(np.minimum(places, BINS - 1), minlength=BINS)

    def merge(self, other: NormalsMetrics) -> None:
        """Add what another has counted, of other images of the same split."""
        self._total += other._total
        self._counts += other._counts
        for name in THRESHOLDS:
            self._within[name] += other._within[name]

    def compute(self) -> dict[str, float]:
        """Raises DataError where no pixel of the split is known."""
        known = int(self._counts.sum())
        if known == 0:
            raise nothing_valid(self._name)
        mean = float(self._total) / known
        return {
            "mean_angle": mean,
            "median_angle": math.nan if math.isnan(mean) else self._median(known),
            **{name: count / known for name, count in self._within.items()},
        }

    def _median(self, known: int) -> float:
        """The mean of the middle two of all angles, each taken as the middle of its bin."""
        ranks = np.array([(known + 1) // 2, known // 2 + 1])
        bins = np.searchsorted(np.cumsum(self._counts), ranks)
        return float((bins + 0.5).mean()) * (180 / BINS)
