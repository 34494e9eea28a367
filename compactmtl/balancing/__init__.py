"""How the losses of several tasks become what is minimized: balancing, and regularization of the shared features."""

from compactmtl.balancing.base import Balancer
from compactmtl.balancing.build import NAMES, balancer
from compactmtl.balancing.dgr import DummyGradientNorm
from compactmtl.balancing.equal import Equal
from compactmtl.balancing.gradient import GradientBalancer, balanced_backward
from compactmtl.balancing.statistics import still_statistics
from compactmtl.balancing.uncertainty import Uncertainty

__all__ = [
    "NAMES",
    "Balancer",
    "DummyGradientNorm",
    "Equal",
    "GradientBalancer",
    "Uncertainty",
    "balanced_backward",
    "balancer",
    "still_statistics",
]
