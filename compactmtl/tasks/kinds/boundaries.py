"""Boundaries: where one class of a mask meets another, one probability a pixel.

Sources: the loss, arXiv:1504.06375 (HED), eq. 2; the fixed weight, arXiv:1904.08918 (0.95 for boundaries); the
F-measure at the best threshold of the data set (ODS), Martin, Fowlkes and Malik, "Learning to detect natural image
boundaries", PAMI 2004, without its thinning and its one-to-one matching.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
from pydantic import Field

from compactmtl.config.recipe import Frozen, Share
from compactmtl.errors import DataError
from compactmtl.tasks import pictures
from compactmtl.tasks.base import Array, Legend, MapTask, MetricInfo
from compactmtl.tasks.common import nothing_valid
from compactmtl.tasks.decoding import Decoding
from compactmtl.tasks.numeric import sigmoid

if TYPE_CHECKING:
    from torch import Tensor

THRESHOLDS = 99  # 0.01 to 0.99, as the benchmark of Berkeley has them


class BoundariesOptions(Frozen):
    """Options of a boundaries task. Distances are in pixels along rows and columns, whichever is the greater."""

    radius: Annotated[int, Field(ge=1)] = 1  # a pixel is a boundary where another class is this near
    tolerance: Annotated[int, Field(ge=0)] = 2  # a prediction this near to a boundary is right
    edge_weight: Share | None = (
        None  # of a boundary's loss, 1 - it of another's; none: the image's share of others
    )


class BoundariesTask(MapTask):
    """Logits (B, 1, H, W) against the boundaries of a mask int64 (B, H, W).

    A pixel is a boundary where a pixel of another class is within `radius`. It is unknown where its own class is
    ignored, or where an ignored pixel is within `radius` and none of another class, and then counts nowhere.

    Loss: `weighted_bce`, the mean over known pixels of w_t times the binary cross-entropy, where boundaries weigh w
    and others 1 - w. Without `edge_weight` w is the share of the image's known pixels that are no boundary, so that
    both sides weigh the same; an image without a boundary then has no loss.

    Metrics over the known pixels of the split, at the threshold of 0.01 to 0.99 where the F-measure is greatest:
    `ods_f`, 2 P R / (P + R); `precision` P, the share of predicted boundary pixels within `tolerance` of a true one;
    `recall` R, the share of true ones within `tolerance` of a predicted one. Predictions are neither thinned nor
    matched one to one, so figures are not comparable with those of the Berkeley benchmark.
    """

    options: BoundariesOptions
    Options = BoundariesOptions
    target_kind = "mask"
    least_classes = 2
    usual = False
    channels = 1
    losses = ("weighted_bce",)
    primary = "ods_f"
    meaning = "logit of a boundary at each pixel; its sigmoid is the probability"
    values = "logits"
    axis = "value"
    metric_info: ClassVar[Mapping[str, MetricInfo]] = {
        "ods_f": MetricInfo(higher_is_better=True, share=True),
        "precision": MetricInfo(higher_is_better=True, share=True, gain=False),
        "recall": MetricInfo(higher_is_better=True, share=True, gain=False),
    }
    postprocess = ("sigmoid",)
    distillation = "sigmoid"

    def edges(self, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Of a mask (B, H, W) where the boundaries are, and where it is known: two bool tensors (B, H, W)."""
        return boundaries(mask, self.spec.ignore_index, self.options.radius)

    def known(self, target: Tensor) -> Tensor:
        """Where a target counts: bool (B, H, W)."""
        return self.edges(target)[1]

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        import torch
        from torch.nn.functional import binary_cross_entropy_with_logits

        from compactmtl.tasks.losses import at_least_float32, masked_mean

        edge, known = self.edges(target)
        logits = at_least_float32(output).squeeze(1)
        if self.options.edge_weight is None:
            plain = (known & ~edge).sum((1, 2), keepdim=True).to(logits.dtype)
            others = plain / known.sum((1, 2), keepdim=True).clamp(min=1)
        else:
            others = logits.new_tensor(self.options.edge_weight)
        weights = torch.where(edge, others, 1 - others)
        values = binary_cross_entropy_with_logits(logits, edge.to(logits.dtype), weights, reduction="none")
        return masked_mean(values, known)

    def metrics(self) -> BoundariesMetrics:
        return BoundariesMetrics(self)

    def decode(self, output: Tensor) -> Tensor:
        """The probability of a boundary, float32 or wider (B, 1, H, W)."""
        from compactmtl.tasks.losses import at_least_float32

        return at_least_float32(output).sigmoid()

    @property
    def decoding(self) -> Decoding:
        return Decoding(
            op="sigmoid",
            how="take the sigmoid, 1 / (1 + exp(-x))",
            gives="probability of a boundary at each pixel",
        )

    def decode_array(self, output: Array) -> Array:
        return sigmoid(output.astype(np.float32))

    @property
    def unknown(self) -> int | None:
        """Not a number: 0 would say that there is no boundary."""
        return None

    def picture(self, value: Array, reference: Array | None = None) -> pictures.Picture:
        """A prediction's probabilities (1, H, W), or the boundaries of a target, a mask (H, W) of integers."""
        if value.ndim == 3:
            return pictures.probability_picture(value[0])
        import torch

        edge, known = self.edges(torch.from_numpy(np.asarray(value, np.int64))[None])
        return pictures.probability_picture(np.where(known[0].numpy(), edge[0].numpy(), np.nan))

    def legend(self, value: Array) -> Legend:
        """The share of boundary pixels."""
        return ((None, f"boundary {_share(value):.1%}"),)

    def summary(self, value: Array, probabilities: Mapping[str, float]) -> dict[str, Any]:
        return {"boundary_share": _share(value)}


def _share(probability: Array) -> float:
    """Share of the pixels that are more likely a boundary than not."""
    return float((probability > 0.5).mean())


def boundaries(mask: Tensor, ignore_index: int | None, radius: int) -> tuple[Tensor, Tensor]:
    """Where a class of a mask (B, H, W) meets another within `radius` pixels, and where that is known: bool, alike."""
    import torch

    valid = torch.ones_like(mask, dtype=torch.bool) if ignore_index is None else mask != ignore_index
    classes = mask.float()  # exact up to 2**24 classes
    nothing = torch.full_like(classes, -torch.inf)
    greatest = _greatest_near(torch.where(valid, classes, nothing), radius)
    least = -_greatest_near(torch.where(valid, -classes, nothing), radius)
    edge = valid & (greatest > least)
    beside_ignored = _greatest_near((~valid).float(), radius) > 0
    return edge, edge | ~beside_ignored


def _greatest_near(values: Tensor, radius: int) -> Tensor:
    """The greatest value (B, H, W) within `radius` pixels along rows and columns, inside the picture."""
    from torch.nn.functional import max_pool2d

    if radius == 0:
        return values
    rows = max_pool2d(values, (2 * radius + 1, 1), 1, (radius, 0))
    return max_pool2d(rows, (1, 2 * radius + 1), 1, (0, radius))


class BoundariesMetrics:
    """Counts over the split for every threshold: predicted, predicted near a boundary, true, true near a prediction."""

    def __init__(self, task: BoundariesTask) -> None:
        import torch

        self._task = task
        self._known = torch.zeros((), dtype=torch.int64)
        # Column k counts pixels whose probability reaches exactly k of the thresholds.
        self._counts = torch.zeros(3, THRESHOLDS + 1, dtype=torch.int64)

    def update(self, output: Tensor, target: Tensor) -> None:
        probability, mask = self._task.decode(output).squeeze(1).cpu(), target.cpu()
        edge, known = self._task.edges(mask)
        near_edge = _greatest_near(edge.float(), self._task.options.tolerance) > 0
        # Nothing is predicted where nothing is known: it could only match by chance.
        shown = probability.where(known, probability.new_full((), -1))
        near = _greatest_near(shown, self._task.options.tolerance)
        self._known += known.sum()
        for row, values in enumerate((shown[known], shown[known & near_edge], near[edge])):
            self._counts[row] += _reached(values).bincount(minlength=THRESHOLDS + 1)

    def sums(self) -> list[Tensor]:
        """The live counts."""
        return [self._known, self._counts]

    def compute(self) -> dict[str, float]:
        """Raises DataError where no pixel of the split is known, or none is a boundary."""
        if self._known == 0:
            raise nothing_valid(self._task.name)
        true = float(self._counts[2].sum())
        if true == 0:
            raise DataError(
                f"task {self._task.name!r}: the masks of the split have no boundary between two classes",
                "run `compactmtl data check NAME root=FOLDER` and look at this target's labels",
            )
        # From counts by threshold to counts at or above each threshold; column 0 is below all of them.
        predicted, right, near = self._counts.flip(1).cumsum(1).flip(1)[:, 1:].double()
        precision = right / predicted.clamp(min=1)
        recall = near / true
        f_measure = 2 * precision * recall / (precision + recall).clamp(min=np.finfo(np.float64).tiny)
        best = int(f_measure.argmax())
        return {
            "ods_f": float(f_measure[best]),
            "precision": float(precision[best]),
            "recall": float(recall[best]),
        }


def _reached(probability: Tensor) -> Tensor:
    """How many of the thresholds each probability is at or above."""
    import torch

    levels = torch.arange(1, THRESHOLDS + 1, dtype=probability.dtype) / (THRESHOLDS + 1)
    return torch.bucketize(probability, levels, right=True)
