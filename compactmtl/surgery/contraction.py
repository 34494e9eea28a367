"""Contraction: what becomes one plain layer before channels are removed, because its channels cannot go otherwise.

Three forms have one, or a few:

- factorized layers, the training form of this package: `compactmtl.overparam.contract` gives their plain model;
- branched blocks, which know how to become one layer: timm's `fuse`, `reparameterize`, `switch_to_deploy`;
- layers whose weight is computed from parameters at every call (standardized, normalized, parametrized). What such a
  layer computes from a channel depends on all others. Its plain layer has the weight that it uses in eval mode.
  `nn.MultiheadAttention`, whose weights are parts of one, becomes several plain layers, and so does attention over channels
  or of a class token (`split_form`).

`find_branched` and `find_computed` name those of a plain model, `contract_layers` replaces them in place. The plan names
them too, under `fused` and `contracted`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.overrides import TorchFunctionMode

from compactmtl.graph.borrow import borrowed
from compactmtl.graph.channel_graph import ChannelGraph
from compactmtl.surgery.attention import SplitAttention, can_split
from compactmtl.surgery.self_attention import split_form

_BRANCHED = ("fuse", "reparameterize", "switch_to_deploy")
_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
_CALLS = {
    torch.conv1d: nn.Conv1d,
    torch.conv2d: nn.Conv2d,
    torch.conv3d: nn.Conv3d,
    F.conv1d: nn.Conv1d,
    F.conv2d: nn.Conv2d,
    F.conv3d: nn.Conv3d,
    F.linear: nn.Linear,
}


def contract_layers(model: nn.Module, branched: Sequence[str] = (), computed: Sequence[str] = ()) -> None:
    """Put plain layers in place of the blocks and layers named, wherever the model holds them; blocks first.

    Raises KeyError for a name that the model does not have; what the blocks themselves raise passes through.
    """
    if branched:
        _fuse(model, branched)
    if computed:
        _replace(model, computed)


def find_branched(model: nn.Module) -> list[str]:
    """Names of the outermost blocks below `model` that have one of the methods; a module in them of such a name is none."""
    names: list[str] = []
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in names)
        if (
            name
            and not inside
            and any(map(inspect.ismethod, (getattr(module, way, None) for way in _BRANCHED)))
        ):
            names.append(name)
    return names


def find_computed(graph: ChannelGraph, model: nn.Module) -> list[str]:
    """Names of the layers in `graph` with a computed weight that `plain_layer` has a plain form of."""
    modules = dict(model.named_modules())
    names: dict[str, None] = {}
    for product in graph.products:
        stack = product.node.meta.get("nn_module_stack") or {}
        if product.weight is None and stack:
            # A parametrization runs in modules of its own inside the layer.
            paths = [entry[0] for entry in stack.values()]
            names[next((path for path in reversed(paths) if isinstance(modules.get(path), _LAYERS)), "")] = (
                None
            )
    return [name for name in names if name and plain_layer(modules[name]) is not None]


def find_attention(model: nn.Module) -> list[str]:
    """Names of attentions that can be split into plain layers: torch's, and those of `split_form`."""
    return [
        name
        for name, module in model.named_modules()
        if name and (can_split(module) or split_form(module) is not None)
    ]


def plain_layer(layer: nn.Module) -> nn.Module | None:
    """The plain layer that computes the same in eval mode; None where the layer does more than call one.

    Of an attention it is a module of plain layers.
    """
    if can_split(layer):
        assert isinstance(layer, nn.MultiheadAttention)
        return SplitAttention(layer)
    if (split := split_form(layer)) is not None:
        return split
    if not isinstance(layer, _LAYERS) or isinstance(layer, _ConvTransposeNd):
        return None
    reference = next(layer.parameters(), None)
    if reference is None:
        return None
    if isinstance(layer, _ConvNd):
        reach = [d * (k - 1) + 1 for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
        x = reference.new_zeros(1, layer.in_channels, *reach)
    else:
        x = reference.new_zeros(1, layer.in_features)
    with borrowed(layer, weights=False), _Caught() as caught:
        try:
            y = layer(x)
        except Exception:
            return None
    if len(caught.calls) != 1:
        return None
    kind, args, kwargs, result = caught.calls[0]
    names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
    given = dict(zip(names, args, strict=False)) | kwargs
    if given["input"] is not x or result is not y:
        return None  # it pads, scales or otherwise changes what goes in or comes out
    weight, bias = given["weight"], given.get("bias")
    plain: nn.Module
    if kind is nn.Linear:
        plain = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    else:
        settings = {key: given[key] for key in ("stride", "padding", "dilation") if key in given}
        groups = given.get("groups", 1)
        plain = kind(
            weight.shape[1] * groups,
            weight.shape[0],
            tuple(weight.shape[2:]),
            groups=groups,
            bias=bias is not None,
            device="meta",
            **settings,
        )
    plain._parameters["weight"] = nn.Parameter(
        weight.detach().clone(memory_format=torch.contiguous_format)
    )  # a product may have strides that torch takes for channels last
    if bias is not None:
        plain._parameters["bias"] = nn.Parameter(bias.detach().clone())
    plain.train(layer.training)
    return plain


class _Caught(TorchFunctionMode):
    """Notes every call of a convolution or linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[type[nn.Module], tuple[Any, ...], dict[str, Any], Tensor]] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = dict(kwargs or {})
        result = func(*args, **given)
        if func in _CALLS:
            self.calls.append((_CALLS[func], args, given, result))
        return result


def _fuse(model: nn.Module, names: Sequence[str]) -> None:
    """Contract the blocks named, and those inside them."""
    from timm.models import reparameterize_model

    modules = dict(model.named_modules())
    for name in names:
        block = modules[name]
        # timm walks the children of what it is given.
        holder = nn.ModuleDict({"block": block})
        reparameterize_model(holder, inplace=True)
        for parent in modules.values():
            for leaf, child in parent._modules.items():
                if child is block:
                    parent._modules[leaf] = holder["block"]


def _replace(model: nn.Module, names: Sequence[str]) -> None:
    """Put the plain layers in place of those named."""
    modules = dict(model.named_modules())
    plain = {modules[name]: plain_layer(modules[name]) for name in names}
    for parent in list(modules.values()):
        for leaf, child in parent._modules.items():
            if child is not None and plain.get(child) is not None:
                parent._modules[leaf] = plain[child]
