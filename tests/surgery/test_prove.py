"""The proof: what it tries, what it allows, and that a wrong model fails it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compactmtl.surgery import compact, prove
from compactmtl.surgery.prove import compare, reference
from tests.support.masking import image, kill


def _net() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 2, 1)).eval()


def test_model_is_equal_to_itself_in_float64_on_three_kinds_of_input() -> None:
    proof = prove(_net(), _net(), (image().float(),))
    assert proof.passed and proof.max_relative_error == 0.0
    assert (proof.dtype, proof.tolerance) == ("float64", 1e-5)
    assert [case.shape for case in proof.cases] == [(2, 3, 8, 8), (4, 3, 8, 8), (2, 3, 40, 40)]


def test_small_wrong_edit_fails() -> None:
    net = _net()
    wrong = copy.deepcopy(net)
    with torch.no_grad():
        wrong[2].weight[0, 0] *= 1 + 1e-4
    proof = prove(net, wrong, (image().float(),))
    assert not proof.passed and proof.max_relative_error < 1e-3
    assert prove(net, wrong, (image().float(),), tolerance=1e-2).passed


def test_difference_at_the_border_of_a_larger_image_alone_fails() -> None:
    class Cropped(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.shape[-1] <= 8 else x * (torch.arange(x.shape[-1]) < 30)

    proof = prove(nn.Identity(), Cropped(), (image(),))
    assert [case.max_relative_error > 0.1 for case in proof.cases] == [False, False, True]
    assert proof.failed_case == 2


def test_model_that_cannot_run_is_a_failure_with_its_reason() -> None:
    narrow = nn.Sequential(nn.Conv2d(3, 6, 1), nn.Conv2d(5, 2, 1)).eval()
    proof = prove(_net(), narrow, (image().float(),))
    assert not proof.passed and "RuntimeError" in proof.failure


@pytest.mark.parametrize(
    "wrong", [lambda y: y[:, :1], lambda y: (y, y), lambda y: y.float(), lambda y: y * float("nan")]
)
def test_other_shape_number_type_or_nan_fails(wrong: Any) -> None:
    class Wrong(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return wrong(x)

    assert not prove(nn.Identity(), Wrong(), (image(),)).passed


def test_fixed_batch_and_resolution_still_get_fresh_noise() -> None:
    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.reshape(2, 3, 8, 8)

    class Constant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.reshape(2, 3, 8, 8) * 0

    zeros = (torch.zeros(2, 3, 8, 8),)
    assert [case.shape for case in prove(Fixed(), Fixed(), zeros).cases] == [(2, 3, 8, 8)] * 2
    assert not prove(Fixed(), Constant(), zeros).passed


def test_whole_numbers_are_drawn_from_those_of_the_example() -> None:
    torch.manual_seed(0)
    table = nn.Embedding(5, 3)
    tokens = torch.tensor([[1, 4, 2]])
    proof = prove(table, table, (tokens,))
    assert [case.shape for case in proof.cases] == [(1, 3), (2, 3)]
    for inputs in reference(table, (tokens,)).inputs:
        assert set(inputs[0].ravel().tolist()) <= {1, 4, 2}


def test_one_case_alone_can_be_tried() -> None:
    net = _net()
    expected = reference(net, (image().float(),))
    proof = compare(expected, net, case=2)
    assert [case.shape for case in proof.cases] == [(2, 3, 40, 40)]


def test_original_and_its_type_are_left_alone() -> None:
    net, given = _net(), image().float()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    prove(net, net, (given,))
    assert given.dtype == torch.float32
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


class Fragile(nn.Module):
    """Many blocks, some of which check their width."""

    def __init__(self, fixed: set[int]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fixed = fixed
        self.ups = nn.ModuleList(nn.Linear(4, 8) for _ in range(8))
        self.downs = nn.ModuleList(nn.Linear(8, 4) for _ in range(8))

    def forward(self, x: Tensor) -> Tensor:
        for index, (up, down) in enumerate(zip(self.ups, self.downs, strict=True)):
            y = torch.relu(up(x))
            if index in self.fixed and y.shape[-1] != 8:
                raise ValueError("expected 8 features")
            x = x + down(y)
        return x


@pytest.mark.slow
def test_rollback_blames_just_the_layers_that_fail() -> None:
    model = Fragile({2, 5}).double()
    for up in model.ups:
        kill(up, zero=[0, 1])
    result: Any = compact(model, (image(3, 4),))
    assert [up.out_features for up in result.model.ups] == [6, 6, 8, 6, 6, 8, 6, 6]
    assert set(result.report.not_pruned) == {"ups.2", "ups.5"}
    assert all("rolled back" in reason for reason in result.report.not_pruned.values())
    assert result.report.proof.passed
