"""Blocks under `torch.autocast(enabled=False)` or a grad mode made part of the graph: in eval mode they change nothing."""

from __future__ import annotations

import torch
from torch import fx


def inline_contexts(module: fx.GraphModule) -> None:
    """Put the calls of such blocks in the place of the one call that stands for them.

    An autocast that is on changes types on its way: its block stays one call, without a rule.
    """
    graph = module.graph
    for call in list(graph.nodes):
        body = _body(module, call)
        if body is None:
            continue
        inline_contexts(body)
        if any(node.op == "get_attr" for node in body.graph.nodes):
            continue  # calls of other functions, under names that are the block's own
        holders = [node for node in body.graph.nodes if node.op == "placeholder"]
        given = dict(zip(holders, call.args[-len(holders) :] if holders else (), strict=True))
        with graph.inserting_before(call):
            results = graph.graph_copy(body.graph, given)
        for part in list(call.users):
            part.replace_all_uses_with(results[part.args[1]])  # type: ignore[index]
            graph.erase_node(part)
        graph.erase_node(call)


def _body(module: fx.GraphModule, call: fx.Node) -> fx.GraphModule | None:
    """The block's own graph, where the call stands for a block that changes nothing."""
    if call.op != "call_function":
        return None
    if call.target is torch.ops.higher_order.wrap_with_set_grad_enabled:
        block = call.args[1]
    elif call.target is torch.ops.higher_order.wrap_with_autocast and call.args[2] is False:
        block = call.args[4]
    else:
        return None
    assert isinstance(block, fx.Node)
    body = getattr(module, str(block.target))
    assert isinstance(body, fx.GraphModule)
    return body
