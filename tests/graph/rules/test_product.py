"""Convolution and linear layers: every kind of them loses filters and inputs, and takes constants as it can."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.support.masking import compacted, image, kill, shape

SIZES = {1: (2, 3, 12), 2: (2, 3, 10, 10), 3: (2, 3, 6, 6, 6)}
CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


def _chain(*layers: nn.Module) -> Any:
    torch.manual_seed(0)
    for layer in layers:
        for parameter in layer.parameters():
            nn.init.normal_(parameter, std=0.4)
    return nn.Sequential(*layers)


@pytest.mark.slow
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_convolution_folds_constants_where_nothing_is_padded(dims: int) -> None:
    conv = CONVOLUTIONS[dims]
    model = _chain(conv(3, 8, 1), nn.ReLU(), conv(8, 6, 3, bias=False), nn.ReLU(), conv(6, 2, 1))
    kill(model[0], zero=[0], constant=[1, 2])
    kill(model[4], unread=[5])
    result = compacted(model, image(*SIZES[dims]))
    assert shape(result, "2.weight")[:2] == (5, 5)
    assert {shift.bias for shift in result.plan.biases if shift.new} == {"2.bias"}


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("padding", [1, "same"])
def test_padded_convolution_keeps_one_carrier(dims: int, padding: int | str) -> None:
    conv = CONVOLUTIONS[dims]
    model = _chain(conv(3, 8, 1), conv(8, 4, 3, padding=padding), conv(4, 2, 1))
    kill(model[0], zero=[0], constant=[1, 2, 5])
    result = compacted(model, image(*SIZES[dims]))
    assert shape(result, "1.weight")[1] == 5  # 8 - 4 dead + 1 carrier
    (merge,) = result.plan.merges
    assert len(merge.sources) == 2


@pytest.mark.parametrize("padding", ["valid", 0])
def test_string_that_pads_nothing_needs_no_carrier(padding: int | str) -> None:
    model = _chain(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 3, padding=padding))
    kill(model[0], constant=[1, 2, 5])
    result = compacted(model, image())
    assert shape(result, "1.weight")[1] == 5 and not result.plan.merges


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_padding_with_its_own_values_folds_constants(mode: Any) -> None:
    model = _chain(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 3, padding=1, padding_mode=mode))
    kill(model[0], constant=[1, 2, 5])
    result = compacted(model, image())
    assert shape(result, "1.weight")[1] == 5 and not result.plan.merges


def test_carrier_is_the_largest_constant_and_shared_by_all_that_read_it() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.first = nn.Conv2d(3, 8, 1)
            self.one, self.other = nn.Conv2d(8, 3, 3, padding=1), nn.Conv2d(8, 3, 5, padding=2)
            self.plain = nn.Conv2d(8, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x)
            z: Tensor = self.one(y) + self.other(y) + self.plain(y)
            return z

    model = Two()
    kill(model.first, constant=[1, 2, 5])
    with torch.no_grad():
        model.first.bias[2] = -3.0  # type: ignore[index]
    result = compacted(model, image())
    assert {merge.carrier for merge in result.plan.merges} == {2}
    assert {merge.weight for merge in result.plan.merges} == {"one.weight", "other.weight"}
    assert shape(result, "first.weight")[0] == 6


def test_each_group_of_a_padded_convolution_has_its_own_carrier() -> None:
    model = _chain(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 3, padding=1, groups=2))
    kill(model[0], constant=[1, 2, 3, 5, 6])
    with torch.no_grad():
        model[0].bias[[2, 6]] = -3.0
    result = compacted(model, image())
    merges = {merge.rows: (merge.carrier, merge.sources) for merge in result.plan.merges}
    # Of both groups three stay: in the first the one live, the carrier, and 1, so that both have as many.
    assert merges == {(0, 2): (2, (3,)), (2, 4): (2, (1,))}
    assert shape(result, "0.weight")[0] == 6 and shape(result, "1.weight")[:2] == (4, 3)


def test_stride_and_dilation_change_nothing() -> None:
    model = _chain(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 6, 3, padding=2, dilation=2),
        nn.Conv2d(6, 2, 1),
    )
    kill(model[0], constant=[0, 7], zero=[3])
    kill(model[3], unread=[1])
    assert shape(compacted(model, image(2, 3, 16, 16)), "2.weight")[:2] == (5, 6)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("padding", [0, 1])
def test_grouped_convolution_keeps_equal_groups(dims: int, padding: int) -> None:
    conv = CONVOLUTIONS[dims]
    model = _chain(conv(3, 8, 1), conv(8, 12, 3, padding=padding, groups=2), nn.ReLU(), conv(12, 2, 1))
    kill(model[0], zero=[0, 1, 4])  # of inputs 0-3 and 4-7: one stays
    kill(model[3], unread=[0, 6, 7])  # of outputs 0-5 and 6-11: one stays
    result = compacted(model, image(*SIZES[dims]))
    assert shape(result, "0.weight")[0] == 6
    assert shape(result, "1.weight")[:2] == (10, 3)
    grouped = result.model.get_submodule("1")
    assert isinstance(grouped, conv) and (grouped.groups, grouped.in_channels, grouped.out_channels) == (
        2,
        6,
        10,
    )


def test_constants_of_a_grouped_convolution_fold_or_stay() -> None:
    for padding, stay in ((0, 6), (1, 8)):
        model = _chain(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 3, padding=padding, groups=2))
        kill(model[0], constant=[0, 5])
        assert shape(compacted(model, image()), "0.weight")[0] == stay


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("multiplier", [1, 2])
def test_depthwise_convolution_loses_groups(dims: int, multiplier: int) -> None:
    conv = CONVOLUTIONS[dims]
    model = _chain(
        conv(3, 6, 1), conv(6, 6 * multiplier, 3, padding=1, groups=6), nn.SiLU(), conv(6 * multiplier, 2, 1)
    )
    kill(model[0], zero=[1, 4])
    result = compacted(model, image(*SIZES[dims]))
    depthwise = result.model.get_submodule("1")
    assert isinstance(depthwise, conv) and depthwise.groups == depthwise.in_channels == 4
    assert shape(result, "1.weight")[:2] == (4 * multiplier, 1)
    assert shape(result, "3.weight")[1] == 4 * multiplier


def test_depthwise_filter_of_zeros_takes_its_input_along() -> None:
    model = _chain(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.Conv2d(6, 2, 1))
    kill(model[1], constant=[2], zero=[5])
    assert shape(compacted(model, image()), "0.weight")[0] == 4


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_transposed_convolution_loses_filters_and_zero_inputs(dims: int) -> None:
    conv, transposed = CONVOLUTIONS[dims], TRANSPOSED[dims]
    model = _chain(conv(3, 8, 1), transposed(8, 6, 3, stride=2), conv(6, 2, 1))
    kill(model[0], zero=[0, 1], constant=[2])  # overlaps differ from pixel to pixel: 2 stays
    with torch.no_grad():
        model[1].weight[:, [3]] = 0
        model[1].bias[[3]] = 0.5
    result = compacted(model, image(*SIZES[dims]))
    assert shape(result, "1.weight")[:2] == (6, 5)
    mended = result.model.get_submodule("1")
    assert isinstance(mended, transposed) and (mended.in_channels, mended.out_channels) == (6, 5)
    assert "folded" in result.report.not_pruned["0"]


@pytest.mark.parametrize(("groups", "dead"), [(4, [0, 1]), (2, [0, 5]), (8, [1, 5])])
def test_grouped_and_depthwise_transposed_convolutions_lose_channels(groups: int, dead: list[int]) -> None:
    model = _chain(
        nn.Conv2d(3, 8, 1), nn.ConvTranspose2d(8, 8, 2, stride=2, groups=groups), nn.Conv2d(8, 2, 1)
    )
    kill(model[0], zero=dead)
    result = compacted(model, image())
    assert shape(result, "0.weight")[0] == 6
    small: Any = result.model
    assert small[1].groups == {4: 3, 2: 2, 8: 6}[groups]
    assert small[1].in_channels == 6


@pytest.mark.parametrize(("dims", "multiplier"), [(1, 1), (2, 2), (3, 1)])
def test_depthwise_transposed_convolutions_of_any_rank_lose_channels(dims: int, multiplier: int) -> None:
    convolution = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    transposed = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[dims - 1]
    model = _chain(
        convolution(3, 8, 1), transposed(8, 8 * multiplier, 2, groups=8), convolution(8 * multiplier, 2, 1)
    )
    kill(model[0], zero=[1, 5])
    result = compacted(model, image(2, 3, *[6] * dims))
    assert shape(result, "1.weight")[:2] == (6, multiplier) and shape(result, "2.weight")[1] == 6 * multiplier


def test_outputs_of_grouped_transposed_convolutions_go() -> None:
    model = _chain(nn.Conv2d(3, 8, 1), nn.ConvTranspose2d(8, 8, 2, groups=2), nn.ReLU(), nn.Conv2d(8, 2, 1))
    with torch.no_grad():
        for group, output in ((0, 1), (1, 2)):
            model[1].weight[4 * group : 4 * group + 4, output] = 0
            model[1].bias[4 * group + output] = 0
    result = compacted(model, image())
    assert shape(result, "1.weight")[:2] == (8, 3) and shape(result, "3.weight")[1] == 6


class Filtered(nn.Module):
    """A functional convolution of each channel, or of groups, with a weight that is no layer's."""

    def __init__(self, kind: str, groups: int = 8) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)
        self.kind, self.count = kind, groups
        weight = torch.rand(8, 8 // groups, 3, 3, dtype=torch.float64)
        if kind == "attribute":
            self.filter = weight
        elif kind == "parameter":
            self.filter = nn.Parameter(weight)
        else:
            self.register_buffer("filter", weight[:1] if kind in ("repeated", "expanded") else weight)
        kill(self.first, zero=[1, 5])

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        weight = self.filter
        groups = y.shape[1]
        if self.kind == "repeated":
            weight = weight.repeat(groups, 1, 1, 1)
        elif self.kind == "expanded":
            weight = weight.expand(groups, -1, -1, -1)
        elif self.kind == "made":
            weight = torch.ones(groups, 1, 3, 3, dtype=y.dtype)
        elif self.kind in ("parameter", "counted"):
            groups = self.count
        out: Tensor = self.last(F.conv2d(y, weight, padding=1, groups=groups))
        return out


@pytest.mark.parametrize(
    "kind", ["buffer", "parameter", "counted", "attribute", "repeated", "expanded", "made"]
)
def test_functional_depthwise_convolutions_lose_channels(kind: str) -> None:
    assert shape(compacted(Filtered(kind), image()), "first.weight")[0] == 6


def test_functional_grouped_convolutions_lose_channels() -> None:
    result = compacted(Filtered("parameter", groups=2), image())
    assert shape(result, "first.weight")[0] == 6 and shape(result, "filter")[1] == 3


def test_a_functional_convolution_of_a_fixed_number_of_groups_stays_and_is_listed() -> None:
    class Fixed(Filtered):
        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.last(F.conv2d(self.first(x), self.filter, groups=8))
            return out

    result = compacted(Fixed("buffer"), image(), rolled_back=True)
    assert shape(result, "first.weight")[0] == 8 and "rolled back" in result.report.not_pruned["first"]


@pytest.mark.parametrize("size", [(4, 6), (2, 5, 6), (2, 3, 4, 6)])
def test_linear_reads_the_last_dimension(size: tuple[int, ...]) -> None:
    model = _chain(nn.Linear(6, 10), nn.GELU(), nn.Linear(10, 7, bias=False), nn.Linear(7, 2))
    kill(model[0], zero=[0], constant=[3, 4])
    kill(model[3], unread=[6])
    result = compacted(model, image(*size))
    assert shape(result, "0.weight")[0] == 7 and shape(result, "2.weight") == (6, 7)


class Repeated(nn.Module):
    """One layer called three times: a channel goes only where every call lets it, and no constant is folded."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.shared, self.last = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        for _ in range(3):
            y = F.relu(self.shared(y))
        z: Tensor = self.last(y)
        return z


def test_repeated_layer_takes_the_intersection() -> None:
    model = Repeated()
    kill(model.shared, unread=[1, 2])
    kill(model.last, unread=[1])
    result = compacted(model, image(3, 4))
    assert shape(result, "shared.weight") == (5, 5) and shape(result, "first.weight")[0] == 5


def test_constants_of_a_repeated_layer_stay_exact() -> None:
    model = Repeated()
    kill(model.shared, constant=[1], zero=[2])
    kill(model.first, constant=[1], zero=[2])
    result = compacted(model, image(3, 4))
    assert shape(result, "shared.weight") == (5, 5)  # the zero goes, the constant has no bias to go to


class Tied(nn.Module):
    """Two layers that share one weight but not their bias."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.one, self.other = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.other.weight = self.one.weight
        self.last = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        y: Tensor = self.last(F.relu(self.one(x)) + F.relu(self.other(x)))
        return y


def test_tied_weights_stay_tied() -> None:
    model = Tied()
    kill(model.first, zero=[0], constant=[1])
    kill(model.last, unread=[4])
    small: Any = compacted(model, image(3, 4)).model
    assert small.one.weight is small.other.weight
    assert tuple(small.one.weight.shape) == (5, 5)  # the zero and the unread go, the constant stays
    assert small.one.bias is not small.other.bias


class Own(nn.Module):
    """Weights that belong to no layer."""

    def __init__(self, call: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.call = call
        self.first, self.last = nn.Linear(4, 8), nn.Linear(5, 2)
        self.matrix = nn.Parameter(torch.randn(5, 8))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(F.relu(self.call(self.first(x), self.matrix)))
        return y


def test_parameter_without_a_place_for_a_bias_keeps_constants() -> None:
    model = Own(F.linear)
    kill(model.first, zero=[0, 1], constant=[2])
    kill(model.last, unread=[3])
    result = compacted(model, image(3, 4))
    assert shape(result, "matrix") == (4, 6)
    assert set(result.model.state_dict()) == set(model.state_dict())
    assert "folded" in result.report.not_pruned["first"]


@pytest.mark.parametrize("call", [lambda x, w: x @ w.T, lambda x, w: torch.mm(x, w.t())])
def test_product_with_a_bare_parameter_is_exact(call: Callable[[Tensor, Tensor], Tensor]) -> None:
    model = Own(call)
    kill(model.first, zero=[0, 1])
    kill(model.last, unread=[3])
    compacted(model, image(3, 4))


def test_filters_that_depend_on_the_input_are_a_barrier() -> None:
    class Dynamic(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.first, self.kernel = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 1)

        def forward(self, x: Tensor) -> Tensor:
            kernels = self.kernel(x).mean((0, 2, 3)).view(1, 8, 1, 1)
            return F.conv2d(self.first(x), kernels)

    model = Dynamic()
    kill(model.first, zero=[0, 1])
    result = compacted(model, image())
    assert shape(result, "first.weight")[0] == 8
    assert "its weight depends on the input" in result.report.not_pruned["first"]


def test_align_keeps_multiples_and_whole_layers_where_they_are_too_small() -> None:
    model = _chain(nn.Conv2d(3, 16, 1), nn.ReLU(), nn.Conv2d(16, 6, 1), nn.ReLU(), nn.Conv2d(6, 2, 1))
    kill(model[0], zero=[0, 1, 2, 3, 4])
    kill(model[2], zero=[0])
    result = compacted(model, image(), align=8)
    assert shape(result, "2.weight")[:2] == (6, 16)
