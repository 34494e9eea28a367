"""RepVGG's branches: batch norm of each in training, one convolution in evaluation."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compactmtl.balancing.statistics import still_statistics
from compactmtl.overparam.repvgg import BranchLayer

CONFIGURATIONS: list[dict[str, Any]] = [
    {"in_channels": 4, "out_channels": 4, "kernel_size": 3, "padding": 1},
    {"in_channels": 4, "out_channels": 6, "kernel_size": 3, "padding": 1, "stride": 2},
    {"in_channels": 6, "out_channels": 6, "kernel_size": (5, 3), "groups": 3, "padding": (2, 1)},
    {"in_channels": 4, "out_channels": 4, "kernel_size": 3, "padding": 0},
    {"in_channels": 4, "out_channels": 4, "kernel_size": 2, "padding": 1, "padding_mode": "reflect"},
    {"in_channels": 4, "out_channels": 4, "kernel_size": 3, "padding": 2, "dilation": 2, "padding_mode": "circular"},
]  # fmt: skip


def branches(plain: nn.Conv2d, layer: BranchLayer, x: Tensor, *, norms: bool) -> Tensor:
    """The sum of the branches by plain convolutions of whole kernels, each through torch's own batch norm."""
    y, column = plain.kernel_size[0] // 2, plain.kernel_size[1] // 2
    point = torch.zeros_like(plain.weight)
    point[:, :, y, column] = layer.P.detach()[..., 0, 0]
    identity = torch.zeros_like(plain.weight)
    for out in range(plain.out_channels):
        identity[out, out % plain.weight.shape[1], y, column] = 1
    total = torch.zeros(())
    kernels = [layer.K.detach(), point] + ([identity] if layer.identity_norm is not None else [])
    for kernel, norm in zip(kernels, layer.norms(), strict=True):
        own = copy.deepcopy(plain)
        own.weight, own.bias = nn.Parameter(kernel), None
        output = own(x)
        batch_norm = nn.BatchNorm2d(plain.out_channels).double()
        batch_norm.weight = nn.Parameter(norm.gamma.detach())
        if norm.beta is not None:
            batch_norm.bias = nn.Parameter(norm.beta.detach())
        total = total + (batch_norm(output) if norms else output)
    return total


def built(configuration: dict[str, Any], bias: bool) -> tuple[nn.Conv2d, BranchLayer, Tensor]:
    torch.manual_seed(0)
    plain = nn.Conv2d(**configuration, bias=bias).double()
    layer = BranchLayer(plain)
    with torch.no_grad():
        for norm in layer.norms():
            norm.gamma.add_(torch.rand_like(norm.gamma))
            if norm.beta is not None:
                norm.beta.add_(torch.randn_like(norm.beta))
    return plain, layer, torch.randn(3, plain.in_channels, 9, 8, dtype=torch.float64)


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_training_is_repvggs_with_a_bias(configuration: dict[str, Any]) -> None:
    plain, layer, x = built(configuration, bias=True)
    assert plain.bias is not None
    with torch.no_grad():
        plain.bias.zero_()  # a norm that takes the mean takes the bias too
    torch.testing.assert_close(layer.train()(x), branches(plain, layer, x, norms=True), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_without_a_bias_the_networks_own_norm_makes_it_the_same(configuration: dict[str, Any]) -> None:
    plain, layer, x = built(configuration, bias=False)
    norm = nn.BatchNorm2d(plain.out_channels, affine=False).double()
    output, expected = norm(layer.train()(x)), norm(branches(plain, layer, x, norms=True))
    torch.testing.assert_close(output, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_it_contracts_exactly_after_training(configuration: dict[str, Any], bias: bool) -> None:
    plain, layer, x = built(configuration, bias)
    for _ in range(3):
        layer.train()(x)
    contracted = layer.eval().contracted()
    assert {n: v.shape for n, v in contracted.state_dict().items()} == {
        n: v.shape for n, v in plain.state_dict().items()
    }
    expected = torch.zeros(())
    for kernel_norm, output in zip(layer.norms(), outputs(plain, layer, x), strict=True):
        factor, shift = kernel_norm.folded()
        expected = expected + factor[:, None, None] * output
        expected = expected if shift is None else expected + shift[:, None, None]
    with torch.no_grad():
        torch.testing.assert_close(contracted(x), expected, rtol=1e-9, atol=1e-9)  # float64, another order
        torch.testing.assert_close(layer(x), expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(layer(x), expected, rtol=1e-9, atol=1e-9)  # with gradients on


def outputs(plain: nn.Conv2d, layer: BranchLayer, x: Tensor) -> list[Tensor]:
    """What each branch gives before its norm."""
    whole = layer.geometry.apply(x, layer.K, layer.bias)
    middle = layer._middle(x, whole.shape)
    point = torch.nn.functional.conv2d(middle, layer.P, groups=plain.groups)
    return [whole, point, middle][: len(layer.norms())]


def test_statistics_are_those_of_batch_norm() -> None:
    _, layer, x = built(CONFIGURATIONS[0], bias=True)
    reference = nn.BatchNorm2d(4).double()
    for _ in range(2):
        layer.train()(x)
        reference(layer.geometry.apply(x, layer.K, layer.bias))
    torch.testing.assert_close(layer.norm.running_mean, reference.running_mean)
    torch.testing.assert_close(layer.norm.running_var, reference.running_var)


def test_the_function_is_kept_at_the_start() -> None:
    torch.manual_seed(0)
    for bias in (False, True):
        plain = nn.Conv2d(4, 4, 3, padding=1, bias=bias).double()
        x = torch.randn(2, 4, 6, 6, dtype=torch.float64)
        torch.testing.assert_close(BranchLayer(plain).eval()(x), plain(x), rtol=1e-12, atol=1e-12)


def test_statistics_stay_where_a_pass_must_leave_no_trace() -> None:
    _, layer, x = built(CONFIGURATIONS[0], bias=True)
    layer.train()
    with still_statistics(layer):
        output = layer(x)
    assert (layer.norm.running_mean == 0).all()
    torch.testing.assert_close(layer(x), output)  # the batch's own statistics all the same
    assert (layer.norm.running_mean != 0).any()
