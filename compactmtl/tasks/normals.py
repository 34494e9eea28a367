"""Surface normals: one unit vector a pixel, in the camera frame."""

from __future__ import annotations

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
    exact: four bytes a pixel of the split are kept for it.
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


class NormalsMetrics:
    """The angle of every known pixel of the split, float32."""

    def __init__(self, task: NormalsTask) -> None:
        self._name = task.name
        self._angles: list[NDArray[np.float32]] = []

    def update(self, output: Tensor, target: Tensor) -> None:
        found = angles(output.float(), target.float())
        self._angles.append(found[known_normals(target)].cpu().numpy())

    def compute(self) -> dict[str, float]:
        """Raises DataError where no pixel of the split is known."""
        found = np.concatenate(self._angles) if self._angles else np.empty(0, np.float32)
        if found.size == 0:
            raise nothing_valid(self._name)
        return {
            "mean_angle": float(found.mean(dtype=np.float64)),
            "median_angle": float(np.median(found)),
            "within_11_25": float((found < 11.25).mean()),
            "within_22_5": float((found < 22.5).mean()),
            "within_30": float((found < 30).mean()),
        }
