"""Multilabel: for each of several classes whether an image has it, such as the attributes of a face."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
from pydantic import Field

from compactmtl.config.recipe import Frozen, Share
from compactmtl.errors import DataError
from compactmtl.tasks.base import Array, MetricInfo, ValueTask
from compactmtl.tasks.common import nothing_valid
from compactmtl.tasks.decoding import Decoding
from compactmtl.tasks.numeric import sigmoid
from compactmtl.tasks.summaries import labels_text

if TYPE_CHECKING:
    from torch import Tensor

UNKNOWN = -1


class MultilabelOptions(Frozen):
    """Options of a multilabel task."""

    gamma: Annotated[float, Field(ge=1)] = 2.0  # of the focal loss: how little easy labels count
    alpha: Share | None = None  # of the focal loss: weight of a present label, 1 - alpha of an absent one
    per_class: bool = False  # also report the accuracy of each class


class MultilabelTask(ValueTask):
    """Logits (B, K) against float32 (B, K): 1 present, 0 absent, -1 unknown, which counts nowhere.

    Losses, means over the known labels: `bce`; `focal`, arXiv:1708.02002, eq. 5. A label is predicted where its
    probability is above one half.

    Metrics over the known labels of the split: `accuracy`, the mean over classes of the share that is right, and
    `mean_f1`, the mean over classes of 2 TP / (2 TP + FP + FN). A class of which nothing is known has no part in
    either, nor has one that is neither there nor predicted in the F1 (1 where that is so of every class). With the
    option `per_class` also `accuracy_<class>`; a class of which nothing is known is then an error.
    """

    options: MultilabelOptions
    Options = MultilabelOptions
    target_kind = "multilabel"
    least_classes = 1
    losses = ("bce", "focal")
    option_losses: ClassVar[Mapping[str, Sequence[str]]] = {"gamma": ("focal",), "alpha": ("focal",)}
    primary = "mean_f1"
    meaning = "logit of each label; a label is predicted where it is above 0, its sigmoid is the probability"
    values = "logits"
    axis = "label"
    postprocess = ("sigmoid",)
    distillation = "sigmoid"
    sureness = "probability"
    mixup = "loss"

    @property
    def channels(self) -> int:
        return len(self.spec.classes)

    @property
    def metric_info(self) -> Mapping[str, MetricInfo]:
        share = MetricInfo(higher_is_better=True, share=True)
        info = {"mean_f1": share, "accuracy": share}
        if self.options.per_class:
            # The mean counts in Δm; its parts would count a second time.
            one = MetricInfo(higher_is_better=True, share=True, gain=False)
            info |= {f"accuracy_{label}": one for label in self.spec.classes}
        return info

    def known(self, target: Tensor) -> Tensor:
        """Where a target counts: bool (B, K)."""
        return target != UNKNOWN

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        from torch.nn.functional import binary_cross_entropy_with_logits

        from compactmtl.tasks.losses import at_least_float32, binary_focal, masked_mean

        known = self.known(target)
        if self.loss_name == "focal":
            return binary_focal(output, target, known, self.options.gamma, self.options.alpha)
        logits = at_least_float32(output)
        labels = target.where(known, target.new_zeros(())).to(logits.dtype)
        values = binary_cross_entropy_with_logits(logits, labels, reduction="none")
        return masked_mean(values, known)

    def metrics(self) -> MultilabelMetrics:
        return MultilabelMetrics(self)

    def decode(self, output: Tensor) -> Tensor:
        """1 where a label is predicted, else 0: float32 (B, K)."""
        return (output > 0).float()

    def certainty(self, output: Tensor) -> Tensor:
        """The probability that a label is there, or of one that is not predicted that it is not: (B, K)."""
        from compactmtl.tasks.losses import at_least_float32

        return at_least_float32(output).abs().sigmoid()

    @property
    def decoding(self) -> Decoding:
        return Decoding(
            op="threshold",
            how="a label is there where its logit is above 0; the sigmoid of the logit is its probability",
            gives="1 for each label that the picture has, else 0",
            threshold=0.0,
        )

    def decode_array(self, output: Array) -> Array:
        return (output > 0).astype(np.float32)

    def probabilities(self, output: Array) -> dict[str, float]:
        """The sigmoid of each logit, by class name."""
        return dict(zip(self.spec.classes, sigmoid(output.astype(np.float32)).tolist(), strict=True))

    def caption(self, value: Array) -> str:
        """The classes that are present, such as "Smiling, Young", and "none" where none is."""
        return labels_text(value, self.spec.classes)

    def summary(self, value: Array, probabilities: Mapping[str, float]) -> dict[str, Any]:
        present = [name for name, there in zip(self.spec.classes, value, strict=True) if there]
        return {"classes": present, "probabilities": dict(probabilities)}


class MultilabelMetrics:
    """For each class the counts of target by prediction over the known labels of the split."""

    def __init__(self, task: MultilabelTask) -> None:
        import torch

        self._task = task
        self._counts = torch.zeros(task.channels, 2, 2, dtype=torch.int64)  # class, target, prediction

    def update(self, output: Tensor, target: Tensor) -> None:
        """Raises DataError for a label that is none of 1, 0 and -1."""
        output, target = output.cpu(), target.cpu()
        wrong = (target != 1) & (target != 0) & (target != UNKNOWN)
        if wrong.any():
            raise DataError(
                f"task {self._task.name!r}: label {float(target[wrong][0]):g} is none of 1 (present), 0 (absent) "
                "and -1 (unknown)",
                "mend the target, or the data set that gives it",
            )
        predicted = output > 0
        for truth in (0, 1):
            here = target == truth
            self._counts[:, truth, 1] += (here & predicted).sum(0)
            self._counts[:, truth, 0] += (here & ~predicted).sum(0)

    def sums(self) -> list[Tensor]:
        """The live counts."""
        return [self._counts]

    def compute(self) -> dict[str, float]:
        """Raises DataError where no label of the split is known."""
        counts = self._counts.double()
        total = counts.sum((1, 2))
        known = total > 0
        if not known.any():
            raise nothing_valid(self._task.name)
        accuracy = (counts[:, 0, 0] + counts[:, 1, 1]) / total
        hits = 2 * counts[:, 1, 1]
        size = hits + counts[:, 0, 1] + counts[:, 1, 0]
        there = size > 0
        values = {
            "mean_f1": float((hits[there] / size[there]).mean()) if there.any() else 1.0,
            "accuracy": float(accuracy[known].mean()),
        }
        if self._task.options.per_class:
            if not known.all():
                label = self._task.spec.classes[int((~known).nonzero()[0])]
                raise DataError(
                    f"task {self._task.name!r}: no image of the split has a known label of {label!r}, so it has no "
                    "accuracy",
                    "leave that class out of the data set's classes, or set per_class: false",
                )
            values |= {
                f"accuracy_{label}": float(value)
                for label, value in zip(self._task.spec.classes, accuracy, strict=True)
            }
        return values
