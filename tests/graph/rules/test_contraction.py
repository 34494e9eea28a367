"""Products with a parameter and between activations, in every spelling: as many channels go as of a linear layer."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.support.masking import compacted, image, kill, shape

Weight = nn.Parameter
PRODUCTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "matmul": lambda y, w: y.permute(0, 2, 3, 1) @ w,
    "matmul of vectors": lambda y, w: y.mean((2, 3)) @ w,
    "weight on the left": lambda y, w: w.t() @ y.flatten(2),
    "mm": lambda y, w: torch.mm(y.mean((2, 3)), w),
    "addmm": lambda y, w: torch.addmm(y.new_zeros(4), y.mean((2, 3)), w),
    "einsum": lambda y, w: torch.einsum("bchw,co->bohw", y, w),
    "einsum, weight first": lambda y, w: torch.einsum("co,bchw->bhwo", w, y),
    "einsum with dots": lambda y, w: torch.einsum("...c,co->...o", y.permute(0, 2, 3, 1), w),
    "implicit einsum": lambda y, w: torch.einsum("bc,co", y.mean((2, 3)), w),
    "tensordot": lambda y, w: torch.tensordot(y, w, dims=([1], [0])),
}


class Product(nn.Module):
    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.weight, self.function = nn.Conv2d(3, 8, 1), nn.Parameter(torch.randn(8, 4)), function
        kill(self.conv, zero=[1, 5])

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.conv(x), self.weight)


@pytest.mark.parametrize("name", PRODUCTS)
def test_zeros_in_front_of_a_product_go(name: str) -> None:
    result = compacted(Product(PRODUCTS[name]), image())
    assert shape(result, "conv.weight")[0] == 6 and shape(result, "weight") == (6, 4)


def test_what_a_product_writes_is_followed() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.one, self.two = nn.Parameter(torch.randn(3, 8)), nn.Parameter(torch.randn(8, 4))
            self.bias = nn.Parameter(torch.randn(8))

        def forward(self, x: Tensor) -> Tensor:
            y = torch.addmm(self.bias, x.mean((2, 3)), self.one)
            return torch.relu(y) @ self.two

    model = Two()
    with torch.no_grad():
        model.one[:, [1, 5]] = 0
        model.bias[[1, 5]] = 0
    result = compacted(model, image())
    assert shape(result, "one") == (3, 6) and shape(result, "bias") == (6,) and shape(result, "two") == (6, 4)


def test_a_constant_that_has_no_bias_to_go_to_stays_and_is_listed() -> None:
    model = Product(PRODUCTS["einsum"])
    kill(model.conv, constant=[1])
    result = compacted(model, image())
    assert shape(result, "conv.weight")[0] == 7
    assert "folded" in result.report.not_pruned["conv"]


@pytest.mark.parametrize("spelled", [True, False])
def test_attention_by_einsum_loses_what_attention_by_matmul_does(spelled: bool) -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.q, self.k, self.v, self.out = (
                nn.Linear(3, 8),
                nn.Linear(3, 8),
                nn.Linear(3, 8),
                nn.Linear(8, 2),
            )

        def forward(self, x: Tensor) -> Tensor:
            tokens = x.flatten(2).transpose(1, 2)
            q, k, v = (
                layer(tokens).view(len(x), 64, 2, -1).transpose(1, 2) for layer in (self.q, self.k, self.v)
            )
            if spelled:
                weights = torch.einsum("bhqd,bhkd->bhqk", q, k).softmax(-1)
                y = torch.einsum("bhqk,bhkd->bhqd", weights, v)
            else:
                y = (q @ k.transpose(-2, -1)).softmax(-1) @ v
            out: Tensor = self.out(y.transpose(1, 2).flatten(2))
            return out

    model = Attention()
    kill(model.q, zero=[0, 4])
    kill(model.v, zero=[1, 5])
    result = compacted(model, image())
    assert [shape(result, f"{name}.weight")[0] for name in ("q", "k", "v")] == [6, 6, 6]
