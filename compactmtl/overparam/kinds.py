"""Which layers each kind of over-parameterization takes, at what rank, and what it makes of them."""

from __future__ import annotations

import copy
import math
from numbers import Integral, Real
from typing import Literal, get_args

import torch
from torch import nn

from compactmtl.config.lookup import name_hint
from compactmtl.errors import ConfigError
from compactmtl.overparam.cp import CpLayer
from compactmtl.overparam.expandnet import ChainLayer, chain
from compactmtl.overparam.geometry import Geometry, Plain
from compactmtl.overparam.layer import OverparamLayer
from compactmtl.overparam.repvgg import BranchLayer
from compactmtl.overparam.sandwich import ExpandLayer, TuckerLayer
from compactmtl.overparam.svd import SvdLayer

Kind = Literal["svd", "cp", "tucker", "expandnet_cl", "expandnet_ck", "repvgg", "none"]
Rank = Literal["full"] | int | float

DIAGONAL: frozenset[str] = frozenset({"svd", "cp", "tucker"})  # kinds with a diagonal that a task can own
EXPANDING: frozenset[str] = frozenset(
    {"expandnet_cl", "expandnet_ck"}
)  # kinds whose rank is a rate of at least 1
MOST = 64.0  # times full; a rank beyond it is a slip of the pen
RATE = 4.0  # of ExpandNet where the rank is "full". Source: arXiv:1811.10495


def check_kind(kind: str) -> None:
    """Raise ConfigError for an unknown kind, with the nearest known one."""
    known = get_args(Kind)
    if kind not in known:
        raise ConfigError(f"unknown over-parameterization {kind!r}", name_hint(str(kind), known))


def takes(kind: Kind, module: nn.Module, *, depthwise: bool) -> bool:
    """Whether `kind` has a form for this layer.

    It must be of exactly the type nn.Conv2d or nn.Linear, and its function that of its own weight parameter: a
    subclass may transform the weight on its way, a parametrization or a hook may compute it.
    """
    if type(module) is nn.Linear:
        return module._parameters.get("weight") is not None and kind not in ("repvgg", "expandnet_ck")
    if type(module) is not nn.Conv2d or module._parameters.get("weight") is None:
        return False
    if module.groups > 1 and module.weight.shape[1] == 1 and not depthwise:
        return False
    kernel = (int(module.weight.shape[2]), int(module.weight.shape[3]))
    if kind == "expandnet_ck":
        return len(chain(kernel)) > 1
    return kind != "repvgg" or kernel != (1, 1)


def full_rank(kind: Kind, plain: Plain) -> int:
    """The rank at which every weight of the layer's shape can be written; 0 where the kind has no rank."""
    geometry = Geometry.of(plain)
    if kind == "svd":
        return SvdLayer.full_rank(geometry)
    if kind == "cp":
        return CpLayer.full_rank(geometry)
    return TuckerLayer.full_rank(geometry) if kind == "tucker" else 0


def as_rank(rank: object) -> Rank:
    """`rank` as "full", an int or a float, whatever library's number it is. Raises ConfigError where it is none."""
    if rank == "full":
        return "full"
    if not isinstance(rank, bool):
        if isinstance(rank, Integral):
            return int(rank)
        if isinstance(rank, Real) and math.isfinite(rank):
            return float(rank)
    raise ConfigError(f"rank {rank!r} is not a rank", "give full, a number, or a share or multiple of full")


def check_rank(kind: Kind, rank: Rank, largest: int) -> None:
    """Raise ConfigError where `rank` is out of the range of layers whose full ranks go up to `largest`."""
    if isinstance(rank, str):
        return
    if kind == "repvgg":
        raise ConfigError(f"rank {rank}: branches have no rank", "leave rank out for repvgg")
    if kind in EXPANDING:
        if isinstance(rank, int) or not 1 <= rank <= MOST:
            raise ConfigError(
                f"rank {rank} is out of range", f"{kind} expands by a rate from 1.0 to {MOST}, such as 4.0"
            )
    elif isinstance(rank, int) and not 1 <= rank <= largest:
        raise ConfigError(
            f"rank {rank} is out of range",
            f"this model's layers take ranks 1 to {largest}; a multiple of full is written 2.0",
        )
    elif isinstance(rank, float) and not 0 < rank <= MOST:
        raise ConfigError(
            f"rank {rank} is out of range", f"a share or multiple of the full rank lies in (0, {MOST:g}]"
        )


def build_layer(
    kind: Kind, plain: Plain, rank: Rank, tasks: int, *, initialize: bool = True
) -> OverparamLayer:
    """The layer in training form; without `initialize` its factors are zeros, for values about to be loaded.

    Raises ConfigError for a weight that is not finite.
    """
    if not initialize:
        return _zeros(_build(kind, _without_values(plain), rank, tasks), plain.weight.device)
    return _build(kind, plain, rank, tasks)


def _build(kind: Kind, plain: Plain, rank: Rank, tasks: int) -> OverparamLayer:
    geometry = Geometry.of(plain)
    if kind == "svd":
        return SvdLayer(plain, _at(rank, SvdLayer.full_rank(geometry)), tasks)
    if kind == "cp":
        return CpLayer(plain, _at(rank, CpLayer.full_rank(geometry)), tasks)
    if kind == "tucker":
        outer, inner = TuckerLayer.full_ranks(geometry)
        return TuckerLayer(plain, (_at(rank, outer), _at(rank, inner)), tasks)
    if kind == "repvgg":
        return BranchLayer(plain)
    rate = RATE if rank == "full" else float(rank)
    return ExpandLayer(plain, rate) if kind == "expandnet_cl" else ChainLayer(plain, rate)


def _at(rank: Rank, full: int) -> int:
    """A number caps the rank, a share or multiple scales it."""
    if isinstance(rank, str):
        return full
    return min(rank, full) if isinstance(rank, int) else max(1, round(rank * full))


def _without_values(plain: Plain) -> Plain:
    shell = copy.copy(plain)
    weight = nn.Parameter(plain.weight.detach().to("meta"), requires_grad=plain.weight.requires_grad)
    shell._parameters = {**plain._parameters, "weight": weight}
    return shell


def _zeros(layer: OverparamLayer, device: torch.device) -> OverparamLayer:
    for module in layer.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.is_meta:
                zeros = torch.zeros_like(parameter, device=device)
                module._parameters[name] = nn.Parameter(zeros, requires_grad=parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.is_meta:
                module._buffers[name] = torch.zeros_like(buffer, device=device)
    return layer
