"""Structured sparsity: channel groups, the group lasso, its proximal step, and shrinking to a target."""

from __future__ import annotations

from typing import Any

from compactmtl.sparsity.control import Control, StrengthSchedule
from compactmtl.sparsity.controller import StrengthController
from compactmtl.sparsity.groups import ChannelGroups, split_parameter_groups, zero_share
from compactmtl.sparsity.kinds import channel_groups
from compactmtl.sparsity.latency import LatencyTable
from compactmtl.sparsity.layer_latency import LayerLatency
from compactmtl.sparsity.penalties.group_lasso import GroupLasso
from compactmtl.sparsity.penalties.group_mcp import GroupMCP
from compactmtl.sparsity.penalties.sparse_group_lasso import SparseGroupLasso
from compactmtl.sparsity.penalty import Penalty
from compactmtl.sparsity.proximal import ProximalStep
from compactmtl.sparsity.pruning import Pruning
from compactmtl.sparsity.registry import build_penalty
from compactmtl.sparsity.selective import SelectiveShrinking

__all__ = [
    "ChannelGroups",
    "Control",
    "GroupLasso",
    "GroupMCP",
    "LatencyTable",
    "LayerLatency",
    "Penalty",
    "ProximalStep",
    "Pruning",
    "SelectiveShrinking",
    "SparseGroupLasso",
    "StrengthController",
    "StrengthSchedule",
    "build_penalty",
    "channel_groups",
    "split_parameter_groups",
    "zero_share",
]


def __getattr__(name: str) -> Any:
    """`Shrinking` is asked for here, and lives in `loops`: it measures latency, which this package is given as a table."""
    if name == "Shrinking":
        import compactmtl

        return compactmtl.Shrinking
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
