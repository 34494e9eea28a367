"""Small models with dead channels, and what holds their compact form to them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from compactmtl.surgery import CompactResult, compact

# float64: merged carriers and folded constants are sums taken in another order, nothing more.
TOLERANCE = 1e-9
# float32, of the largest value: sums of a few hundred products, each rounded to 6e-8, whatever order a processor's kernels
# take. A share of each value would not do: one that is nearly 0 is a difference of large ones.
FLOAT32 = 1e-5


def kill(
    layer: Any, zero: Sequence[int] = (), constant: Sequence[int] = (), unread: Sequence[int] = ()
) -> None:
    """Mask a layer: filters of zeros, without or with a bias, and input columns of zeros."""
    with torch.no_grad():
        for rows, bias in ((zero, 0.0), (constant, 0.7)):
            layer.weight[list(rows)] = 0
            if layer.bias is not None:
                layer.bias[list(rows)] = bias
        if len(unread):
            layer.weight[:, list(unread)] = 0


def compacted(model: nn.Module, *inputs: Any, align: int = 1, rolled_back: bool = False) -> CompactResult:
    """Compact a masked model and hold the result to it on inputs that surgery has not seen.

    Also: nothing was rolled back (a removal that is proved wrong is exact, but a fault), the masked output
    depends on the input (else equality would prove nothing), and the argument is as it was. Layers in a row are not joined:
    what is removed of each can then be told.
    """
    model = model.double().eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    result = compact(model, inputs, align=align, tolerance=TOLERANCE, join=False)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    if not rolled_back:
        assert not [reason for reason in result.report.not_pruned.values() if "rolled back" in reason]
    generator = torch.Generator().manual_seed(7)
    seen: list[list[Tensor]] = []
    for _ in range(2):
        fresh = tree_map(lambda leaf: _redrawn(leaf, generator), list(inputs))
        with torch.no_grad():
            expected, found = (_tensors(net(*_own(fresh))) for net in (model, result.model))
        for one, other in zip(expected, found, strict=True):
            assert_close(one, other)
        seen.append(expected)
    assert any(float((one - other).abs().max()) > 1e-6 for one, other in zip(*seen, strict=True))
    return result


def _tensors(output: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]


def _own(inputs: list[Any]) -> list[Any]:
    """Copies: a forward may write into them."""
    copies: list[Any] = tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, inputs)
    return copies


def assert_close(one: Tensor, other: Tensor, tolerance: float = TOLERANCE) -> None:
    """Equal to `tolerance` of the largest value."""
    assert one.shape == other.shape
    one, other = one.detach(), other.detach()
    scale = float(one.abs().max()) or 1.0
    assert float((one - other).abs().max()) / scale <= tolerance


def _redrawn(leaf: Any, generator: torch.Generator) -> Any:
    if not isinstance(leaf, Tensor) or not leaf.is_floating_point():
        return leaf
    return torch.randn(leaf.shape, generator=generator, dtype=leaf.dtype)


def shape(result: CompactResult, name: str) -> tuple[int, ...]:
    """The shape of one tensor of the compact model."""
    return tuple(result.model.state_dict()[name].shape)


def image(*size: int) -> Tensor:
    """Noise, (2, 3, 8, 8) unless told otherwise."""
    return torch.randn(size or (2, 3, 8, 8), generator=torch.Generator().manual_seed(1), dtype=torch.float64)


class Between(nn.Module):
    """A convolution that writes 8 channels, a function of them, and a convolution that reads the result.

    Of `first`, channels 1 and 5 are constant (0.7) and channel 2 is zero: all three go where the function
    passes constants, one where it passes only zeros.
    """

    def __init__(self, function: Callable[[Tensor], Tensor], reads: int = 8, dims: int = 2) -> None:
        super().__init__()
        torch.manual_seed(0)
        convolution = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
        self.first = convolution(3, 8, 1)
        self.function = function
        self.last = convolution(reads, 2, 1)
        kill(self.first, zero=[2], constant=[1, 5])

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.function(self.first(x)))
        return y


class Branches(nn.Module):
    """One `Between` for each function, side by side: one trace serves them all."""

    def __init__(self, functions: Mapping[str, Callable[[Tensor], Tensor]]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(Between(function) for function in functions.values())

    def forward(self, x: Tensor) -> list[Tensor]:
        return [branch(x) for branch in self.branches]


def all_left(functions: Mapping[str, Callable[[Tensor], Tensor]]) -> tuple[dict[str, int], dict[str, str]]:
    """By name, how many of the 8 channels in front of each function stay, and the reason given for those that do."""
    result = compacted(Branches(functions), image())
    reasons = result.report.not_pruned
    firsts = [f"branches.{index}.first" for index in range(len(functions))]
    return (
        {name: shape(result, f"{first}.weight")[0] for name, first in zip(functions, firsts, strict=True)},
        {name: reasons[first] for name, first in zip(functions, firsts, strict=True) if first in reasons},
    )


def left(function: Callable[[Tensor], Tensor], reads: int = 8, **options: Any) -> int:
    """How many of the 8 channels of `Between` stay."""
    return shape(compacted(Between(function, reads), image(), **options), "first.weight")[0]
