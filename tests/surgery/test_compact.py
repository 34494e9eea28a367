"""compact: exact on what it removes, whole where it may not, and never touching its argument."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compactmtl.errors import SurgeryError
from compactmtl.surgery import compact

# float64 throughout: what remains is rounding of sums taken in another order.
EXACT = 1e-12


def _loose(model: nn.Module) -> Any:
    """The model without types, to reach into by name."""
    return model


def _kill_filters(layer: nn.Conv2d, channels: list[int], norm: nn.BatchNorm2d | None = None) -> None:
    with torch.no_grad():
        layer.weight[channels] = 0
        if layer.bias is not None:
            layer.bias[channels] = 0
        if norm is not None:
            norm.weight[channels] = 0
            norm.bias[channels] = 0


def _same(one: nn.Module, other: nn.Module, inputs: tuple[Tensor, ...]) -> float:
    with torch.no_grad():
        expected, output = one(*inputs), other(*inputs)
    if isinstance(expected, Tensor):
        expected, output = {"": expected}, {"": output}
    return max(float((expected[k] - output[k]).abs().max() / expected[k].abs().max()) for k in expected)


def test_nothing_dead_leaves_every_shape(net: nn.Module, image: tuple[Tensor]) -> None:
    result = compact(net, image)
    assert result.plan.empty
    assert {n: v.shape for n, v in result.model.state_dict().items()} == {
        n: v.shape for n, v in net.state_dict().items()
    }


def test_zero_interior_channels_go(net, image) -> None:  # type: ignore[no-untyped-def]
    _kill_filters(net.conv1, [0, 3, 7], net.bn1)
    result = compact(net, image)
    assert _loose(result.model).conv1.weight.shape == (9, 8, 3, 3)
    assert _loose(result.model).conv2.weight.shape == (8, 9, 3, 3)
    assert _loose(result.model).bn1.num_features == 9 and _loose(result.model).conv1.out_channels == 9
    assert _same(net, result.model, image) <= EXACT


def test_constant_channels_merge_into_one_carrier_under_zero_padding(net, image) -> None:  # type: ignore[no-untyped-def]
    _kill_filters(net.conv1, [0, 3, 7])  # batch norm's bias lives on: relu(beta') is a constant
    result = compact(net, image)
    assert _loose(result.model).conv1.out_channels == 12 - 3 + 1
    (merge,) = result.plan.merges
    assert merge.weight == "conv2.weight" and len(merge.sources) == 2
    assert _same(net, result.model, image) <= EXACT


def test_constants_fold_into_the_bias_where_nothing_is_padded(net, image) -> None:  # type: ignore[no-untyped-def]
    with torch.no_grad():
        for layer in (net.down, net.conv3):
            layer.weight[[2, 5]] = 0
            layer.bias[[2, 5]] = 0.7
    result = compact(net, image)
    assert _loose(result.model).down.out_channels == 14
    assert {shift.bias for shift in result.plan.biases} == {"pixel.bias", "vector.bias"}
    assert not any(shift.new for shift in result.plan.biases)
    assert _same(net, result.model, image) <= EXACT


def test_new_bias_is_listed_and_exact(image) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 4, 1, bias=False)).double()
    with torch.no_grad():
        _loose(model)[0].weight[[1, 2]] = 0
        _loose(model)[0].bias[[1, 2]] = 1.5
    result = compact(model, image)
    (shift,) = result.plan.biases
    assert shift.bias == "2.bias" and shift.new
    assert set(result.model.state_dict()) == {*model.state_dict(), "2.bias"}
    assert _same(model, result.model, image) <= EXACT


def test_unused_residual_channel_goes_with_all_its_producers(net, image) -> None:  # type: ignore[no-untyped-def]
    with torch.no_grad():
        for consumer in (net.conv1, net.down, net.conv3):
            consumer.weight[:, [1, 4]] = 0
    result = compact(net, image)
    assert _loose(result.model).stem.out_channels == _loose(result.model).conv2.out_channels == 6
    assert _same(net, result.model, image) <= EXACT


def test_one_reader_keeps_a_residual_channel(net, image) -> None:  # type: ignore[no-untyped-def]
    with torch.no_grad():
        for consumer in (net.conv1, net.down):
            consumer.weight[:, [1, 4]] = 0
    assert compact(net, image).plan.empty


def test_align_keeps_multiples(net, image) -> None:  # type: ignore[no-untyped-def]
    _kill_filters(net.conv1, [0, 3, 7, 9, 10], net.bn1)
    result = compact(net, image, align=4)
    assert _loose(result.model).conv1.out_channels == 8
    assert _same(net, result.model, image) <= EXACT


def test_layer_wholly_dead_leaves(net, image) -> None:  # type: ignore[no-untyped-def]
    _kill_filters(net.conv1, list(range(12)), net.bn1)
    result = compact(net, image)
    assert not list(_loose(result.model).conv1.parameters())
    assert {layer.name: layer.macs_after for layer in result.report.layers}["conv1"] == 0
    assert _same(net, result.model, image) <= EXACT


def test_argument_is_left_as_it_was(net, image) -> None:  # type: ignore[no-untyped-def]
    _kill_filters(net.conv1, [0, 3], net.bn1)
    net.train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    compact(net, image)
    assert net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


class Twice(nn.Module):
    """One convolution called twice: a channel goes only where both calls let it."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 1)
        self.shared = nn.Conv2d(6, 6, 3, padding=1)
        self.last = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.shared(torch.relu(self.shared(torch.relu(self.first(x))))))
        return y


def test_shared_module_takes_the_intersection(image) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    model = Twice().double()
    with torch.no_grad():
        model.last.weight[:, [0, 1]] = 0  # unread after the second call ...
        model.shared.weight[:, [1, 2]] = 0  # ... and channel 1 also after the first
    result = compact(model, image)
    assert _loose(result.model).shared.weight.shape[:2] == (5, 5)
    assert _same(model, result.model, image) <= EXACT


class Gate(nn.Module):
    """Squeeze and excitation: a zero channel makes its gate unread."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.reduce = nn.Conv2d(8, 4, 1)
        self.expand = nn.Conv2d(4, 8, 1)
        self.last = nn.Conv2d(8, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv(x))
        scale = torch.sigmoid(self.expand(torch.relu(self.reduce(x.mean((2, 3), keepdim=True)))))
        y: Tensor = self.last(x * scale)
        return y


def test_gate_goes_with_its_zero_channel(image) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    model = Gate().double()
    _kill_filters(model.conv, [2, 6])
    result = compact(model, image)
    assert _loose(result.model).expand.out_channels == _loose(result.model).reduce.in_channels == 6
    assert _same(model, result.model, image) <= EXACT


def test_constant_through_padded_depthwise_stays(image) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.Conv2d(6, 2, 1)
    ).double()
    with torch.no_grad():
        _loose(model)[0].weight[[1, 2]] = 0
        _loose(model)[0].bias[[1]] = 1.5  # a border appears: live
        _loose(model)[0].bias[[2]] = 0.0  # zero: goes, the depthwise bias folded
    result = compact(model, image)
    assert _loose(result.model)[1].groups == _loose(result.model)[0].out_channels == 5
    assert _same(model, result.model, image) <= EXACT


class HardCoded(nn.Module):
    """Its forward counts on 8 channels: removal would break it, so it is rolled back."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 1)
        self.other = nn.Conv2d(3, 6, 1)
        self.last = nn.Conv2d(8, 2, 1)
        self.end = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if y.shape[1] != 8:
            raise ValueError("expected 8 channels")
        z: Tensor = self.last(y) + self.end(self.other(x))
        return z


def test_removal_that_fails_is_rolled_back_and_named(image) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    model = HardCoded().double()
    _kill_filters(model.conv, [0, 1])
    _kill_filters(model.other, [2])
    result = compact(model, image, join=False)
    assert _loose(result.model).conv.out_channels == 8
    assert _loose(result.model).other.out_channels == 5
    assert "conv" in result.report.not_pruned
    assert _same(model, result.model, image) <= EXACT


def test_report_counts_what_is_gone(net, image) -> None:  # type: ignore[no-untyped-def]
    _kill_filters(net.conv1, [0, 3, 7], net.bn1)
    report = compact(net, image).report
    assert report.proof.passed and report.proof.max_relative_error <= EXACT
    assert {case.shape for case in report.proof.cases} == {(2, 3, 16, 16), (4, 3, 16, 16), (2, 3, 48, 48)}
    assert sum(layer.macs_before for layer in report.layers) == report.macs_before
    assert sum(layer.macs_after for layer in report.layers) == report.macs_after
    change = next(layer for layer in report.layers if layer.name == "conv1")
    assert (change.before, change.after) == ((12, 8), (9, 8))


def test_compact_model_trains_and_copies(net, image) -> None:  # type: ignore[no-untyped-def]
    _kill_filters(net.conv1, [0, 3], net.bn1)
    small = copy.deepcopy(compact(net, image).model).train()
    sum(value.square().mean() for value in small(*image).values()).backward()
    assert all(parameter.grad is not None for parameter in small.parameters())


def test_bad_align_is_named(net, image) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(SurgeryError, match="align"):
        compact(net, image, align=0)
