"""A contracted layer against its training form, on a random input in float64."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from compactmtl.errors import SurgeryError
from compactmtl.graph.copies import copy_model
from compactmtl.overparam.layer import OverparamLayer

ROUNDED = 64  # times the rounding of the weight's own precision, of the largest sum of its terms' magnitudes


def check_contraction(name: str, trained: OverparamLayer, plain: nn.Module) -> None:
    """Compare `plain` with `trained` in eval mode, and with its stages in a row where it has such a form.

    Raises SurgeryError naming the layer where a weight is not finite or the outputs differ by more than the rounding of
    the weight's precision. Layers on the meta device pass.
    """
    tensors = [*plain.parameters(), *plain.buffers()]
    if any(tensor.is_meta for tensor in tensors):
        return
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors):
        raise SurgeryError(
            f"layer {name or '(the model)'} contracts to a weight that is not finite",
            "go back to a checkpoint before the loss became NaN",
        )
    precision = torch.finfo(tensors[0].dtype).eps
    with torch.no_grad():
        one, other = copy_model(trained).double().eval(), copy_model(plain).double().eval()
        x = _input(trained).to(tensors[0].device)
        output = other(x)
        terms = _terms(one, x)
        forms = [one.geometry.apply(x, one.weight, one.deployed()[1])]
        if one.stages():
            forms.append(one.run_stages(x))
        for expected in forms:
            error, largest = float((output - expected).abs().max()), float(expected.abs().max())
            if not error <= ROUNDED * precision * max(terms, largest):
                raise SurgeryError(
                    f"layer {name or '(the model)'} is off by {error:.1e} when contracted, its largest output is {largest:.1e}",
                    "report the layer's shape and kind",
                )


def _input(layer: OverparamLayer) -> Tensor:
    """One example (1, g·I, h, w), a little larger than the kernel reaches, or (1, I); the same each time."""
    geometry = layer.geometry
    generator = torch.Generator().manual_seed(0)
    channels = geometry.inner * geometry.groups
    if geometry.linear:
        return torch.randn(1, channels, dtype=torch.float64, generator=generator)
    height, width = (
        d * (k - 1) + 1 + s
        for d, k, s in zip(geometry.dilation, geometry.kernel, geometry.stride, strict=True)
    )
    left, right, top, bottom = geometry.border
    height, width = max(height, left + 1, right + 1, top + 1, bottom + 1), max(width, left + 1, right + 1)
    return torch.randn(1, channels, height, width, dtype=torch.float64, generator=generator)


def _terms(layer: OverparamLayer, x: Tensor) -> float:
    """The largest sum of the magnitudes that an output is made of: where factors cancel, their rounding stays."""
    layer = copy_model(layer)
    for parameter in layer.parameters():
        parameter.abs_()
    return float(layer.geometry.apply(x.abs(), layer.weight).abs().max())
