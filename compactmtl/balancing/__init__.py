"""How the losses of several tasks become what is minimized: balancing, and regularization of the shared features."""

from compactmtl.balancing.base import Balancer
from compactmtl.balancing.dgr import DummyGradientNorm
from compactmtl.balancing.gradient import GradientBalancer, balanced_backward
from compactmtl.balancing.methods.equal import Equal
from compactmtl.balancing.methods.uncertainty import Uncertainty
from compactmtl.balancing.registry import NAMES, balancer
from compactmtl.balancing.statistics import still_statistics

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
