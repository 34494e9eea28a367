"""Turn the choice of channels into a plan: slices, merged carriers, folded constants, groups."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import nn

from compactmtl.graph.analysis import Product
from compactmtl.graph.channel_graph import ChannelGraph
from compactmtl.graph.space import Flags
from compactmtl.surgery.analyse import carrier_of, removed_constants
from compactmtl.surgery.plan import BiasShift, Merge, Plan, Slice, signature


def write_plan(graph: ChannelGraph, model: nn.Module, alive: Flags) -> Plan:
    """The edits that leave exactly the `alive` classes, (classes,)."""
    slices = []
    for binding in graph.analysis.bindings.values():
        keep = np.flatnonzero(alive[graph.labels[binding.ids]])
        if len(keep) < len(binding.ids):
            slices.append(
                Slice(tensor=binding.name, dim=binding.dim, size=len(binding.ids), keep=tuple(keep.tolist()))
            )
    merges, biases, groups = [], [], {}
    for product in graph.analysis.products:
        kept_outputs = alive[graph.labels[product.outputs]]
        if product.kind == "depthwise" and not kept_outputs.all():
            repeat = len(product.outputs) // product.input_size
            groups[product.name] = int(kept_outputs.sum()) // repeat
        constants = removed_constants(graph, product, alive)
        if not constants.any():
            continue
        if product.padded:
            merges.append(_merge(graph, product, alive, constants))
        else:
            values = _fold(graph, product, constants)[kept_outputs]
            if values.any():
                name = product.bias or f"{product.name}.bias".lstrip(".")
                biases.append(BiasShift(bias=name, values=tuple(values.tolist()), new=product.bias is None))
    return Plan(
        signature=signature(model),
        merges=tuple(merge for merge in merges if merge.sources),
        slices=tuple(slices),
        biases=tuple(biases),
        groups=groups,
    )


def _merge(graph: ChannelGraph, product: Product, alive: Flags, constants: Flags) -> Merge:
    carrier = carrier_of(graph, product, alive)
    assert carrier is not None and product.input_node is not None
    values = graph.analysis.values[product.input_node]
    sources = [int(source) for source in np.flatnonzero(constants) if source != carrier]
    ratios = [float(values[source] / values[carrier]) for source in sources]
    return Merge(weight=product.weight, carrier=carrier, sources=tuple(sources), ratios=tuple(ratios))


def _fold(graph: ChannelGraph, product: Product, constants: Flags) -> NDArray[np.float64]:
    """What the constant inputs add to every output, (outputs,)."""
    assert product.input_node is not None
    weight = next(value for name, value in graph.analysis.traced.tensors.values() if name == product.weight)
    matrix = weight.detach().double().flatten(2).sum(2) if weight.ndim > 2 else weight.detach().double()
    values = graph.analysis.values[product.input_node]
    result: NDArray[np.float64] = matrix.cpu().numpy()[:, constants] @ values[constants]
    return result
