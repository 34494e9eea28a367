"""How the losses of several tasks become the one that is minimized."""

from compactmtl.balancing.base import Balancer, balancer
from compactmtl.balancing.equal import Equal
from compactmtl.balancing.uncertainty import Uncertainty

__all__ = ["Balancer", "Equal", "Uncertainty", "balancer"]
