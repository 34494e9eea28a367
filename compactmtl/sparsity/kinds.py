"""Which slices of which parameters are zeroed together, by the name of the kind. Source: arXiv:2308.12114 for input channels."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from compactmtl.config.lookup import name_hint
from compactmtl.errors import ConfigError, SurgeryError
from compactmtl.graph.borrow import trainable
from compactmtl.graph.calls import arguments, operator, stack_of
from compactmtl.graph.channel_graph import ChannelGraph
from compactmtl.graph.cost import cost
from compactmtl.graph.effect import Product
from compactmtl.graph.groups import GroupFamily, Member
from compactmtl.graph.heads import attention_heads
from compactmtl.graph.inputs import as_arguments
from compactmtl.models.features import task_names
from compactmtl.overparam import contract
from compactmtl.overparam.convert import in_scope
from compactmtl.sparsity.branches import switches
from compactmtl.sparsity.groups import NOTHING_STAYS, ChannelGroups, parameters_of
from compactmtl.sparsity.rehearsal import Candidate, rehearse
from compactmtl.sparsity.removal import Interface, Removal
from compactmtl.sparsity.sources import on_sources
from compactmtl.surgery.contraction import contract_layers, find_branched, find_computed

GroupKind = Literal["coupled", "block", "filter", "input_channel", "attention_head"]
KINDS: tuple[str, ...] = get_args(GroupKind)
_HINTS = {
    "attention_head": "it needs scaled dot product attention with two heads or more; try coupled",
    "block": "no layer has as many channels as a block; give a smaller block, or coupled",
}


@trainable
def channel_groups(
    model: nn.Module,
    example_inputs: Tensor | Sequence[Any] | Mapping[str, Any],
    kind: GroupKind = "coupled",
    scope: Literal["encoder", "model"] = "encoder",
    block: int = 8,
    branches: bool = False,
) -> ChannelGroups:
    """Return the channel groups of a model. The model is left as it was.

    Args:
        model: any module that `torch.export` can trace.
        example_inputs: a tensor, positional arguments, or a mapping of keyword arguments.
        kind: which parameters form a group.
            "coupled": filters, biases and norm parameters of all layers that write a channel together, as `ChannelGraph`
            finds them. When a group is zero, surgery removes the channel and the slices that read it. Families with a
            producer outside `scope` are left out.
            "block": the same, by blocks of `block` neighboring channels. A remainder is a block of its own.
            "filter": W[i] of every layer with its bias, and the parameters of the norm that alone reads it. A channel
            that several layers write, as on a residual stream, is removed only when all of them are zero.
            "input_channel" (the paper's): W[:, i] of every ungrouped nn.Conv2d that runs, except those that read the image.
            A zero group changes nothing by itself; its channel is removed only when no reader uses it.
            "attention_head": queries, keys and values of one head of scaled dot product attention.
        scope: "encoder" takes the layers of `model.encoder`, or all layers of a model without that attribute. "model" takes
            all layers.
        block: channels per group of kind "block".
        branches: a group besides for each residual branch, of the parameters that switch it off, such as its last norm's.
            At zero the whole branch goes, and that is its cost. For the kinds coupled, block and attention_head.

    Groups of factorized layers consist of slices of the factors: rows of U, columns of V. Their norm is the factor's, not
    the weight's.

    Raises:
        ConfigError: for an unknown kind or scope, a block below 2, or a model without a group.
        SurgeryError: where the model cannot be traced. Groups of kind "input_channel" do not need the trace; without it
            they do not say what they remove.
    """
    inputs = as_arguments(model, example_inputs)
    inside = in_scope(model, scope)
    if kind not in KINDS:
        raise ConfigError(f"unknown group kind {kind!r}", name_hint(str(kind), KINDS))
    if branches and kind in ("filter", "input_channel"):
        raise ConfigError(
            f"{kind} groups lie in one layer each, and branches hold many",
            "use coupled, block or attention_head, or leave out branches",
        )
    if kind == "block" and block < 2:
        raise ConfigError(f"a block of {block} channels", "a block has 2 channels or more; else use coupled")
    traced: _Traced | None = None
    try:
        traced = _Traced(model, inputs, kind)
    except SurgeryError:
        if kind != "input_channel":
            raise
    if traced is None:
        families = _input_channel_families(contract(model), inputs, inside)
        _, homes, left_out = on_sources(model, (), families)
        removal = None
    else:
        if kind == "input_channel":
            families = _input_channel_families(traced.plain, inputs, inside)
        else:
            families = _FAMILIES[kind](traced.graph, traced.offered, inside, block)
        families, homes, left_out = on_sources(model, traced.computed, families)
        left_out |= traced.left_out(inside)
        switched = (
            switches(model, traced.graph, traced.plain, traced.computed, inputs, inside, left_out)
            if branches
            else []
        )
        removal = Removal(
            traced.graph,
            traced.offered,
            families,
            traced.rehearsal,
            whole_heads=kind == "attention_head",
            interface=Interface(
                tuple(inputs[0].shape[1:]) if isinstance(inputs[0], Tensor) else None,
                task_names(model),
            ),
            branches=[branch for branch, _ in switched],
        )
        homes += [home for _, home in switched]
        traced.graph.forget_values()  # or a second copy of all weights lives as long as the groups
    groups = ChannelGroups(
        homes,
        parameters_of(model),
        removal=removal,
        direct=kind in ("coupled", "block", "attention_head"),
        left_out=left_out,
        inexact=None if traced is None else _of_one_group(homes) | traced.inexact,
    )
    if not groups.total:
        first = next(iter(left_out.items()), None)
        raise ConfigError(
            f"the model has no {kind} channel groups in scope {scope!r}"
            + (f": {first[0]}: {first[1]}" if first else ""),
            _HINTS.get(
                kind,
                "sparsity needs layers whose channels surgery may remove"
                + ("; try scope='model'" if scope == "encoder" else ""),
            ),
        )
    return groups


def _of_one_group(families: Sequence[GroupFamily]) -> dict[str, str]:
    """Families that can only go as a whole: name -> what their cost leaves out."""
    return {family.name: NOTHING_STAYS for family in families if family.size == 1 and not family.branch}


class _Traced:
    """The plain form of a model as surgery sees it, its graph, and what surgery can remove of it one by one."""

    def __init__(self, model: nn.Module, inputs: tuple[Any, ...], kind: str) -> None:
        self.plain = contract(model)
        self.graph = ChannelGraph.trace(self.plain, inputs)
        self.computed = find_computed(self.graph, self.plain)
        if self.computed:
            contract_layers(self.plain, computed=self.computed)
            self.graph = ChannelGraph.trace(self.plain, inputs)
        candidates = _candidates(self.graph, kind)
        self._candidates = candidates
        self.rehearsal = rehearse(self.graph, self.plain, inputs, candidates)
        carriers = self.rehearsal.carriers
        self.offered = [
            replace(candidate, carriers=carriers.get(place, 0))
            for place, candidate in enumerate(candidates)
            if place not in self.rehearsal.refused
        ]
        self.inexact = {
            candidates[
                place
            ].family.name: "its zeros become another constant, for which surgery may add a bias"
            for place in carriers
        }
        self.inexact |= dict.fromkeys(
            find_branched(self.plain),
            "surgery makes one layer of such a block of branches where that saves more",
        )
        if kind in ("filter", "input_channel"):
            self.inexact |= _more_than_groups(self.graph)

    def left_out(self, inside: Callable[[str], bool]) -> dict[str, str]:
        """Layer -> reason, for the channels that surgery cannot remove."""
        refused = [(self._candidates[place].family, why) for place, why in self.rehearsal.refused.items()]
        return {
            family.name: f"surgery cannot remove its channels: {why}"
            for family, why in refused
            if _all_inside(family, inside)
        }


def _more_than_groups(graph: ChannelGraph) -> dict[str, str]:
    """Layers around which surgery removes channels although not all that writes, or reads, them is zero."""
    why = "of its zeros surgery may remove more than whole channels of what writes and what reads them"
    names = [p.name for p in graph.products if p.kind == "depthwise" or p.groups > 1]
    names += [
        next(reversed(stack_of(node).values()), str(node))
        for node in graph.calls
        if operator(node) in ("scaled_dot_product_attention", "matmul", "bmm") and node not in graph.barriers
    ]
    return dict.fromkeys(names, why)


def _candidates(graph: ChannelGraph, kind: str) -> list[Candidate]:
    """What surgery can remove one by one: heads where those are the groups, else coupled channels."""
    if kind == "attention_head":
        return [Candidate(family, owner) for family, owner in attention_heads(graph)]
    return [Candidate(family, owner) for family, owner in zip(graph.groups(), graph.owners(), strict=True)]


Inside = Callable[[str], bool]


def _coupled(
    _graph: ChannelGraph, candidates: Sequence[Candidate], inside: Inside, _block: int
) -> list[GroupFamily]:
    return [_written(candidate.family) for candidate in candidates if _all_inside(candidate.family, inside)]


def _blocks(
    graph: ChannelGraph, candidates: Sequence[Candidate], inside: Inside, block: int
) -> list[GroupFamily]:
    blocks: list[GroupFamily] = []
    for family in _coupled(graph, candidates, inside, block):
        width = min(member.indices.shape[1] for member in family.members)  # channels of one coupled group
        size = block // math.gcd(block, width)
        whole = family.size // size * size
        for first, last, each in ((0, whole, size), (whole, family.size, family.size - whole)):
            if first == last:
                continue
            members = tuple(
                replace(m, indices=m.indices[first:last].reshape((last - first) // each, -1))
                for m in family.members
            )
            blocks.append(
                GroupFamily(
                    family.name,
                    members,
                    (last - first) // each,
                    each * family.macs_per_channel,
                    each * family.parameters_per_channel,
                )
            )
    return blocks


def _filters(
    graph: ChannelGraph, _candidates: Sequence[Candidate], inside: Inside, _block: int
) -> list[GroupFamily]:
    """One family a layer whose outputs are all channels that can go."""
    filters: dict[str, GroupFamily] = {}
    macs = graph.layer_macs(np.ones(graph.classes, dtype=bool))
    for product, own in zip(graph.products, macs, strict=True):
        name, n = product.weight, len(product.outputs)
        if (
            name is None
            or name in filters
            or not product.rows
            or not inside(name)
            or graph.fixed[graph.labels[product.outputs]].any()
        ):
            continue
        rows = np.arange(n, dtype=np.int64)[:, None]
        norms = _norm_of(graph, product)
        members = [Member(name, 0, rows, "producer")]
        members += [Member(product.bias, 0, rows, "producer")] if product.bias is not None else []
        members += [Member(norm, 0, rows, "affine") for norm in norms]
        shape = graph.parameter_shape(name)
        if shape[0] != n:  # a transposed convolution has its outputs elsewhere
            continue
        filters[name] = GroupFamily(
            product.name,
            tuple(members),
            n,
            float(own) / n,
            float(math.prod(shape[1:])) + len(members) - 1,
        )
    return list(filters.values())


def _norm_of(graph: ChannelGraph, product: Product) -> list[str]:
    """The affine of the batch norm that reads a layer's output, where nothing else does."""
    readers = [node for node in product.node.users if isinstance(node.meta.get("val"), Tensor)]
    if len(product.node.users) != 1 or len(readers) != 1 or "batch_norm" not in operator(readers[0]):
        return []
    given = arguments(readers[0])
    names = [graph.parameter(given.get(key)) for key in ("weight", "bias")]
    return [name for name in names if name is not None]


_FAMILIES: dict[str, Callable[[ChannelGraph, Sequence[Candidate], Inside, int], list[GroupFamily]]] = {
    "coupled": _coupled,
    "block": _blocks,
    "filter": _filters,
    "attention_head": _coupled,
}


def _all_inside(family: GroupFamily, inside: Callable[[str], bool]) -> bool:
    return all(inside(m.parameter) for m in family.members if m.role == "producer")


def _written(family: GroupFamily) -> GroupFamily:
    """The family without its consumers: surgery removes their slices, no penalty need shrink them."""
    return replace(family, members=tuple(m for m in family.members if m.role != "consumer"))


def _input_channel_families(
    model: nn.Module, inputs: tuple[Tensor, ...], inside: Callable[[str], bool]
) -> list[GroupFamily]:
    """One family a convolution of `model` (which is changed: give a copy)."""
    convolutions = {
        name: module
        for name, module in model.named_modules()
        if type(module) is nn.Conv2d and module.groups == 1 and inside(name)
    }
    counted = cost(model, inputs).layers
    ran: dict[str, bool] = {}
    hooks = [module.register_forward_hook(_watch(name, ran)) for name, module in convolutions.items()]
    # Only weights ask for gradients, so an input without a graph has passed none: it is the image. The
    # affine of a norm does not count, or a norm on the image would hide it.
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.dim() >= 2)
    with torch.enable_grad():
        model.eval()(*(value.detach() for value in inputs))
    for hook in hooks:
        hook.remove()
    return [
        _input_channels(name, convolutions[name], counted[name].macs)
        for name, on_image in ran.items()
        if not on_image
    ]


def _watch(name: str, ran: dict[str, bool]) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    """Note for a layer that it ran, and whether it read the image itself at any call."""

    def hook(_module: nn.Module, args: tuple[Tensor, ...], _output: Tensor) -> None:
        ran[name] = ran.get(name, False) or not args[0].requires_grad

    return hook


def _input_channels(name: str, module: nn.Conv2d, macs: float) -> GroupFamily:
    n = module.in_channels
    weight = f"{name}.weight" if name else "weight"
    member = Member(weight, 1, np.arange(n, dtype=np.int64)[:, None], "consumer")
    return GroupFamily(name, (member,), n, macs / n, module.weight.numel() / n)
