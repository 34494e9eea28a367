"""Layers and norms that hand their input on as it is leave, where their result may be their input."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from compactmtl.surgery import compact
from tests.support.masking import assert_close
from tests.support.rows import IMAGE, checked, conv, identity, ready


class Block(nn.Module):
    """A layer between two functions."""

    def __init__(self, layer: nn.Module, inplace: bool = False) -> None:
        super().__init__()
        self.before, self.layer, self.act = nn.Sigmoid(), layer, nn.ReLU(inplace)
        self.head = conv(6, 3)

    def forward(self, image: Tensor) -> Tensor:
        x = self.before(image)
        return self.head(self.act(self.layer(x)) + x)  # type: ignore[no-any-return]


def exact_norm() -> nn.BatchNorm2d:
    layer = nn.BatchNorm2d(6, eps=2**-17).double()
    assert layer.running_var is not None
    layer.running_var.fill_(1 - layer.eps)
    return layer


@pytest.mark.parametrize("layer", [identity, lambda: identity(3), exact_norm], ids=["1x1", "3x3", "norm"])
def test_what_hands_its_input_on_leaves(layer: Callable[[], nn.Module]) -> None:
    model = Block(layer()).double().eval()
    result = checked(model)
    assert result.plan.identities == ("layer",) and result.report.identities == ("layer",)
    assert type(result.model.layer) is nn.Identity


def shifted() -> nn.Conv2d:
    layer = identity(3)
    with torch.no_grad():
        layer.weight[0, 0, 1, 2] = 1e-3
    return layer


def biased() -> nn.Conv2d:
    layer = identity()
    assert layer.bias is not None
    nn.init.constant_(layer.bias, 1e-3)
    return layer


@pytest.mark.parametrize(
    "layer",
    [shifted, biased, lambda: nn.BatchNorm2d(6)],
    ids=["a tap beside", "a bias", "a norm that adds its epsilon to one"],
)
def test_what_nearly_hands_its_input_on_stays(layer: Callable[[], nn.Module]) -> None:
    assert not checked(Block(layer()).double().eval()).plan.identities


def test_its_result_that_is_written_into_is_not_its_input() -> None:
    """A ReLU in place behind an identity would change what the sum reads besides."""
    model = Block(identity(), inplace=True).double().eval()
    result = checked(model)
    assert not result.plan.identities
    result.model.train()(IMAGE).sum().backward()


def test_an_identity_between_two_layers_is_passed_over() -> None:
    torch.manual_seed(0)
    model = ready(nn.Sequential(conv(6, 16), identity(3, 16), conv(16, 5, 3)))
    result = checked(model)
    assert result.plan.identities == ("1",) and result.report.joined == {"2": ("0", "2")}


class Written(Block):
    """A layer whose result is written into where a trace in eval mode does not show it."""

    def __init__(self, way: str) -> None:
        super().__init__(identity())
        self.way = way

    def forward(self, image: Tensor) -> Tensor:
        x = image if self.way == "dead" else self.before(image)
        y = self.layer(x)
        if self.way == "result in training" and self.training:
            y.mul_(2)
        if self.way == "input in training" and self.training:
            x.mul_(2)
        result = self.head(y) + x.mean()
        if self.way == "dead":
            y += 1  # nothing reads it afterwards, but the caller has the image
        return result  # type: ignore[no-any-return]


@pytest.mark.parametrize("way", ["result in training", "input in training", "dead"])
def test_what_is_written_into_out_of_sight_of_the_trace_is_no_identity(way: str) -> None:
    model = Written(way).double().eval()
    result = compact(model, (IMAGE,))
    assert not result.plan.identities
    for training in (False, True):
        image = IMAGE.clone()
        assert_close(model.train(training)(image), result.model.train(training)(image))
        assert torch.equal(image, IMAGE)


def test_the_same_without_a_write_leaves() -> None:
    assert checked(Written("").double().eval()).plan.identities == ("layer",)
