"""The parameters that are trained behind those of the plain model, also where a weight is computed at every call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from compactmtl.graph.copies import copy_model
from compactmtl.graph.groups import GroupFamily, Member
from compactmtl.overparam import factor_of
from compactmtl.surgery.contraction import plain_layer


def source_of_slices(layer: nn.Module, leaf: str, dim: int) -> tuple[str, int] | None:
    """The smallest parameter of `layer`, and its dimension, whose zero slices are zeros of its weight or bias (`leaf`).

    `dim` is a dimension of the weight or bias. Of a weight-normalized layer it is the magnitude g and not the direction
    v, of which a zero would give 0/0; of a spectral norm or a standardized weight the parameter itself. None where no
    parameter does it, such as for an orthogonal weight. Found by trying.
    """
    plain = plain_layer(layer)
    if plain is None:
        return None
    size = plain.get_parameter(leaf).shape[dim]
    for name, parameter in sorted(layer.named_parameters(), key=lambda item: item[1].numel()):
        for own in range(parameter.dim()):
            if parameter.shape[own] == size and _frees(layer, name, own, leaf, dim):
                return name, own
    return None


def _frees(layer: nn.Module, name: str, own: int, leaf: str, dim: int) -> bool:
    """Whether zeros at half of a parameter's slices are zeros at the same slices of the weight, and nowhere else."""
    trial = copy_model(layer)
    generator = torch.Generator().manual_seed(0)
    chosen = torch.arange(layer.get_parameter(name).shape[own]) % 2 == 0
    with torch.no_grad():
        for parameter in trial.parameters():  # it may hold zeros already
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        target = dict(trial.named_parameters())[name]
        target.index_fill_(own, torch.nonzero(chosen).flatten().to(target.device), 0.0)
    plain = plain_layer(trial)
    if plain is None:
        return False
    value = plain.get_parameter(leaf).detach().movedim(dim, 0)
    flat: Tensor = value.reshape(len(value), -1).cpu()
    zero = (flat == 0).all(1)
    return bool(torch.isfinite(flat).all()) and bool((zero == chosen).all())


def on_sources(
    model: nn.Module, computed: Sequence[str], families: Sequence[GroupFamily]
) -> tuple[list[GroupFamily], list[GroupFamily], dict[str, str]]:
    """`families` of the plain model, and the same with each member on the parameter that `model` trains.

    Those of a weight that is computed from parameters of which none makes a channel zero are left out: layer -> reason.
    """
    known: dict[tuple[str, int], tuple[str, int] | None] = {}

    def source(member: Member) -> tuple[str, int] | None:
        path, _, leaf = member.parameter.rpartition(".")
        if path not in computed:
            return factor_of(model, member.parameter, member.dim)
        key = (member.parameter, member.dim)
        if key not in known:
            source_slice = source_of_slices(model.get_submodule(path), leaf, member.dim)
            known[key] = None if source_slice is None else (f"{path}.{source_slice[0]}", source_slice[1])
        return known[key]

    plain: list[GroupFamily] = []
    homes: list[GroupFamily] = []
    left_out: dict[str, str] = {}
    for family in families:
        sources = [source(member) for member in family.members]
        if None in sources:
            name = family.members[sources.index(None)].parameter
            left_out[family.name] = (
                f"{name} is computed, and no parameter of its layer makes a channel of it zero"
            )
            continue
        plain.append(family)
        members = tuple(
            replace(member, parameter=home[0], dim=home[1])
            for member, home in zip(family.members, sources, strict=True)
            if home is not None
        )
        homes.append(replace(family, members=members))
    return plain, homes, left_out
