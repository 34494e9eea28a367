"""GroupedTensor alone: what goes, composed plans, and zeros put back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compactmtl.errors import SurgeryError
from compactmtl.graph import ChannelGraph
from compactmtl.sparsity import channel_groups
from compactmtl.surgery import apply_plan
from compactmtl.surgery.plan import BiasShift, Plan, Slice
from compactmtl.surgery.slice_plan import compose, cut, kept_indices, nothing, plan_slices, put_back
from tests.support.masking import FLOAT32, assert_close

IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """A residual block whose second norm starts at zero, as in a fresh network, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.inner = nn.Conv2d(8, 6, 3, padding=1, bias=False)
        self.between = nn.BatchNorm2d(6)
        self.outer = nn.Conv2d(6, 8, 3, padding=1, bias=False)
        self.last = nn.BatchNorm2d(8)
        self.head = nn.Conv2d(8, 2, 1)
        nn.init.zeros_(self.last.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        x = (x + self.last(self.outer(self.between(self.inner(x)).relu()))).relu()
        output: Tensor = self.head(x)
        return output


def killed(
    model: Net, *dead: list[int]
) -> tuple[list[object], list[np.ndarray[tuple[int], np.dtype[np.bool_]]]]:
    groups = channel_groups(model, IMAGE)
    flags = [np.isin(np.arange(family.size), which) for family, which in zip(groups, dead, strict=True)]
    with torch.no_grad():
        for family, gone in zip(groups.bound, flags, strict=True):
            for s in family.tensors:
                s.zero_(s.parameter, torch.from_numpy(gone))
    return list(groups), flags


def test_dead_groups_go_and_a_fresh_zero_stays() -> None:
    torch.manual_seed(0)
    model = Net().train()
    families, dead = killed(model, [1, 5], [0])
    plan = plan_slices(model, (IMAGE,), families, dead)  # type: ignore[arg-type]
    small = apply_plan(model, plan).train()
    assert small.get_parameter("outer.weight").shape == (6, 5, 3, 3), (
        "the zero gain of the last norm may yet grow"
    )
    # in train mode too: no constant was folded
    assert_close(small(IMAGE), model(IMAGE), FLOAT32)


@pytest.mark.slow
def test_named_parameters_keep_their_channels() -> None:
    torch.manual_seed(0)
    model = Net()
    families, dead = killed(model, [1, 5], [0])
    plan = plan_slices(model, (IMAGE,), families, dead, keep=("head.",))  # type: ignore[arg-type]
    assert {name for name, _ in kept_indices(plan)} >= {"inner.weight", "outer.weight"}
    assert ("head.weight", 1) not in kept_indices(plan)


@pytest.mark.slow
def test_a_composed_plan_is_both_in_a_row() -> None:
    torch.manual_seed(0)
    model = Net()
    families, dead = killed(model, [1], [0, 3])
    first = plan_slices(model, (IMAGE,), families, dead)  # type: ignore[arg-type]
    middle = apply_plan(model, first)
    families, dead = killed(middle, [0, 6], [1])  # type: ignore[arg-type]
    second = plan_slices(middle, (IMAGE,), families, dead)  # type: ignore[arg-type]
    once, twice = apply_plan(model, compose(first, second)), apply_plan(middle, second)
    assert once.state_dict().keys() == twice.state_dict().keys()
    # 5 of the stem's 8 are left after channels 1, then 0 and 7 of the first
    assert kept_indices(compose(first, second))["stem.weight", 0].tolist() == [2, 3, 4, 5, 6]
    for name, value in twice.state_dict().items():
        assert once.state_dict()[name].shape == value.shape
    assert torch.equal(once.get_parameter("inner.weight"), twice.get_parameter("inner.weight"))
    assert compose(nothing(model), first) == first


def test_zeros_are_put_back_where_channels_were() -> None:
    kept = {("w", 0): np.array([0, 2]), ("w", 1): np.array([1, 3]), ("n.running_var", 0): np.array([1])}
    value = torch.arange(1.0, 13.0).view(3, 4)
    small = cut("w", value, kept)
    assert small.tolist() == [[2.0, 4.0], [10.0, 12.0]]
    whole = put_back("w", small, (3, 4), kept)
    assert whole.tolist() == [[0, 2, 0, 4], [0, 0, 0, 0], [0, 10, 0, 12]]
    assert put_back("n.running_var", torch.tensor([3.0]), (2,), kept).tolist() == [1.0, 3.0]
    with pytest.raises(SurgeryError, match="v has shape"):
        put_back("v", torch.ones(2), (3,), kept)


def test_plans_of_more_than_slices_are_not_composed() -> None:
    model = Net()
    shifted = Plan(signature="x", biases=(BiasShift(bias="head.bias", values=(1.0, 2.0), new=False),))
    grouped = Plan(signature="x", slices=(Slice(tensor="w", dim=1, size=2, keep=(0, 2), groups=2),))
    for plan in (shifted, grouped):
        with pytest.raises(SurgeryError):
            compose(nothing(model), plan)


def test_a_channel_that_is_a_constant_stays() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 1), nn.Sigmoid(), nn.Conv2d(6, 4, 3, padding=1), nn.BatchNorm2d(4))
    groups = channel_groups(model, IMAGE)
    with torch.no_grad():
        model[0].weight[2], model[0].bias[2] = 0, 0  # type: ignore[operator]
    dead = [np.arange(family.size) == 2 for family in groups]
    assert plan_slices(model, (IMAGE,), list(groups), dead[:1]).empty  # it is ½ behind the sigmoid
    assert ChannelGraph.trace(model, (IMAGE,)).nonzero_classes().any()
