"""A kind of task of somebody's own, as the text of its module: distance as a share of the way to a limit."""

FAR = '''
from typing import TYPE_CHECKING

import numpy as np

from compactmtl.config.recipe import Frozen, Positive
from compactmtl.tasks import MapTask, MetricInfo, pictures
from compactmtl.tasks.numeric import sigmoid

if TYPE_CHECKING:
    from torch import Tensor


class FarOptions(Frozen):
    limit: Positive = 10.0


class Far(MapTask):
    """Logits (B, 1, H, W) of depth / limit."""

    options: FarOptions
    Options = FarOptions
    target_kind = "depth"
    channels = 1
    losses = ("l1",)
    primary = "error"
    metric_info = {"error": MetricInfo(higher_is_better=False, unit="m")}
    postprocess = ("sigmoid",)
    distillation = "sigmoid"
    uncertainty_scale = 0.5

    def known(self, target):
        return target > 0

    def loss(self, output, target):
        from compactmtl.tasks.losses import masked_mean

        return masked_mean((self.decode(output) - target).abs(), self.known(target))

    def metrics(self):
        return FarMetrics(self)

    def decode(self, output):
        return output.float().sigmoid() * self.options.limit

    def decode_array(self, output):
        return sigmoid(output.astype(np.float32)) * np.float32(self.options.limit)

    def picture(self, value, reference=None):
        return pictures.depth_picture(value, reference)

    def legend(self, value):
        return ((None, f"{value.mean():.2f} m in the mean"),)

    def summary(self, value, probabilities):
        return {"mean": float(value.mean()), "limit": self.options.limit}


class FarMetrics:
    def __init__(self, task):
        self.task, self.total, self.count = task, 0.0, 0

    def update(self, output, target):
        known = self.task.known(target)
        self.total += float((self.task.decode(output) - target)[known].abs().double().sum())
        self.count += int(known.sum())

    def compute(self):
        return {"error": self.total / self.count}
'''
