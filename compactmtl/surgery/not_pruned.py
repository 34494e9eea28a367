"""Which layers keep dead channels, and why: what surgery left alone."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from compactmtl.graph.calls import operator, source_of
from compactmtl.graph.channel_graph import ChannelGraph
from compactmtl.graph.effect import Product
from compactmtl.graph.space import Flags, Ids
from compactmtl.surgery.analyse import NOT_FOLDED

ROLLED_BACK = "its removal changed the function: rolled back"


def not_pruned(graph: ChannelGraph, alive: Flags, reasons: Mapping[int, str]) -> dict[str, str]:
    """Layer -> reason, for every layer of whose outputs some are dead and yet stay.

    Dead is an output that is constant, whatever the input, or that nothing in use reads. `reasons` says of classes that
    could have gone why they stay: equal parts, alignment, a carrier of constants, the last channel of a layer. Layers
    whose dead channels go together with others that are in use come last.
    """
    kept = {_layer(name): reason for name, reason in graph.not_pruned.items()}
    idle: dict[str, Ids] = {}
    for product in graph.products:
        if product.name in kept or not graph.follows(product.node) or graph.is_computed(product.node):
            continue
        if graph.is_written_through_a_view(product.node):
            kept[product.name] = "its output is written through a view"
            continue
        classes = np.unique(graph.labels[_dead_outputs(graph, product)])
        classes = classes[alive[classes]]
        if len(classes):
            idle[product.name] = np.union1d(idle[product.name], classes) if product.name in idle else classes
    known = _reasons(
        graph, np.unique(np.concatenate([*idle.values()])) if idle else np.empty(0, np.int64), reasons
    )
    coupled = _coupled(
        graph, [label for classes in idle.values() for label in classes if int(label) not in known]
    )
    last = {}
    for name, classes in idle.items():
        given = [known[int(label)] for label in classes if int(label) in known]
        if given:
            kept[name] = given[0]
        else:
            last[name] = coupled.get(int(classes[0]), ROLLED_BACK)
    return {**kept, **last}


def _dead_outputs(graph: ChannelGraph, product: Product) -> Ids:
    """The ids of a layer's outputs that are constant or unused."""
    axis = graph.axis(product.node)
    assert axis is not None
    dead = graph.constant(product.node) | ~graph.used(product.node)
    ids: Ids = product.outputs[np.isin(product.outputs, axis.ids[dead])]
    return ids


def _reasons(graph: ChannelGraph, idle: Ids, choice: Mapping[int, str]) -> dict[int, str]:
    """Class -> reason, of those that do not only go together with others."""
    causes = {**_mixed(graph), **graph.pin_reasons()}
    joined = graph.joined_reasons()
    varying, live = graph.varying_classes(), graph.live_classes()
    known = {}
    for label in map(int, idle):
        if label in causes:
            known[label] = causes[label]
        elif label in choice:
            known[label] = choice[label]
        elif live[label] and not varying[label]:
            known[label] = NOT_FOLDED
        elif label in joined:
            known[label] = joined[label]
    return known


def _coupled(graph: ChannelGraph, labels: Ids | list[int]) -> dict[int, str]:
    """Class -> what is in use of it: the channels of another layer, or what an operator makes of a constant."""
    pending = np.zeros(graph.classes, dtype=bool)
    pending[np.asarray(labels, dtype=np.int64)] = True
    layers = {product.node: product.name for product in graph.products}
    known: dict[int, str] = {}
    for node in graph.calls:
        axis = graph.axis(node)
        if axis is None or not graph.follows(node) or graph.is_computed(node):
            continue
        varying = graph.labels[axis.ids[graph.used(node) & ~graph.constant(node)]]
        reason = (
            f"it goes together with channels of {layers[node]} that are in use"
            if node in layers
            else f"{operator(node)}: it makes something that varies of a channel that does not"
        )
        for label in np.unique(varying[pending[varying]]):
            known[int(label)] = reason
            pending[label] = False
    return known


def _mixed(graph: ChannelGraph) -> dict[int, str]:
    """Class -> reason, where a norm makes something that varies of a channel that does not."""
    reasons: dict[int, str] = {}
    for node, counted in graph.counted.items():
        for label in graph.labels[counted.ids[graph.constant(source_of(node))]]:
            reasons.setdefault(int(label), f"{operator(node)}: {counted.reason}")
    return reasons


def _layer(parameter: str) -> str:
    return parameter.rpartition(".")[0] or parameter
