"""Attention that counts its own channels by those of its input, made of layers of its own that can be cut apart.

`B, N, C = x.shape` and then `reshape(B, N, C)` of what was attended ties the width of the heads to that of the stream, and one
layer for queries, keys and values ties theirs together. `ChannelAttention` (XCiT, EdgeNeXt) and `ClassAttention` (CaiT, XCiT)
take the place of modules that were seen to give the same on noise, whatever these are called.

Sources: arXiv:2106.09681, section 3.2; arXiv:2103.17239, section 3.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compactmtl.graph.borrow import borrowed
from compactmtl.graph.copies import copy_model

_SAME = 1e-9  # in float64, of the largest value: the same products, maybe summed in another order
_TOKENS = 5


class ChannelAttention(nn.Module):
    """(B, N, C) to (B, N, outputs): each channel of a head attends to all channels of the head, over all positions.

    `q` (heads * rows, C), `k` and `v` (heads * columns, C), `temperature` (heads, 1, 1), `out_proj` (outputs, heads * rows).
    """

    def __init__(
        self, q: nn.Linear, k: nn.Linear, v: nn.Linear, out_proj: nn.Linear, temperature: Tensor, heads: int
    ) -> None:
        super().__init__()
        self.num_heads = heads
        self.q, self.k, self.v, self.out_proj = q, k, v, out_proj
        self.temperature = nn.Parameter(temperature.detach().clone(), temperature.requires_grad)

    def forward(self, x: Tensor) -> Tensor:
        """Of tokens (B, N, C)."""

        def heads(layer: nn.Linear) -> Tensor:
            split: Tensor = layer(x).unflatten(-1, (self.num_heads, -1)).permute(0, 2, 3, 1)
            return split

        q, k, v = F.normalize(heads(self.q), dim=-1), F.normalize(heads(self.k), dim=-1), heads(self.v)
        weights = ((q @ k.transpose(-2, -1)) * self.temperature).softmax(-1)
        y: Tensor = self.out_proj((weights @ v).permute(0, 3, 1, 2).flatten(2))
        return y


class ClassAttention(nn.Module):
    """(B, N, C) to (B, 1, outputs): the first token attends to all.

    `q`, `k` (heads * width, C), `v` (heads * its width, C), `out_proj` (outputs, heads * width of v).
    """

    def __init__(
        self, q: nn.Linear, k: nn.Linear, v: nn.Linear, out_proj: nn.Linear, heads: int, scale: float
    ) -> None:
        super().__init__()
        self.num_heads, self.scale = heads, scale
        self.q, self.k, self.v, self.out_proj = q, k, v, out_proj

    def forward(self, x: Tensor) -> Tensor:
        """Of tokens (B, N, C)."""

        def heads(layer: nn.Linear, tokens: Tensor) -> Tensor:
            split: Tensor = layer(tokens).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            return split

        q, k, v = heads(self.q, x[:, :1]), heads(self.k, x), heads(self.v, x)
        weights = (q @ k.transpose(-2, -1) * self.scale).softmax(-1)
        y: Tensor = self.out_proj((weights @ v).transpose(1, 2).flatten(2))
        return y


def split_form(module: nn.Module) -> nn.Module | None:
    """A module of separate layers that gives what `module` does in eval mode; None where it is no such attention."""
    made = _candidate(module)
    if made is None or not _gives_the_same(module, made):
        return None
    return made.train(module.training)


def _candidate(module: nn.Module) -> ChannelAttention | ClassAttention | None:
    heads = getattr(module, "num_heads", None)
    layers = [child for child in module.children() if type(child) is nn.Linear]
    others = [child for child in module.children() if type(child) is not nn.Linear]
    if type(heads) is not int or heads < 1 or any(list(child.parameters()) for child in others):
        return None
    own = list(module.parameters(recurse=False))
    if len(layers) == 2 and len(own) == 1 and own[0].shape == (heads, 1, 1):
        joint, last = layers
        if joint.out_features == 3 * last.in_features and last.in_features % heads == 0:
            return ChannelAttention(*_thirds(joint), _linear(last), own[0], heads)
    if len(layers) == 4 and not own:
        widths = {layer.out_features for layer in layers[:3]} | {layers[3].in_features}
        if len(widths) == 1 and layers[0].out_features % heads == 0:
            q, k, v, last = map(_linear, layers)
            return ClassAttention(q, k, v, last, heads, (layers[0].out_features // heads) ** -0.5)
    return None


def _thirds(joint: nn.Linear) -> tuple[nn.Linear, nn.Linear, nn.Linear]:
    """The layers of queries, keys and values that one layer for all three holds one after another."""
    biases = (None,) * 3 if joint.bias is None else joint.bias.chunk(3)
    q, k, v = (plain_linear(weight, bias) for weight, bias in zip(joint.weight.chunk(3), biases, strict=True))
    return q, k, v


def _linear(layer: nn.Linear) -> nn.Linear:
    return plain_linear(layer.weight, layer.bias)


def plain_linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A linear layer of these values, (outputs, inputs) and (outputs,)."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.detach().clone(), weight.requires_grad)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone(), bias.requires_grad)
    return layer


def _gives_the_same(module: nn.Module, made: nn.Module) -> bool:
    """Whether both give the same of noise, in float64."""
    one, other = (copy_model(model, dtype=torch.float64) for model in (module, made))
    first = next(one.parameters())
    width = next(child for child in one.children() if type(child) is nn.Linear).in_features
    noise = torch.randn(2, _TOKENS, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with borrowed(one, other, weights=False):
        try:
            expected, found = one(noise.to(first.device)), other(noise.to(first.device))
        except Exception:  # it takes another input, or more than one
            return False
    if not isinstance(expected, Tensor) or expected.shape != found.shape:
        return False
    scale = float(expected.abs().max()) or 1.0
    return bool((expected - found).abs().max() <= _SAME * scale)
