"""Layers that compute their weight at every call become plain ones, where that frees channels."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from compactmtl.surgery import apply_plan, compact
from compactmtl.surgery.contraction import plain_layer
from tests.support.masking import FLOAT32, assert_close, kill


class StandardizedConv2d(nn.Conv2d):
    """Each filter minus its mean over its deviation, times a gain."""

    def __init__(self, inputs: int, outputs: int, groups: int = 1) -> None:
        super().__init__(inputs, outputs, 3, padding=1, groups=groups)
        self.gain = nn.Parameter(torch.rand(outputs, 1, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        mean, deviation = self.weight.mean((1, 2, 3), keepdim=True), self.weight.std((1, 2, 3), keepdim=True)
        weight = self.gain * (self.weight - mean) / (deviation + 1e-5)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class PaddedStandardized(StandardizedConv2d):
    """Pads by itself: more than one call of a layer."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (1, 1, 1, 1)))


def _network(middle: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 12, 3), nn.ReLU(), middle, nn.ReLU(), nn.Conv2d(12, 4, 1)).eval()


def _weight_normed() -> nn.Module:
    layer: nn.Module = parametrizations.weight_norm(nn.Conv2d(12, 12, 3, padding=1))
    return layer


@pytest.mark.parametrize(
    "build",
    [lambda: StandardizedConv2d(12, 12), lambda: StandardizedConv2d(12, 12, groups=2), _weight_normed],
)
def test_dead_inputs_of_a_computed_weight_go(build: Any) -> None:
    net = _network(build())
    kill(net[0], zero=[0, 1, 6, 7])
    image = torch.randn(2, 3, 16, 16)
    result = compact(net, (image,))
    small: Any = result.model
    assert result.plan.contracted == ("2",) and result.report.contracted == ("2",)
    assert type(small[2]) is nn.Conv2d and small[2].in_channels == 8
    with torch.no_grad():
        expected, output = net(image), small(image)
    assert float((expected - output).abs().max() / expected.abs().max()) <= 1e-5  # float32
    fresh = apply_plan(_network(build()), result.plan)
    assert {n: v.shape for n, v in fresh.state_dict().items()} == {
        n: v.shape for n, v in small.state_dict().items()
    }


def test_a_tolerance_below_rounding_is_kept_to() -> None:
    net = _network(StandardizedConv2d(12, 12))
    kill(net[0], zero=[0, 1, 6, 7])
    result = compact(net, (torch.randn(2, 3, 16, 16),), tolerance=1e-12)
    assert not result.plan.contracted  # its float32 weights are rounded by more than that
    assert result.report.proof.passed and result.report.proof.tolerance == 1e-12


def test_where_nothing_goes_the_layer_stays_what_it_is() -> None:
    net = _network(StandardizedConv2d(12, 12))
    result = compact(net, (torch.randn(1, 3, 16, 16),))
    assert result.plan.empty and not result.plan.contracted
    assert set(result.model.state_dict()) == set(net.state_dict())


def test_a_layer_that_does_more_is_not_contracted() -> None:
    assert plain_layer(PaddedStandardized(4, 4)) is None
    net = _network(PaddedStandardized(12, 12))
    kill(net[0], zero=[0, 1])
    image = torch.randn(1, 3, 16, 16)
    result = compact(net, (image,))
    small: Any = result.model
    assert small[2].weight.shape == (12, 12, 3, 3)  # its inputs stay, for its weight depends on all of them
    assert_close(net(image), small(image), FLOAT32)


def test_a_plain_weight_is_laid_out_as_torch_lays_one_out() -> None:
    """Of a 1×1 kernel a product's strides may be those of channels last, in which the layer would then run."""

    class Turned(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return torch.einsum("oi...,ij->oj...", weight, torch.eye(weight.shape[1]))

    layer = nn.Conv2d(6, 4, 1)
    nn.utils.parametrize.register_parametrization(layer, "weight", Turned())
    assert layer.weight.stride() != (6, 1, 1, 1)
    plain = plain_layer(layer)
    assert plain is not None and plain.get_parameter("weight").stride() == (6, 1, 1, 1)
