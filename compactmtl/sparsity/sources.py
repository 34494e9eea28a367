"""Parameters behind a weight that is computed at every call: which of them makes a filter zero when its slice is."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from compactmtl.graph.copies import copy_model
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
