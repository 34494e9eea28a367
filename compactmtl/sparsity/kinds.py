"""Which slices of which parameters are zeroed together, by the name of the kind. Source: arXiv:2308.12114 for input channels."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from compactmtl.errors import ConfigError, SurgeryError
from compactmtl.graph.analysis import Product, arguments, operator
from compactmtl.graph.borrow import trainable
from compactmtl.graph.channel_graph import ChannelGraph
from compactmtl.graph.groups import GroupFamily, Member
from compactmtl.graph.heads import attention_heads
from compactmtl.overparam import contract, factor_of
from compactmtl.overparam.convert import in_scope
from compactmtl.sparsity.groups import ChannelGroups, parameters_of
from compactmtl.sparsity.removal import Removal, Unit

GroupKind = Literal["coupled", "block", "filter", "input_channel", "attention_head"]
KINDS: tuple[str, ...] = get_args(GroupKind)
_HINTS = {
    "attention_head": "it needs scaled dot product attention with two heads or more; try coupled",
    "block": "no layer has as many channels as a block; give a smaller block, or coupled",
}


@trainable
def channel_groups(
    model: nn.Module,
    example_inputs: Tensor | Sequence[Tensor],
    kind: GroupKind = "coupled",
    scope: Literal["encoder", "model"] = "encoder",
    block: int = 8,
) -> ChannelGroups:
    """The channel groups of `model`'s shared layers; the model is left as it was.

    "coupled": the filters, biases and norm affines of all layers that write a channel together, as
    `ChannelGraph` finds them; families of which a producer lies outside `scope` are left out. With such a
    group at zero, surgery removes the channel and its consumers' slices.
    "block": the same by whole blocks of `block` neighboring channels; what is left over is a block of its own.
    "filter": W[i] of every layer with its bias and the affine of the norm that alone reads it. A channel that
    several layers write, as on a residual stream, goes only when all of them are zero.
    "input_channel" (the paper's): W[:, i] of every ungrouped nn.Conv2d that runs, never of one that reads
    the image itself. A zero group is exact, but its channel goes only when every reader ignores it.
    "attention_head": queries, keys and values of one head of scaled dot product attention.
    For factorized models the groups lie on the factors that carry the slices: rows of U, columns of V; their
    norm is the factor's, not the weight's.
    `scope` "encoder" takes what lies below `model.encoder`, or all of a model that has no such part.

    Raises ConfigError for an unknown kind or scope, a block below 2, or where no group is found; SurgeryError where
    the model cannot be traced (input channels are then found all the same, without what they free).
    """
    inputs = (example_inputs,) if isinstance(example_inputs, Tensor) else tuple(example_inputs)
    inside = in_scope(model, scope)
    if kind not in KINDS:
        near = difflib.get_close_matches(str(kind), KINDS, n=1)
        raise ConfigError(
            f"unknown group kind {kind!r}",
            f"did you mean {near[0]}?" if near else f"known: {', '.join(KINDS)}",
        )
    if kind == "block" and block < 2:
        raise ConfigError(f"a block of {block} channels", "a block has 2 channels or more; else use coupled")
    plain = contract(model)
    graph: ChannelGraph | None = None
    try:
        graph = ChannelGraph.trace(plain, inputs)
    except SurgeryError:
        if kind != "input_channel":
            raise
    if kind == "input_channel":
        families = _input_channel_families(plain, inputs, inside)
    else:
        assert graph is not None
        families = _FOUND[kind](graph, inside, block)
    units = _units(graph, kind) if graph is not None else []
    groups = ChannelGroups(
        _on_factors(model, families),
        parameters_of(model),
        removal=Removal(graph, units, families) if graph is not None else None,
        direct=kind in ("coupled", "block", "attention_head"),
    )
    if not groups.total:
        raise ConfigError(
            f"the model has no {kind} channel groups in scope {scope!r}",
            _HINTS.get(
                kind,
                "sparsity needs shared convolutions whose channels surgery may remove; try scope='model'",
            ),
        )
    return groups


def _units(graph: ChannelGraph, kind: str) -> list[Unit]:
    """What surgery can remove one by one: heads where those are the groups, else coupled channels."""
    if kind == "attention_head":
        return [Unit(family, owner) for family, owner in attention_heads(graph)]
    return [Unit(family, owner) for family, owner in zip(graph.groups(), graph.owners(), strict=True)]


def _coupled(graph: ChannelGraph, inside: Callable[[str], bool], _block: int) -> list[GroupFamily]:
    return [_written(family) for family in graph.groups() if _all_inside(family, inside)]


def _blocks(graph: ChannelGraph, inside: Callable[[str], bool], block: int) -> list[GroupFamily]:
    found: list[GroupFamily] = []
    for family in _coupled(graph, inside, block):
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
            found.append(
                GroupFamily(
                    family.name,
                    members,
                    (last - first) // each,
                    each * family.macs_per_channel,
                    each * family.parameters_per_channel,
                )
            )
    return found


def _heads(graph: ChannelGraph, inside: Callable[[str], bool], _block: int) -> list[GroupFamily]:
    return [_written(family) for family, _ in attention_heads(graph) if _all_inside(family, inside)]


def _filters(graph: ChannelGraph, inside: Callable[[str], bool], _block: int) -> list[GroupFamily]:
    """One family a layer whose outputs are all channels that can go."""
    found: dict[str, GroupFamily] = {}
    for product in graph.analysis.products.values():
        name, n = product.weight, len(product.outputs)
        if (
            name is None
            or name in found
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
        shape = dict(graph.analysis.traced.tensors.values())[name].shape
        inputs = 1 if product.inputs is None else len(product.inputs)
        found[name] = GroupFamily(
            product.name,
            tuple(members),
            n,
            product.scale * inputs,
            float(math.prod(shape[1:])) + len(members) - 1,
        )
    return list(found.values())


def _norm_of(graph: ChannelGraph, product: Product) -> list[str]:
    """The affine of the batch norm that reads a layer's output, where nothing else does."""
    readers = [node for node in product.node.users if isinstance(node.meta.get("val"), Tensor)]
    if len(product.node.users) != 1 or len(readers) != 1 or "batch_norm" not in operator(readers[0]):
        return []
    given = arguments(readers[0])
    names = [graph.analysis.parameter(given.get(key)) for key in ("weight", "bias")]
    return [name for name in names if name is not None]


_FOUND: dict[str, Callable[[ChannelGraph, Callable[[str], bool], int], list[GroupFamily]]] = {
    "coupled": _coupled,
    "block": _blocks,
    "filter": _filters,
    "attention_head": _heads,
}


def _all_inside(family: GroupFamily, inside: Callable[[str], bool]) -> bool:
    return all(inside(m.parameter) for m in family.members if m.role == "producer")


def _written(family: GroupFamily) -> GroupFamily:
    """The family without its consumers: surgery removes their slices, no penalty need shrink them."""
    return replace(family, members=tuple(m for m in family.members if m.role != "consumer"))


def _on_factors(model: nn.Module, families: Sequence[GroupFamily]) -> list[GroupFamily]:
    """`families` of the contracted model with each member on the parameter that `model` trains."""

    def moved(member: Member) -> Member:
        parameter, dim = factor_of(model, member.parameter, member.dim)
        return replace(member, parameter=parameter, dim=dim)

    return [replace(family, members=tuple(map(moved, family.members))) for family in families]


def _input_channel_families(
    model: nn.Module, inputs: tuple[Tensor, ...], inside: Callable[[str], bool]
) -> list[GroupFamily]:
    """One family a convolution of `model` (which is changed: give a copy)."""
    convolutions = {
        name: module
        for name, module in model.named_modules()
        if type(module) is nn.Conv2d and module.groups == 1 and inside(name)
    }
    macs: dict[str, float] = {}
    on_image: set[str] = set()
    for name, module in convolutions.items():
        module.register_forward_hook(_watch(name, macs, on_image))
    # Only weights ask for gradients, so an input without a graph has passed none: it is the image. The
    # affine of a norm does not count, or a norm on the image would hide it.
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.dim() >= 2)
    with torch.enable_grad():
        model.eval()(*(value.detach() for value in inputs))
    return [_input_channels(name, convolutions[name], macs[name]) for name in macs if name not in on_image]


def _watch(name: str, macs: dict[str, float], on_image: set[str]) -> Callable[[nn.Module, Any, Tensor], None]:
    def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(module, nn.Conv2d)
        macs[name] = macs.get(name, 0.0) + output.numel() * module.weight[0].numel()
        if not args[0].requires_grad:
            on_image.add(name)

    return hook


def _input_channels(name: str, module: nn.Conv2d, macs: float) -> GroupFamily:
    n = module.in_channels
    weight = f"{name}.weight" if name else "weight"
    member = Member(weight, 1, np.arange(n, dtype=np.int64)[:, None], "consumer")
    return GroupFamily(name, (member,), n, macs / n, module.weight.numel() / n)
