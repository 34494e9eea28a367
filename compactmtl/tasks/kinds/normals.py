"""Surface normals: one unit vector a pixel, in the camera frame."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from compactmtl.tasks import pictures
from compactmtl.tasks.base import Array, MapTask, MetricInfo
from compactmtl.tasks.common import nothing_valid
from compactmtl.tasks.decoding import Decoding

if TYPE_CHECKING:
    from torch import Tensor

TINY = 1e-12  # the length below which a vector is not made longer, as torch's normalize has it


class NormalsTask(MapTask):
    """Vectors (B, 3, H, W) of any length against unit normals of that shape; a target of 0 or with an element
    that is not finite is unknown.

    Loss: 1 - cos of the angle to the target, over known pixels. Metrics over all known pixels of the split at once:
    `mean_angle` and `median_angle` in degrees, `within_11_25`, `within_22_5`, `within_30` as shares. The median is
    within 0.0001° of that of the angles, all others are exact.
    """

    target_kind = "normals"
    channels = 3
    losses = ("cosine",)
    primary = "mean_angle"
    meaning = "surface normal at each pixel (x right, y down, z forward), of any length; divide by its length"
    values = "vector"
    axis = "x, y, z"
    metric_info: ClassVar[Mapping[str, MetricInfo]] = {
        "mean_angle": MetricInfo(higher_is_better=False, unit="°"),
        "median_angle": MetricInfo(higher_is_better=False, unit="°"),
        "within_11_25": MetricInfo(higher_is_better=True, share=True),
        "within_22_5": MetricInfo(higher_is_better=True, share=True),
        "within_30": MetricInfo(higher_is_better=True, share=True),
    }
    error_scale = 30.0  # degrees: the loosest threshold that papers report
    uncertainty_scale = 0.5
    sureness = "mirror"

    def known(self, target: Tensor) -> Tensor:
        """Where a target counts: bool (B, H, W)."""
        return (target != 0).any(1) & target.isfinite().all(1)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        from torch.nn.functional import cosine_similarity

        from compactmtl.tasks.losses import at_least_float32, masked_mean

        known = self.known(target)
        # Masked before the arithmetic: a NaN target would make a NaN gradient.
        target = target.where(known[:, None], target.new_zeros(()))
        return masked_mean(1 - cosine_similarity(at_least_float32(output), target, dim=1), known)

    def disagreement(self, one: Tensor, other: Tensor) -> Tensor:
        """The angle between the two in degrees, (B, H, W)."""
        return angles(one, other)

    def metrics(self) -> NormalsMetrics:
        return NormalsMetrics(self)

    def decode(self, output: Tensor) -> Tensor:
        """Unit vectors (B, 3, H, W)."""
        from torch.nn.functional import normalize

        return normalize(output, dim=1)

    @property
    def decoding(self) -> Decoding:
        return Decoding(
            op="unit_vector",
            how="divide the three numbers along axis 1 by the root of the sum of their squares",
            gives="unit vector at each pixel: x to the right, y down, z away from the camera",
        )

    def decode_array(self, output: Array) -> Array:
        length = np.sqrt(np.square(output).sum(1, keepdims=True))
        unit: Array = output / np.maximum(length, TINY)
        return unit

    def picture(self, value: Array, reference: Array | None = None) -> pictures.Picture:
        return pictures.normals_picture(value)


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
    return sine.atan2(cosine).rad2deg()


BINS = 2**20  # of 180°: 0.00017° each, 8 MiB in all, however many pixels a split has
THRESHOLDS = {"within_11_25": 11.25, "within_22_5": 22.5, "within_30": 30.0}


class NormalsMetrics:
    """How many known pixels of the split have which angle, and the sum of the angles.

    Every state is a sum over pixels: those of parts of a split add up to those of the split (`merge`).
    """

    def __init__(self, task: NormalsTask) -> None:
        self._task = task
        self._total = np.zeros((), np.float64)  # of the angles; NaN from the first angle that is none
        self._within = np.zeros(len(THRESHOLDS), np.int64)
        self._counts = np.zeros(BINS, np.int64)

    def update(self, output: Tensor, target: Tensor) -> None:
        from compactmtl.tasks.losses import at_least_float32

        known = self._task.known(target)
        values = angles(at_least_float32(output), at_least_float32(target))[known].cpu().numpy()
        self._total += values.sum(dtype=np.float64)
        self._within += [int((values < threshold).sum()) for threshold in THRESHOLDS.values()]
        values = np.where(np.isnan(values), np.float32(180), values)  # the mean says that there was one
        places = (values.astype(np.float64) * (BINS / 180)).astype(np.int64)
        self._counts += np.bincount(np.minimum(places, BINS - 1), minlength=BINS)

    def merge(self, other: NormalsMetrics) -> None:
        """Add what another has counted, of other images of the same split."""
        self._total += other._total
        self._counts += other._counts
        self._within += other._within

    def sums(self) -> list[Tensor]:
        """The live counts and sums."""
        import torch

        return [torch.from_numpy(one) for one in (self._total, self._within, self._counts)]

    def compute(self) -> dict[str, float]:
        """Raises DataError where no pixel of the split is known."""
        known = int(self._counts.sum())
        if known == 0:
            raise nothing_valid(self._task.name)
        mean = float(self._total) / known
        return {
            "mean_angle": mean,
            "median_angle": math.nan if math.isnan(mean) else self._median(known),
            **{name: count / known for name, count in zip(THRESHOLDS, self._within.tolist(), strict=True)},
        }

    def _median(self, known: int) -> float:
        """The mean of the middle two of all angles, each taken as the middle of its bin."""
        ranks = np.array([(known + 1) // 2, known // 2 + 1])
        bins = np.searchsorted(np.cumsum(self._counts), ranks)
        return float((bins + 0.5).mean()) * (180 / BINS)
