"""The whole road in one command: dense network, latency table, shrinking, surgery, export, verification, report."""

from compactmtl.fit.compose import Budget, Road, plan_road
from compactmtl.fit.stages import fit
from compactmtl.fit.summary import Outcome

__all__ = ["Budget", "Outcome", "Road", "fit", "plan_road"]
