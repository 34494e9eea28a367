"""Whole residual branches as groups: what switches one off, and what then goes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from compactmtl.graph.branches import Branch, find_branches
from compactmtl.graph.channel_graph import ChannelGraph
from compactmtl.graph.copies import copy_model
from compactmtl.graph.groups import GroupFamily
from compactmtl.graph.inputs import as_arguments
from compactmtl.sparsity.sources import on_sources
from compactmtl.surgery.depth import shorten
from compactmtl.surgery.prove import reference


def switches(
    model: nn.Module,
    graph: ChannelGraph,
    plain: nn.Module,
    computed: Sequence[str],
    inputs: Sequence[Any],
    inside: Callable[[str], bool],
    left_out: dict[str, str],
) -> list[tuple[Branch, GroupFamily]]:
    """The residual branches `inside` the scope that surgery takes out of `plain`, each with its family in `model`.

    `graph` is that of `plain`, `computed` are its layers whose weights `model` computes. `left_out` receives the other
    branches, with the reason.
    """
    found = [
        branch
        for branch in find_branches(graph)
        if all(inside(name) for name in (*branch.layers, *(m.parameter for m in branch.members)))
    ]
    refused = _refused(plain, inputs, found)
    left_out |= {
        f"{branch.name} (branch)": refused[branch.name] for branch in found if branch.name in refused
    }
    result = []
    alive = np.ones(graph.classes, dtype=bool)
    for branch in found:
        if branch.name in refused:
            continue
        macs = graph.macs_of_classes(alive) - graph.macs_of_classes(alive, graph.parts_of(branch.calls))
        parameters = graph.parameters_of_classes(alive) - graph.parameters_of_classes(
            alive, branch.parameters
        )
        family = GroupFamily(f"{branch.name} (branch)", branch.members, 1, macs, parameters, branch=True)
        _, homes, why = on_sources(model, computed, [family])
        left_out |= why
        result += [(branch, home) for home in homes]
    return result


def lies_within(families: Sequence[GroupFamily], branches: Sequence[Branch]) -> list[list[int]]:
    """For each family the places of the branches that take all of its layers with them.

    `branches` are those of the families that are one, in the same order.
    """
    places = [place for place, family in enumerate(families) if family.branch]

    def inside(branch: Branch, name: str) -> bool:
        # a factorized layer's parameters have other names in the same module
        return name in branch.parameters or name.startswith(tuple(f"{layer}." for layer in branch.layers))

    return [
        []
        if family.branch
        else [
            place
            for place, branch in zip(places, branches, strict=True)
            if all(inside(branch, member.parameter) for member in family.members)
        ]
        for family in families
    ]


def _refused(plain: nn.Module, inputs: Sequence[Any], branches: Sequence[Branch]) -> dict[str, str]:
    """The branches that surgery does not take out of `plain` where all are switched off: name -> reason."""
    if not branches:
        return {}
    model = copy_model(plain).eval()
    with torch.no_grad():
        for branch in branches:
            for member in branch.members:
                model.get_parameter(member.parameter).zero_()
    arguments = as_arguments(model, inputs)
    graph = ChannelGraph.trace(model, arguments)
    short = shorten(model, arguments, graph, reference(model, arguments))
    left = graph if short is None else ChannelGraph.trace(short.model, arguments)
    layers = {product.name for product in left.products}
    return {
        branch.name: f"surgery cannot take out its layers: {min(branch.layers & layers)} stays"
        for branch in branches
        if branch.layers & layers
    }
