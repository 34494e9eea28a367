"""Factorized layers compute what the plain layer with the contracted weight computes."""

from __future__ import annotations

from typing import Literal, get_args

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from compactmtl.errors import ConfigError
from compactmtl.overparam import FactorizedConv2d, FactorizedLinear

Mode = Literal["zeros", "reflect", "replicate", "circular"]

# torch says that `same` padding of an even kernel copies its input, for plain layers as for ours.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")

# float32 rounds at 6e-8; a sum of a few hundred products in another order stays below 1e-5 of its range.
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


def error(found: Tensor, expected: Tensor) -> float:
    return float(((found - expected).abs().max() / expected.abs().max().clamp_min(1e-30)).detach())


@st.composite
def convolutions(draw: st.DrawFn) -> nn.Conv2d:
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    mode: Mode = draw(st.sampled_from(get_args(Mode)))
    stride = draw(st.sampled_from([(1, 1), (2, 2), (1, 2)]))
    paddings: list[str | tuple[int, int]] = [(0, 0), (1, 1), (1, 0)]
    padding = draw(st.sampled_from(paddings + (["same", "valid"] if stride == (1, 1) else [])))
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    torch.manual_seed(draw(st.integers(0, 10_000)))
    return nn.Conv2d(
        groups * draw(st.integers(2, 5)),
        groups * draw(st.integers(1, 5)),
        (draw(st.integers(1, 3)), draw(st.integers(1, 3))),
        stride=stride,
        padding=padding,
        dilation=draw(st.sampled_from([(1, 1), (2, 2), (2, 1)])),
        groups=groups,
        bias=draw(st.booleans()),
        padding_mode=mode,
        dtype=dtype,
    )


def perturbed(layer: FactorizedConv2d | FactorizedLinear) -> FactorizedConv2d | FactorizedLinear:
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return layer


def two_convolutions(layer: FactorizedConv2d, x: Tensor) -> Tensor:
    """The definition: a 1×kw convolution by V, the diagonal, and a kh×1 convolution by U."""
    kh, kw = layer.U.shape[1], layer.V.shape[2]
    (sh, sw), (dh, dw) = layer.stride, layer.dilation
    v = (layer.M.prod(0)[:, None, None] * layer.V)[:, :, None, :]
    u = layer.U.permute(0, 2, 1)[..., None]
    inner = F.conv2d(x, v, stride=(1, sw), dilation=(1, dw), groups=layer.groups)
    assert (v.shape[2], u.shape[3], kh, kw) == (1, 1, u.shape[2], v.shape[3])
    return F.conv2d(inner, u, layer.bias, stride=(sh, 1), dilation=(dh, 1), groups=layer.groups)


@given(plain=convolutions(), share=st.floats(0.01, 1))
def test_convolution_contracts_exactly_after_training(plain: nn.Conv2d, share: float) -> None:
    rank = max(1, round(share * FactorizedConv2d.full_rank(plain)))
    layer = perturbed(FactorizedConv2d(plain, rank))
    x = torch.randn(2, plain.in_channels, 9, 8, dtype=plain.weight.dtype)
    contracted = layer.contracted()
    assert error(contracted(x), layer(x)) <= TOLERANCE[x.dtype]


@given(plain=convolutions())
def test_full_rank_convolution_keeps_the_function(plain: nn.Conv2d) -> None:
    layer = FactorizedConv2d(plain, FactorizedConv2d.full_rank(plain))
    x = torch.randn(2, plain.in_channels, 9, 8, dtype=plain.weight.dtype)
    assert error(layer(x), plain(x)) <= TOLERANCE[x.dtype]


@given(plain=convolutions())
def test_convolution_is_a_row_and_a_column_convolution(plain: nn.Conv2d) -> None:
    plain.padding_mode, plain.padding = "zeros", (0, 0)
    layer = perturbed(FactorizedConv2d(plain, FactorizedConv2d.full_rank(plain))).double()
    x = torch.randn(2, plain.in_channels, 9, 8, dtype=torch.float64)
    assert error(layer(x), two_convolutions(layer, x)) <= 1e-10  # type: ignore[arg-type]


@given(
    out=st.integers(1, 9),
    inner=st.integers(1, 9),
    bias=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 10_000),
)
def test_linear_keeps_the_function_and_contracts(
    out: int, inner: int, bias: bool, dtype: torch.dtype, seed: int
) -> None:
    torch.manual_seed(seed)
    plain = nn.Linear(inner, out, bias, dtype=dtype)
    layer = FactorizedLinear(plain, min(out, inner))
    x = torch.randn(2, 3, inner, dtype=dtype)
    assert error(layer(x), plain(x)) <= TOLERANCE[dtype]
    perturbed(layer)
    assert error(layer.contracted()(x), layer(x)) <= TOLERANCE[dtype]


def test_several_diagonals_multiply() -> None:
    torch.manual_seed(0)
    layer = FactorizedLinear(nn.Linear(4, 5, dtype=torch.float64), 4)
    diagonals = torch.rand(3, 4, dtype=torch.float64)
    layer.M = nn.Parameter(diagonals)
    expected = layer.U @ torch.diag(diagonals[0] * diagonals[1] * diagonals[2]) @ layer.V
    # The same three products in another order: float64 rounding only.
    torch.testing.assert_close(layer.weight, expected, rtol=1e-12, atol=1e-12)


def test_gradients_of_the_factors() -> None:
    torch.manual_seed(0)
    layer = FactorizedConv2d(nn.Conv2d(4, 6, 3, groups=2, padding=1, dtype=torch.float64), 3)
    x = torch.randn(1, 4, 5, 5, dtype=torch.float64)

    def run(u: Tensor, m: Tensor, v: Tensor) -> Tensor:
        output: Tensor = torch.func.functional_call(layer, {"U": u, "M": m, "V": v}, (x,))
        return output

    assert torch.autograd.gradcheck(run, (layer.U, layer.M, layer.V))


@pytest.mark.parametrize("weight", [torch.zeros(6, 4, 3, 3), torch.randn(6, 1, 1, 1).expand(6, 4, 3, 3)])
def test_a_rank_deficient_weight_still_learns_in_every_direction(weight: Tensor) -> None:
    torch.manual_seed(0)
    plain = nn.Conv2d(4, 6, 3)
    plain.weight = nn.Parameter(weight.clone())
    layer = FactorizedConv2d(plain, 12)
    # float32: the dropped singular values are rounding noise of the weight.
    torch.testing.assert_close(layer.weight, weight, rtol=1e-5, atol=1e-6)
    columns = layer.U.detach().reshape(-1, 12).double()
    assert torch.linalg.matrix_rank(columns) == 12
    layer(torch.randn(2, 4, 5, 5)).square().sum().backward()
    assert layer.V.grad is not None
    # Every component of the product gets a gradient through U or through V.
    assert (layer.V.grad.flatten(1).norm(dim=1) > 0).all()


def test_a_zero_slice_of_a_factor_is_an_exactly_zero_slice_of_the_weight() -> None:
    torch.manual_seed(0)
    layer = FactorizedConv2d(nn.Conv2d(5, 7, 3), 15)
    with torch.no_grad():
        layer.U[2] = 0
        layer.V[:, 3] = 0
    assert layer.weight[2].abs().max() == 0
    assert layer.weight[:, 3].abs().max() == 0


@pytest.mark.parametrize("rank", [0, 13])
def test_rank_out_of_range(rank: int) -> None:
    with pytest.raises(ConfigError, match=f"rank {rank} is out of range"):
        FactorizedConv2d(nn.Conv2d(4, 5, 3), rank)


def test_weights_that_are_not_finite() -> None:
    plain = nn.Linear(3, 3)
    with torch.no_grad():
        plain.weight[0, 0] = torch.nan
    with pytest.raises(ConfigError, match="NaN or infinity"):
        FactorizedLinear(plain, 3)


def test_half_precision_keeps_its_type() -> None:
    torch.manual_seed(0)
    plain = nn.Linear(6, 5, dtype=torch.bfloat16)
    layer = FactorizedLinear(plain, 5)
    assert layer.U.dtype == torch.bfloat16
    # bfloat16 rounds at 4e-3, the product of two factors at a few times that.
    assert error(layer.weight.float(), plain.weight.float()) <= 0.03
