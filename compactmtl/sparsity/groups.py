"""Which slices of which parameters are zeroed together. Source: arXiv:2308.12114 for input channels."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, Protocol, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from compactmtl.errors import ConfigError
from compactmtl.graph.channel_graph import ChannelGraph
from compactmtl.graph.groups import GroupFamily, Member
from compactmtl.overparam import contract, factor_of
from compactmtl.overparam.convert import in_scope
from compactmtl.sparsity.slices import BoundFamily, bind

KINDS = ("coupled", "input_channel")
Keep = Sequence[NDArray[np.bool_]]


class Graph(Protocol):
    """What sparsity needs of a ChannelGraph."""

    def groups(self) -> list[GroupFamily]: ...

    def macs(self, keep: Keep) -> float: ...


class ChannelGroups(Sequence[GroupFamily]):
    """Families of channel groups, bound to a model's parameters.

    `macs(keep)` is the model's MACs with only the flagged groups of each family left (one bool array a
    family, in order), or None for group kinds whose zeros do not remove a channel by themselves.
    """

    def __init__(
        self,
        families: Sequence[GroupFamily],
        parameters: Mapping[str, nn.Parameter],
        macs: Callable[[Keep], float] | None = None,
    ) -> None:
        """Raises ConfigError where a family's tensor is missing or its groups overlap."""
        self._families = tuple(families)
        self.bound: tuple[BoundFamily, ...] = tuple(bind(family, parameters) for family in families)
        self.macs = macs

    def __len__(self) -> int:
        return len(self._families)

    @overload
    def __getitem__(self, index: int) -> GroupFamily: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[GroupFamily]: ...

    def __getitem__(self, index: int | slice) -> GroupFamily | Sequence[GroupFamily]:
        return self._families[index]

    def __iter__(self) -> Iterator[GroupFamily]:
        return iter(self._families)

    @property
    def total(self) -> int:
        """Groups of all families together."""
        return sum(family.size for family in self._families)

    @property
    def parameter_names(self) -> frozenset[str]:
        """Names of all tensors that hold a part of a group."""
        return frozenset(s.name for family in self.bound for s in family.slices)

    def in_model(self, model: nn.Module) -> ChannelGroups:
        """The same groups over another model's parameters of the same names, such as an averaged copy."""
        return ChannelGroups(self._families, dict(model.named_parameters(remove_duplicate=False)), self.macs)


def channel_groups(
    model: nn.Module,
    example_inputs: Tensor | Sequence[Tensor],
    kind: Literal["coupled", "input_channel"] = "coupled",
    scope: Literal["encoder", "model"] = "encoder",
) -> ChannelGroups:
    """The channel groups of `model`'s shared layers; the model is left as it was.

    "coupled": the filters, biases and norm affines of all layers that write a channel together, as
    `ChannelGraph` finds them; families of which a producer lies outside `scope` are left out. With such a
    group at zero, surgery removes the channel and its consumers' slices.
    "input_channel" (the paper's): W[:, i] of every ungrouped nn.Conv2d that runs, never of one that reads
    the image itself. A zero group is exact, but its channel goes only when every reader ignores it.
    For factorized models the groups lie on the factors that carry the slices: rows of U, columns of V; their
    norm is the factor's, not the weight's.
    `scope` "encoder" takes what lies below `model.encoder`, or all of a model that has no such part.

    Raises ConfigError for an unknown kind or scope, or where no group is found; SurgeryError where the
    model cannot be traced ("coupled").
    """
    inputs = (example_inputs,) if isinstance(example_inputs, Tensor) else tuple(example_inputs)
    inside = in_scope(model, scope)
    if kind not in KINDS:
        near = difflib.get_close_matches(str(kind), KINDS, n=1)
        raise ConfigError(
            f"unknown group kind {kind!r}",
            f"did you mean {near[0]}?" if near else f"known: {', '.join(KINDS)}",
        )
    if kind == "coupled":
        groups = coupled_groups(model, ChannelGraph.trace(contract(model), inputs), inside)
    else:
        families = _input_channel_families(contract(model), inputs, inside)
        groups = ChannelGroups(_on_factors(model, families), _parameters(model))
    if not groups.total:
        raise ConfigError(
            f"the model has no {kind} channel groups in scope {scope!r}",
            "sparsity needs shared convolutions whose channels surgery may remove; try scope='model'",
        )
    return groups


def coupled_groups(model: nn.Module, graph: Graph, inside: Callable[[str], bool]) -> ChannelGroups:
    """The groups of `graph`, traced on the contracted model, whose producers all lie `inside`."""
    families = graph.groups()
    chosen = [
        index
        for index, family in enumerate(families)
        if all(inside(m.parameter) for m in family.members if m.role == "producer")
    ]

    def macs(keep: Keep) -> float:
        everything = [np.ones(family.size, dtype=bool) for family in families]
        for index, alive in zip(chosen, keep, strict=True):
            everything[index] = alive
        return graph.macs(everything)

    shrunk = [
        replace(families[i], members=tuple(m for m in families[i].members if m.role != "consumer"))
        for i in chosen
    ]
    return ChannelGroups(_on_factors(model, shrunk), _parameters(model), macs)


def zero_share(groups: ChannelGroups) -> float:
    """The paper's group sparsity: groups that are exactly zero / all groups."""
    with torch.no_grad():
        return sum(int(family.zeros().sum()) for family in groups.bound) / max(groups.total, 1)


def split_parameter_groups(
    model: nn.Module, shrunk: ChannelGroups | Collection[str], weight_decay: float
) -> list[dict[str, Any]]:
    """Optimizer parameter groups: `weight_decay` on all but the tensors that the prox shrinks, 0 on those.

    `shrunk` is the channel groups or the tensors' names. Raises ConfigError for a name the model lacks.
    """
    names = shrunk.parameter_names if isinstance(shrunk, ChannelGroups) else frozenset(shrunk)
    known = _parameters(model)
    if missing := sorted(names - known.keys()):
        raise ConfigError(f"the model has no parameter {missing[0]!r}")
    held = {id(known[name]) for name in names}
    rest = [p for p in model.parameters() if id(p) not in held]
    inside = [p for p in model.parameters() if id(p) in held]
    return [
        {"params": rest, "weight_decay": weight_decay},
        {"params": inside, "weight_decay": 0.0},
    ]


def _parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    return dict(model.named_parameters(remove_duplicate=False))


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
