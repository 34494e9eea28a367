"""Join layers in a row into one, and put an identity in the place of the others: the arithmetic, and the edit of a model.

Two layers with nothing between them that is not linear are one: W = W₂·W₁, b = W₂·b₁ + b₂. Of the layers that are joined at most
one has a kernel, stride or padding of its own (see `main_of`), and the result has that one's; the others are pointwise, such as 1×1
convolutions. A batch norm between two of them, with the statistics that eval mode uses, is a factor and a bias for each channel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from compactmtl.errors import ArtifactError
from compactmtl.surgery.plan import Join, Plan
from compactmtl.surgery.stand_ins import put

Norm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d
Layer = nn.Linear | _ConvNd

# Classes of these very types: a subclass may do more than the layer.
_NORMS: dict[type[nn.Module], int] = {nn.BatchNorm1d: 1, nn.BatchNorm2d: 2, nn.BatchNorm3d: 3}
_LAYERS: dict[type[nn.Module], int] = {
    nn.Linear: 0,
    nn.Conv1d: 1,
    nn.Conv2d: 2,
    nn.Conv3d: 3,
    nn.ConvTranspose1d: 1,
    nn.ConvTranspose2d: 2,
    nn.ConvTranspose3d: 3,
}

_MEND = "rebuild the model from the recipe that the plan was made for"


def is_norm(module: nn.Module) -> bool:
    """Whether it is a batch norm with running statistics, nothing done around it."""
    return type(module) in _NORMS and module.running_mean is not None and not has_hooks(module)


def is_layer(module: nn.Module) -> bool:
    """Whether it is a linear layer or a convolution of one group, with a weight of its own and nothing done around it."""
    weight = module._parameters.get("weight")
    if type(module) not in _LAYERS or has_hooks(module) or weight is None or not weight.is_floating_point():
        return False
    return not isinstance(module, _ConvNd) or module.groups == 1


def has_hooks(module: nn.Module) -> bool:
    """Whether something runs when the module is called, saved or loaded; a forward of its own among it."""
    return "forward" in vars(module) or any(
        value for name, value in vars(module).items() if name.endswith("_hooks")
    )


def is_pointwise(layer: nn.Module) -> bool:
    """Whether a layer computes every position of its output of the same position of its input alone."""
    if isinstance(layer, nn.Linear):
        return True
    assert isinstance(layer, _ConvNd)
    if isinstance(layer, _ConvTransposeNd) or is_padded(layer):
        return False
    return set(layer.kernel_size) == {1} and set(layer.stride) == {1}


def is_padded(layer: nn.Module) -> bool:
    """Whether a convolution puts anything around its input."""
    return isinstance(layer, _ConvNd) and any(layer._reversed_padding_repeated_twice)


def spreads_unevenly(layer: nn.Module) -> bool:
    """Whether a constant input does not give a constant output: zeros are padded, or a transposed kernel overlaps itself."""
    if isinstance(layer, _ConvTransposeNd):
        return True
    return isinstance(layer, _ConvNd) and layer.padding_mode == "zeros" and is_padded(layer)


def main_of(modules: Sequence[nn.Module]) -> int | None:
    """Of modules in a row the position of the layer whose place the joined one takes; None where they cannot be joined.

    That is the one which is not pointwise, or the last. The first and the last are layers, all are of one number of spatial
    dimensions, type and device, and the channels of each are those of the next.
    """
    if len(modules) < 2 or not (is_layer(modules[0]) and is_layer(modules[-1])):
        return None
    dims = _LAYERS[type(modules[0])]
    tensors = [value for module in modules for value in _read(module)]
    if len({(value.dtype, value.device) for value in tensors}) > 1:
        return None
    width = _widths(modules[0])[1]
    main = None
    for position, module in enumerate(modules):
        if is_norm(module):
            if _NORMS[type(module)] != max(dims, 1) or module.num_features != width:
                return None
            continue
        if not is_layer(module) or _LAYERS[type(module)] != dims or _widths(module)[1] != width:
            return None
        width = _widths(module)[0]
        if not is_pointwise(module):
            if main is not None:
                return None
            main = position
    return len(modules) - 1 if main is None else main


def joined_size(modules: Sequence[nn.Module], main: int) -> int:
    """How many entries the weight of the joined layer has."""
    kernel = math.prod(_held(modules[main]).shape[2:])
    return int(_widths(modules[-1])[0] * _widths(modules[0])[1] * kernel)


def joined(modules: Sequence[nn.Module], main: int) -> nn.Module:
    """One layer that does what `modules` do one after another in eval mode, in the form of that at `main`.

    Its numbers are computed in float64. It has a bias where any of them has one. Exact where the main layer does not spread a
    constant unevenly or `shift_before` is zero.
    """
    layer = modules[main]
    weight, bias = _weight(layer), _bias(layer)
    for module in modules[main + 1 :]:
        matrix, shift = _pointwise(module)
        if matrix.ndim == 1:
            weight, bias = matrix.view(-1, *[1] * (weight.ndim - 1)) * weight, matrix * bias + shift
        else:
            weight, bias = torch.tensordot(matrix, weight, 1), matrix @ bias + shift
    for module in reversed(modules[:main]):
        matrix, shift = _pointwise(module)
        total = weight.flatten(2).sum(2) if weight.ndim > 2 else weight
        bias = bias + total @ shift
        if matrix.ndim == 1:
            weight = weight * matrix.view(1, -1, *[1] * (weight.ndim - 2))
        else:
            weight = torch.einsum("om...,mi->oi...", weight, matrix)
    return _made(modules, layer, weight, bias)


def shift_before(modules: Sequence[nn.Module]) -> Tensor:
    """What pointwise modules in a row give for an input of zeros, (channels,), in float64."""
    value = torch.zeros((), dtype=torch.float64)
    for module in modules:
        matrix, shift = _pointwise(module)
        value = shift if value.ndim == 0 else (matrix * value if matrix.ndim == 1 else matrix @ value) + shift
    return value


def is_identity(module: nn.Module) -> bool:
    """Whether a layer or norm hands its input on as it is, in eval mode and in the numbers of its own type."""
    if is_norm(module):
        (scale, shift), bias = _affine(module), module._parameters["bias"]
        kind = _read(module)[0].dtype
        slack = torch.finfo(kind).eps * (
            torch.zeros_like(shift) if bias is None else bias.detach().double().abs()
        )
        return bool((scale.to(kind) == 1).all() and (shift.abs() <= slack).all())
    if not is_layer(module) or isinstance(module, _ConvTransposeNd):
        return False
    outputs, inputs = _widths(module)
    if outputs != inputs or bool(_bias(module).any()):
        return False
    weight = middle = _held(module)
    if isinstance(module, _ConvNd):
        if not _keeps_positions(module):
            return False
        for size in module.kernel_size:
            middle = middle[:, :, size // 2]
    return bool((middle.diagonal() == 1).all()) and int(torch.count_nonzero(weight)) == outputs


def join_layers(model: nn.Module, plan: Plan) -> None:
    """Make the identities and joins of a plan, in place. Raises ArtifactError where they do not fit the model."""
    with torch.no_grad():
        for path in plan.identities:
            put(model, path, nn.Identity().train(_module(model, path).training))
        for join in plan.joins:
            _join(model, join)


def _join(model: nn.Module, join: Join) -> None:
    modules = [_module(model, path) for path in join.layers]
    main = main_of(modules)
    if main is None or join.layers[main] != join.into:
        raise ArtifactError(
            f"the plan joins {', '.join(join.layers)} into {join.into}, which do not fit each other", _MEND
        )
    put(model, join.into, joined(modules, main))
    for path in join.layers:
        if path != join.into:
            put(model, path, nn.Identity().train(modules[main].training))


def _module(model: nn.Module, path: str) -> nn.Module:
    try:
        return model.get_submodule(path)
    except AttributeError as error:
        raise ArtifactError(f"the plan joins {path}, which the model does not have", _MEND) from error


def _read(module: nn.Module) -> list[Tensor]:
    """The tensors that a joined layer is made of."""
    held = (*module._parameters.values(), *module._buffers.values())
    return [value for value in held if value is not None and value.is_floating_point()]


def _widths(layer: nn.Module) -> tuple[int, int]:
    """Outputs and inputs."""
    rows, columns = _held(layer).shape[:2]
    return (columns, rows) if isinstance(layer, _ConvTransposeNd) else (rows, columns)


def _held(layer: nn.Module) -> Tensor:
    weight = layer._parameters["weight"]
    assert weight is not None
    return weight.detach()


def _weight(layer: nn.Module) -> Tensor:
    """The weight in float64, (outputs, inputs, *kernel)."""
    weight = _held(layer).double()
    return weight.transpose(0, 1) if isinstance(layer, _ConvTransposeNd) else weight


def _bias(layer: nn.Module) -> Tensor:
    bias = layer._parameters["bias"]
    if bias is None:
        return _held(layer).new_zeros(_widths(layer)[0], dtype=torch.float64)
    return bias.detach().double()


def _pointwise(module: nn.Module) -> tuple[Tensor, Tensor]:
    """Matrix (outputs, inputs) and bias of a pointwise layer; of a norm its factors (channels,) and biases. In float64."""
    return _affine(module) if is_norm(module) else (_weight(module).flatten(1), _bias(module))


def _affine(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Factor and bias of each channel in eval mode."""
    assert isinstance(norm, Norm) and norm.running_mean is not None and norm.running_var is not None
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.detach().double()
    shift = -norm.running_mean.double() * scale
    return scale, shift if norm.bias is None else shift + norm.bias.detach().double()


def _keeps_positions(layer: _ConvNd) -> bool:
    """Whether the middle of the kernel lies on the position that is computed, and there are as many positions behind as before."""
    reach = [dilation * (size - 1) for dilation, size in zip(layer.dilation, layer.kernel_size, strict=True)]
    half = [one // 2 for one in reversed(reach) for _ in range(2)]  # on either side, the last dimension first
    odd = all(size % 2 for size in layer.kernel_size)
    return odd and set(layer.stride) == {1} and list(layer._reversed_padding_repeated_twice) == half


def _made(modules: Sequence[nn.Module], main: nn.Module, weight: Tensor, bias: Tensor) -> nn.Module:
    """A layer like `main` with other numbers, which are trained where any of the others' were."""
    biased = any(is_norm(module) or module._parameters["bias"] is not None for module in modules)
    outputs, inputs = weight.shape[:2]
    layer: nn.Module
    if isinstance(main, nn.Linear):
        layer = nn.Linear(inputs, outputs, biased, device="meta")
    else:
        assert isinstance(main, _ConvNd)
        names = ("kernel_size", "stride", "padding", "dilation", "padding_mode")
        settings = {name: getattr(main, name) for name in names}
        if isinstance(main, _ConvTransposeNd):
            settings["output_padding"] = main.output_padding
            weight = weight.transpose(0, 1)
        layer = type(main)(inputs, outputs, bias=biased, device="meta", **settings)
    like = _held(main)
    trained = any(value.requires_grad for module in modules for value in module.parameters())
    # `contiguous` would leave strides of a product such as (6, 1, 6, 6): of a 1×1 kernel torch takes them for channels last.
    plain = weight.to(like.dtype).clone(memory_format=torch.contiguous_format)
    layer._parameters["weight"] = nn.Parameter(plain, trained)
    if biased:
        layer._parameters["bias"] = nn.Parameter(bias.to(like.dtype), trained)
    return layer.train(main.training)
