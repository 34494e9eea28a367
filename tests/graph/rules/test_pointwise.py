"""Pointwise operators: constants pass, coordinates of several inputs go together, zeros make gates unread."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.support.masking import Between, all_left, compacted, image, kill, left, shape

Function = Callable[[Tensor], Tensor]

# Whatever they do to one number: a constant channel stays a constant one.
FUNCTIONS: dict[str, Function] = {
    "relu": F.relu,
    "relu6": F.relu6,
    "gelu": F.gelu,
    "silu": F.silu,
    "mish": F.mish,
    "elu": F.elu,
    "selu": F.selu,
    "celu": F.celu,
    "softplus": F.softplus,
    "softsign": F.softsign,
    "leaky_relu": F.leaky_relu,
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "hardtanh": F.hardtanh,
    "hardshrink": F.hardshrink,
    "softshrink": F.softshrink,
    "logsigmoid": F.logsigmoid,
    "threshold": lambda x: F.threshold(x, 0.1, 0.2),
    "sigmoid, in place": lambda x: x.sigmoid_(),
    "arithmetic": lambda x: (1 - 2 * x) / (1 + x.abs()) - x**3,
    "exponential": lambda x: x.exp().log1p().sqrt() + x.erf(),
    "clamp": lambda x: x.clamp(-0.1, 0.5),
    "where": lambda x: torch.where(x > 0, x, 0.1 * x),
    "masked_fill": lambda x: x.masked_fill(x < 0, 0.3),
    "comparison": lambda x: (x > 0.1).to(x.dtype) + x,
    "lerp": lambda x: torch.lerp(x, 2 * x, 0.3),
    "addcmul": lambda x: torch.addcmul(x, x, x),
    "nan_to_num": torch.nan_to_num,
    "dropout": lambda x: F.dropout2d(F.dropout(x, training=False), training=False),
    "chain in place": lambda x: x.clone().relu_().add_(1.0).mul_(x),
    "autocast off": lambda x: _exact(x),
    "zeros_like": lambda x: torch.zeros_like(x) + torch.ones_like(x) * x,
}


def _exact(x: Tensor) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        return x.relu() * 2


@pytest.mark.slow
def test_constants_pass() -> None:
    assert all_left(FUNCTIONS) == (dict.fromkeys(FUNCTIONS, 5), {})


def test_cast_passes_zeros_and_constants() -> None:
    # 0.7 in float32 is another number than in float64, and both models round it alike.
    result = compacted(Between(lambda x: x.float().double()), image())
    assert shape(result, "first.weight")[0] == 5


def test_number_of_channels_in_the_forward_keeps_them() -> None:
    assert left(lambda x: x + torch.arange(8, dtype=x.dtype)[:, None, None]) == 8


def test_prelu_slopes_go_with_their_channels() -> None:
    result = compacted(Between(nn.PReLU(8, init=0.3)), image())
    assert shape(result, "function.weight") == (5,)
    function = result.model.get_submodule("function")
    assert isinstance(function, nn.PReLU) and function.num_parameters == 5


def test_prelu_with_one_slope_keeps_it() -> None:
    assert shape(compacted(Between(nn.PReLU()), image()), "function.weight") == (1,)


class Sum(nn.Module):
    """Two branches added: a channel goes where both let it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.other = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 1)
        self.last = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.combine(self.one(x), self.other(x)))
        return y

    def combine(self, one: Tensor, other: Tensor) -> Tensor:
        return one + other


class Product(Sum):
    def combine(self, one: Tensor, other: Tensor) -> Tensor:
        return one * torch.sigmoid(other)


class Quotient(Sum):
    def combine(self, one: Tensor, other: Tensor) -> Tensor:
        return one / (1 + other.square())


def test_sum_loses_what_both_branches_lost() -> None:
    model = Sum()
    kill(model.one, zero=[0, 1], constant=[2])
    kill(model.other, zero=[1, 4], constant=[2])
    result = compacted(model, image())
    assert shape(result, "one.weight")[0] == shape(result, "other.weight")[0] == 6  # 1 and 2


def test_zero_factor_makes_the_other_unread() -> None:
    model = Product()
    kill(model.one, zero=[0, 1], constant=[2])
    result = compacted(model, image())
    assert shape(result, "other.weight")[0] == 6
    assert shape(result, "last.weight") == (2, 6, 1, 1)


def test_constant_numerator_does_not_make_the_quotient_constant() -> None:
    model = Quotient()
    kill(model.one, constant=[2])
    kill(model.other, constant=[2, 3])
    result = compacted(model, image())
    assert shape(result, "one.weight")[0] == 7  # 2 alone


class Gated(nn.Module):
    """Squeeze and excitation, with or without kept dimensions."""

    def __init__(self, keepdim: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.keepdim = keepdim
        self.conv, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 2, 3, padding=1)
        make = (lambda a, b: nn.Conv2d(a, b, 1)) if keepdim else nn.Linear
        self.down, self.up = make(8, 4), make(4, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x))
        gate = F.hardsigmoid(self.up(F.relu(self.down(x.mean((2, 3), keepdim=self.keepdim)))))
        y: Tensor = self.last(x * (gate if self.keepdim else gate[:, :, None, None]))
        return y


@pytest.mark.parametrize("keepdim", [True, False])
def test_gate_goes_with_its_zero_channel_and_its_own_interior(keepdim: bool) -> None:
    model = Gated(keepdim)
    kill(model.conv, zero=[2, 6])
    kill(model.down, zero=[1])
    result = compacted(model, image())
    assert shape(result, "conv.weight")[0] == shape(result, "up.weight")[0] == 6
    assert shape(result, "down.weight")[:2] == (3, 6)


@pytest.mark.parametrize(("squeezed", "stay"), [(True, 8), (False, 7)])
def test_closed_gate_takes_its_channel_along_unless_it_is_squeezed(squeezed: bool, stay: int) -> None:
    model = Gated(True)
    kill(model.down, unread=[] if squeezed else [3])
    with torch.no_grad():
        model.up.weight[[3]] = 0
        model.up.bias[[3]] = -9.0  # type: ignore[index]  # hardsigmoid: 0
    result = compacted(model, image())
    assert shape(result, "conv.weight")[0] == stay


class Scaled(nn.Module):
    """Parameters used outside modules: layer scale, a shift, and a map over positions."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)
        self.gamma, self.beta = nn.Parameter(torch.rand(8, 1, 1) + 0.5), nn.Parameter(torch.rand(1, 8, 1, 1))
        self.position = nn.Parameter(torch.rand(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.gamma * self.conv(x) + self.beta) + self.position.mean()
        return y


def test_scales_and_shifts_go_with_their_channels() -> None:
    model = Scaled()
    kill(model.conv, zero=[0], constant=[4])
    with torch.no_grad():
        model.gamma[[5]] = 0
    result = compacted(model, image())
    assert shape(result, "gamma") == (5, 1, 1) and shape(result, "beta") == (1, 5, 1, 1)
    assert shape(result, "position") == (8, 8)


class Positional(nn.Module):
    """An embedding of every position and channel: it is cut with the channel, which it makes live."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)
        self.table = nn.Parameter(torch.rand(1, 8, 8, 8))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.conv(x) + self.table)
        return y


def test_table_over_positions_keeps_dead_filters_but_not_unread_channels() -> None:
    model = Positional()
    kill(model.conv, zero=[0, 1])
    kill(model.last, unread=[1, 2])
    result = compacted(model, image())
    assert shape(result, "conv.weight")[0] == shape(result, "table")[1] == 6


def test_what_a_forward_makes_or_chooses_takes_the_channels_that_it_meets() -> None:
    kept, _ = all_left(
        {
            "new_zeros": lambda x: x + x.new_zeros(x.shape),
            "zeros": lambda x: x + torch.zeros(x.shape, dtype=x.dtype),
            "full": lambda x: x + torch.full(x.shape, 2.0, dtype=x.dtype),
            "maximum": lambda x: torch.max(x, torch.tanh(x)),
            "minimum": lambda x: torch.min(x, torch.tanh(x)),
            "rrelu": lambda x: F.rrelu(x),
            "flip": lambda x: x.flip(1),
            "rot90": lambda x: x.rot90(1, (2, 3)),
        }
    )
    assert kept == dict.fromkeys(kept, 5)


def test_zeros_pass_a_mask_of_positions() -> None:
    kept, _ = all_left(
        {
            "where": lambda x: torch.where(x.sum(1, keepdim=True) > 0, x, 0.0),
            "where of tensors": lambda x: torch.where(x.sum(1, keepdim=True) > 0, x, torch.zeros_like(x)),
            "made": lambda x: torch.where(x.sum(1, keepdim=True) > 0, x, x.new_zeros(())),
            "stacked": lambda x: torch.stack([x, x.new_zeros(x.shape)], 1).sum(1),
            "masked_fill": lambda x: x.masked_fill(x.sum(1, keepdim=True) > 0, 0.0),
        }
    )
    assert kept == dict.fromkeys(kept, 7)  # the constants take part in the sum, or meet another value


def test_a_gated_linear_unit_loses_values_with_their_gates() -> None:
    model = Between(lambda x: F.glu(x, 1), reads=4)
    kill(model.first, zero=[1, 2])
    # value 1 is 0 and its gate 5 a constant, value 2 is 0 and its gate 6 is not read
    assert shape(compacted(model, image()), "first.weight")[0] == 4


@pytest.mark.parametrize("form", ["repeat", "tile", "repeat_interleave", "pad"])
def test_repeated_and_padded_channels_are_followed(form: str) -> None:
    functions: dict[str, Callable[[Tensor], Tensor]] = {
        "repeat": lambda x: x.repeat(1, 2, 1, 1),
        "tile": lambda x: torch.tile(x, (2, 1, 1)),
        "repeat_interleave": lambda x: x.repeat_interleave(2, 1),
        "pad": lambda x: F.pad(x, (0, 0, 0, 0, 3, 5)),
    }
    assert left(functions[form], reads=16) == 5
