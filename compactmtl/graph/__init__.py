"""The channel graph: traced once, read by sparsity (coupled groups) and by surgery (what is dead)."""

from compactmtl.graph.channel_graph import ChannelGraph
from compactmtl.graph.cost import Cost, LayerCost, cost
from compactmtl.graph.groups import GroupFamily, Member

__all__ = ["ChannelGraph", "Cost", "GroupFamily", "LayerCost", "Member", "cost"]
