"""Turn the choice of channels into a plan: slices, merged carriers, folded constants, scales, groups."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray
from torch import nn
from torch.nn.modules.conv import _ConvNd

from compactmtl.graph.calls import arguments
from compactmtl.graph.channel_graph import ChannelGraph
from compactmtl.graph.effect import Binding, Product
from compactmtl.graph.space import Flags
from compactmtl.surgery.analyse import carriers_of, removed_constants
from compactmtl.surgery.counted import Reading, counted_attributes
from compactmtl.surgery.full_width import full_width_edits, full_width_orders
from compactmtl.surgery.order import Order
from compactmtl.surgery.plan import BiasShift, Gather, Merge, Plan, Scale, Slice, Span, signature
from compactmtl.surgery.thin import Thinned


def write_plan(
    graph: ChannelGraph,
    model: nn.Module,
    alive: Flags,
    thinned: Mapping[str, Thinned] | None = None,
    order: Order | None = None,
    reading: Reading | None = None,
) -> Plan:
    """The edits that leave exactly the `alive` classes, (classes,), and less of the layers whose weights are `thinned`.

    Channels change places as `order` says. `reading` is how the forward is taken to come by its numbers.
    """
    thinned = thinned or {}
    order = order or Order.unchanged(graph.classes)
    reading = reading or Reading()
    kept = _thinned_dims(graph, thinned)
    full_widths = full_width_orders(graph, alive, order)
    slices = []
    for binding in graph.bindings:
        keep = full_widths.get((binding.name, binding.dim))
        if keep is None:
            labels = graph.labels[binding.ids]
            keep = order.kept(labels, alive[labels])
            stays = kept.get((binding.name, binding.dim))
            keep = keep if stays is None else keep[stays[keep]]
        if len(keep) < len(binding.ids) or (np.diff(keep) < 0).any():
            slices.append(_slice(binding, keep))
    modules = dict(model.named_modules())
    merges: list[Merge] = []
    biases, groups = [], {}
    for product in graph.products:
        labels = graph.labels[product.outputs]
        kept_outputs = alive[labels]
        # Where a forward calls the function itself it counts the groups: see `counted_attributes`.
        if product.groups > 1 and isinstance(modules.get(product.name), _ConvNd):
            remaining = int(kept_outputs.reshape(product.groups, -1).any(1).sum())
            if remaining < product.groups:
                groups[product.name] = remaining
        thin = thinned.get(product.weight or "")
        constants = removed_constants(graph, product, alive)
        if thin is not None:
            besides = _folded_besides(graph, product, thin)
            constants = constants | besides if len(constants) else besides
        if not constants.any():
            continue
        if product.padded:
            merges += _merges(graph, product, alive, constants)
        else:
            written = order.kept(labels, kept_outputs)
            if thin is not None and thin.outputs is not None:
                written = written[thin.outputs[written]]
            values = _fold(graph, product, constants)[written]
            if values.any():
                name = product.bias or f"{product.name}.bias".lstrip(".")
                biases.append(BiasShift(bias=name, values=tuple(values.tolist()), new=product.bias is None))
    picked = [
        edit
        for product in graph.products
        if (thin := thinned.get(product.weight or "")) is not None
        for edit in _taken(graph, product, alive, thin, order)
    ]
    return Plan(
        signature=signature(model),
        merges=tuple(merges),
        scales=tuple(_scales(graph, alive, reading.computed_scales)),
        slices=tuple(slices),
        biases=tuple(biases),
        groups=groups,
        attributes=counted_attributes(graph, model, alive, reading.layers),
        gathers=tuple(edit for edit in picked if isinstance(edit, Gather)),
        spans=tuple(edit for edit in picked if isinstance(edit, Span)),
        full_width=full_width_edits(graph, alive),
    )


def _thinned_dims(graph: ChannelGraph, thinned: Mapping[str, Thinned]) -> dict[tuple[str, int], Flags]:
    """What stays of each dimension of a tensor of a thinned layer, and of the norm behind it."""
    dims: dict[tuple[str, int], Flags] = {}
    for product in graph.products:
        thin = thinned.get(product.weight or "")
        if thin is None or product.weight is None:
            continue
        if thin.inputs is not None:
            dims[product.weight, 1] = thin.inputs
        if thin.outputs is not None:
            dims[product.weight, 0] = thin.outputs
            if product.bias is not None:
                dims[product.bias, 0] = thin.outputs
            for leaf in ("weight", "bias", "running_mean", "running_var") if thin.norm else ():
                dims[f"{thin.norm}.{leaf}", 0] = thin.outputs
    return dims


def _folded_besides(graph: ChannelGraph, product: Product, thin: Thinned) -> Flags:
    """Constant inputs that stay in the tensor but not in the layer, where they are folded into its bias."""
    if thin.inputs is None or product.node_in is None or product.padded or not product.folds:
        return np.zeros(product.input_size, dtype=bool)
    constant = graph.constant(product.node_in)
    return constant & (graph.values(product.node_in) != 0) & ~thin.inputs if constant.any() else constant


def _taken(
    graph: ChannelGraph, product: Product, alive: Flags, thin: Thinned, order: Order
) -> Iterator[Gather | Span]:
    """Where what a layer takes lies among the channels that stay of the tensors around it: a span, if it is in one piece."""
    assert product.inputs is not None
    if thin.inputs is not None:
        labels = graph.labels[product.inputs]
        places = np.flatnonzero(thin.inputs[order.kept(labels, alive[labels])])
        first, end = int(places[0]), int(places[-1]) + 1
        if end - first == len(places):
            yield Span(module=product.name, inputs=(first, end))
        else:
            yield Gather(module=product.name, inputs=tuple(places.tolist()))
    if thin.outputs is not None:
        labels = graph.labels[product.outputs]
        around = order.kept(labels, alive[labels])
        own = thin.outputs[around]
        values = np.where(own, 0.0, thin.constants[around])
        constants = tuple(values.tolist()) if values.any() else ()
        module, places = thin.norm or product.name, np.flatnonzero(own)
        first, end = int(places[0]), int(places[-1]) + 1
        if end - first == len(places):
            yield Span(module=module, outputs=(first, end), size=len(around), constants=constants)
        else:
            outputs = tuple(np.where(own, np.cumsum(own) - 1, own.sum()).tolist())
            yield Gather(module=module, outputs=outputs, constants=constants)


def _slice(binding: Binding, keep: NDArray[np.int64]) -> Slice:
    return Slice(
        tensor=binding.name,
        dim=binding.dim,
        size=len(binding.ids) // binding.groups,
        keep=tuple(keep.tolist()),
        groups=binding.groups,
    )


def _merges(graph: ChannelGraph, product: Product, alive: Flags, constants: Flags) -> Iterator[Merge]:
    """What the constants of each group are merged into, with indices as the weight counts them: anew in each group."""
    assert product.node_in is not None and product.weight is not None
    values = graph.values(product.node_in)
    width, height = product.input_size // product.groups, len(product.outputs) // product.groups
    for group, carrier in carriers_of(graph, product, alive).items():
        first = group * width
        own = np.flatnonzero(constants[first : first + width]) + first
        sources = [int(source) for source in own if source != carrier]
        if sources:
            yield Merge(
                weight=product.weight,
                carrier=carrier - first,
                sources=tuple(source - first for source in sources),
                ratios=tuple(float(values[source] / values[carrier]) for source in sources),
                rows=(group * height, (group + 1) * height) if product.groups > 1 else None,
            )


def _fold(graph: ChannelGraph, product: Product, constants: Flags) -> NDArray[np.float64]:
    """What the constant inputs add to every output, (outputs,)."""
    assert product.node_in is not None
    weight = graph.tensor(arguments(product.node)["weight"]).detach().double()
    matrix: NDArray[np.float64] = (weight.flatten(2).sum(2) if weight.ndim > 2 else weight).cpu().numpy()
    values = np.where(constants, graph.values(product.node_in), 0.0).reshape(product.groups, -1)
    per_output = np.repeat(values, len(matrix) // product.groups, axis=0)
    result: NDArray[np.float64] = (matrix * per_output).sum(1)
    return result


def _scales(graph: ChannelGraph, alive: Flags, computed: bool) -> list[Scale]:
    """Attention divides by a power of its width: narrower queries are scaled to make up for it."""
    scales = []
    for attention in graph.scaled.values():
        if attention.computed and not computed:
            continue
        ids = attention.ids
        before = ids.shape[-1]
        after = int(alive[graph.labels[ids.reshape(-1, before)]].sum(1).max())
        if after == before:
            continue
        product = graph.product(attention.maker)
        assert product is not None and product.weight is not None
        rows = tuple(np.flatnonzero(np.isin(product.outputs, ids)).tolist())
        factor = float((after / before) ** attention.power)
        scales += [
            Scale(tensor=name, rows=rows, factor=factor) for name in (product.weight, product.bias) if name
        ]
    return scales
