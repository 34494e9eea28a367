"""Structured sparsity: channel groups, the group lasso, its proximal step, and shrinking to a target."""

from compactmtl.sparsity.groups import ChannelGroups, channel_groups, split_parameter_groups, zero_share
from compactmtl.sparsity.penalty import GroupLasso
from compactmtl.sparsity.proximal import ProximalStep
from compactmtl.sparsity.selective import SelectiveShrinking

__all__ = [
    "ChannelGroups",
    "GroupLasso",
    "ProximalStep",
    "SelectiveShrinking",
    "channel_groups",
    "split_parameter_groups",
    "zero_share",
]
