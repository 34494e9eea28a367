"""Blocks that become one layer are fused where that leads to a smaller model, and only if it is the same function."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from compactmtl.surgery import apply_plan, compact
from compactmtl.surgery.contraction import find_branched
from compactmtl.surgery.plan import Plan
from tests.support.masking import assert_close


class Branches(nn.Module):
    """A 3x3 and a 1x1 convolution side by side, as one once it is fused."""

    def __init__(self, channels: int, wrong: float = 0.0) -> None:
        super().__init__()
        self.wide = nn.Conv2d(channels, channels, 3, padding=1)
        self.point = nn.Conv2d(channels, channels, 1)
        self.wrong = wrong

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.wide(x) + self.point(x)
        return y

    def fuse(self) -> nn.Module:
        whole = nn.Conv2d(self.wide.in_channels, self.wide.out_channels, 3, padding=1).to(self.wide.weight)
        with torch.no_grad():
            whole.weight.copy_(self.wide.weight + self.wrong)
            whole.weight[:, :, 1:2, 1:2] += self.point.weight
            whole.bias.copy_(self.wide.bias + self.point.bias)  # type: ignore[union-attr,operator]
        return whole


def _network(wrong: float = 0.0) -> nn.Sequential:
    torch.manual_seed(0)
    return (
        nn.Sequential(Branches(3, wrong), nn.ReLU(), Branches(3, wrong), nn.Conv2d(3, 2, 1)).double().eval()
    )


def test_branches_become_one_layer() -> None:
    net, image = _network(), torch.randn(1, 3, 12, 12, dtype=torch.float64)
    result = compact(net, (image,))
    assert result.plan.fused == result.report.contracted == ("0", "2")
    small: Any = result.model
    assert isinstance(small[0], nn.Conv2d) and isinstance(net[0], Branches)
    assert_close(net(image), small(image))
    rebuilt = apply_plan(_network(), Plan.from_json(result.plan.to_json()))
    rebuilt.load_state_dict(small.state_dict())
    assert_close(net(image), rebuilt(image))


def test_a_fusion_that_changes_the_function_is_not_used() -> None:
    net, image = _network(wrong=0.1), torch.randn(1, 3, 12, 12, dtype=torch.float64)
    result = compact(net, (image,))
    assert not result.plan.fused and isinstance(result.model.get_submodule("0"), Branches)
    assert_close(net(image), result.model(image))


@pytest.mark.slow  # seconds
def test_a_block_of_one_branch_stays_what_it_is() -> None:
    """LeViT's fuse folds norms, which saves no product."""
    torch.manual_seed(0)
    net = timm.create_model("levit_128s", num_classes=4, img_size=64).eval()
    with torch.no_grad():  # timm begins with every branch at zero
        for module in net.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.weight.fill_(1)
    result = compact(net, (torch.randn(1, 3, 64, 64),))
    assert not result.plan.fused
    assert set(result.model.state_dict()) == set(net.state_dict())


def test_a_module_named_as_the_method_is_no_block_of_branches() -> None:
    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fuse = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU())

        def forward(self, x: Tensor) -> Tensor:
            joined: Tensor = self.fuse(x)
            return joined

    assert not find_branched(nn.Sequential(Joined()))
