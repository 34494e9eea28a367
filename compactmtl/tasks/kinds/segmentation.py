"""Semantic segmentation: one class a pixel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from compactmtl.config.recipe import Frozen
from compactmtl.tasks import pictures
from compactmtl.tasks.base import Array, Legend, MapTask, MetricInfo
from compactmtl.tasks.decoding import Decoding
from compactmtl.tasks.summaries import LEGEND_CLASSES, class_colors, class_shares

if TYPE_CHECKING:
    from torch import Tensor


class SegmentationOptions(Frozen):
    """Options of a segmentation task."""

    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0  # of the cross-entropy
    gamma: Annotated[float, Field(ge=1)] = 2.0  # of the focal loss: how little easy pixels count


class SegmentationTask(MapTask):
    """Logits (B, K, H, W) against a mask int64 (B, H, W).

    Losses over the pixels that count: `cross_entropy`; `dice`, 1 - the mean soft Dice of the classes in the batch;
    `cross_entropy_dice`, their sum; `focal`, cross-entropy that weighs hard pixels more (see `losses`).
    Metrics, exact over the split: `miou`, the mean intersection over union of the classes present in the target
    or in the prediction, and `pixel_accuracy`. Raises DataError for a label outside the classes.
    """

    options: SegmentationOptions
    Options = SegmentationOptions
    target_kind = "mask"
    least_classes = 2
    losses = ("cross_entropy", "dice", "cross_entropy_dice", "focal")
    option_losses: ClassVar[Mapping[str, Sequence[str]]] = {
        "label_smoothing": ("cross_entropy", "cross_entropy_dice"),
        "gamma": ("focal",),
    }
    primary = "miou"
    meaning = "score (logit) of each class at each pixel; the class with the largest score is the prediction"
    values = "logits"
    axis = "class"
    metric_info: ClassVar[Mapping[str, MetricInfo]] = {
        "miou": MetricInfo(higher_is_better=True, share=True),
        "pixel_accuracy": MetricInfo(higher_is_better=True, share=True),
    }
    postprocess = ("argmax", "softmax")
    distillation = "softmax"
    sureness = "probability"

    @property
    def channels(self) -> int:
        return len(self.spec.classes)

    def known(self, target: Tensor) -> Tensor:
        """Where a target counts: bool (B, H, W)."""
        from compactmtl.tasks.losses import labeled

        return labeled(target, self.spec.ignore_index)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        from compactmtl.tasks.losses import cross_entropy, focal, soft_dice

        ignore = self.spec.ignore_index
        if self.loss_name == "focal":
            return focal(output, target, ignore, self.options.gamma)
        if self.loss_name == "dice":
            return soft_dice(output, target, ignore)
        loss = cross_entropy(output, target, ignore, self.options.label_smoothing)
        return loss + soft_dice(output, target, ignore) if self.loss_name == "cross_entropy_dice" else loss

    def metrics(self) -> SegmentationMetrics:
        return SegmentationMetrics(self)

    def decode(self, output: Tensor) -> Tensor:
        """Class index int64 (B, H, W)."""
        # argmax along a strided dimension takes four times as long on a CPU (torch 2.14)
        return output.max(1).indices

    def certainty(self, output: Tensor) -> Tensor:
        """The softmax of the class, (B, H, W)."""
        from compactmtl.tasks.losses import at_least_float32

        return at_least_float32(output).softmax(1).amax(1)

    @property
    def decoding(self) -> Decoding:
        return Decoding(
            op="argmax",
            how="take the index of the largest score along axis 1; the softmax of the scores along axis 1 is each class's "
            "probability",
            gives="index of the class of each pixel, from 0",
        )

    def decode_array(self, output: Array) -> Array:
        index: Array = output.argmax(1)
        return index

    @property
    def unknown(self) -> int | None:
        """The ignore index, or else 255."""
        return 255 if self.spec.ignore_index is None else self.spec.ignore_index

    def picture(self, value: Array, reference: Array | None = None) -> pictures.Picture:
        return pictures.mask_picture(value, len(self.spec.classes))

    def legend(self, value: Array) -> Legend:
        """The largest classes with their shares of the pixels."""
        colors = class_colors(self.spec.classes)
        shares = list(class_shares(value, self.spec.classes).items())[:LEGEND_CLASSES]
        return tuple((colors[name], f"{name} {share:.0%}") for name, share in shares)

    def summary(self, value: Array, probabilities: Mapping[str, float]) -> dict[str, Any]:
        return {"pixel_shares": class_shares(value, self.spec.classes)}


class SegmentationMetrics:
    """Counts of target class by predicted class over the whole split."""

    def __init__(self, task: SegmentationTask) -> None:
        from compactmtl.tasks.confusion import ConfusionMatrix

        self._task = task
        self._confusion = ConfusionMatrix(task.name, task.spec)

    def update(self, output: Tensor, target: Tensor) -> None:
        self._confusion.update(self._task.decode(output), target)

    def sums(self) -> list[Tensor]:
        """The live counts."""
        return self._confusion.sums()

    def compute(self) -> dict[str, float]:
        """Raises DataError where no pixel of the split counts."""
        counts = self._confusion.compute()
        right = counts.diagonal()
        union = counts.sum(0) + counts.sum(1) - right
        present = union > 0
        return {
            "miou": float((right[present] / union[present]).mean()),
            "pixel_accuracy": float(right.sum() / counts.sum()),
        }
