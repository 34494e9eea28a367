"""A rule that fails is a barrier, and so is what no rule can follow."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from compactmtl.graph import analysis
from compactmtl.graph.calls import source_of
from compactmtl.graph.effect import Use
from compactmtl.graph.rules import RULES
from compactmtl.surgery import compact


def _dead(*layers: nn.Conv2d) -> None:
    with torch.no_grad():
        for layer in layers:
            layer.weight[:2] = 0
            assert layer.bias is not None
            layer.bias[:2] = 0


class Chain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.last = nn.Conv2d(8, 2, 1)
        _dead(self.first, self.second)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(torch.tanh(self.second(torch.relu(self.first(x)))))
        return y


@pytest.mark.parametrize("step", ["layout", "constant", "used"])
def test_a_rule_that_fails_keeps_its_channels_and_no_others(
    step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Failing(type(RULES["relu6"])):  # type: ignore[misc]
        pass

    def fail(*args: object) -> None:
        raise KeyError("no such axis")

    setattr(Failing, step, fail)
    monkeypatch.setitem(RULES, "tanh", Failing())
    x = torch.randn(1, 3, 8, 8)
    with pytest.raises(KeyError):
        compact(Chain().eval(), (x,))
    monkeypatch.setattr(analysis, "STRICT", False)
    result: Any = compact(Chain().eval(), (x,))
    assert (result.model.first.out_channels, result.model.second.out_channels) == (6, 8)
    assert "its rule fails (KeyError" in result.report.not_pruned["second"]


def test_uses_of_another_shape_are_a_failure_of_their_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing(type(RULES["relu6"])):  # type: ignore[misc]
        def used(self, view: object, node: fx.Node, used: object) -> list[Use]:
            return [Use(source_of(node), np.ones(5, dtype=bool))]

    monkeypatch.setitem(RULES, "tanh", Failing())
    monkeypatch.setattr(analysis, "STRICT", False)
    result: Any = compact(Chain().eval(), (torch.randn(1, 3, 8, 8),))
    assert (result.model.first.out_channels, result.model.second.out_channels) == (6, 8)
    assert "its rule fails (ValueError" in result.report.not_pruned["second"]


def test_a_norm_whose_weight_depends_on_the_input_is_a_barrier() -> None:
    class Conditional(Chain):
        def forward(self, x: Tensor) -> Tensor:
            y = self.second(torch.relu(self.first(x)))
            scale = y.mean((0, 2, 3))
            y = F.batch_norm(y, torch.zeros(8, dtype=y.dtype), torch.ones(8, dtype=y.dtype), scale, scale)
            result: Tensor = self.last(y)
            return result

    result: Any = compact(Conditional().eval(), (torch.randn(1, 3, 8, 8),))
    assert (result.model.first.out_channels, result.model.second.out_channels) == (6, 8)
    assert "depends on the input" in result.report.not_pruned["second"]


def test_a_linear_weight_of_one_dimension_is_a_barrier() -> None:
    class Vector(Chain):
        def __init__(self) -> None:
            super().__init__()
            del self.last
            self.weight = nn.Parameter(torch.randn(8))

        def forward(self, x: Tensor) -> Tensor:
            y = self.second(torch.relu(self.first(x)))
            return F.linear(y.movedim(1, -1), self.weight)

    result: Any = compact(Vector().eval(), (torch.randn(1, 3, 8, 8),))
    assert (result.model.first.out_channels, result.model.second.out_channels) == (6, 8)
    assert "one vector" in result.report.not_pruned["second"]


class Listed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.hidden = [nn.Conv2d(8, 8, 1), nn.Conv2d(8, 2, 1)]
        _dead(self.first, self.second, self.hidden[0])

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(torch.relu(self.first(x)))
        result: Tensor = self.hidden[1](self.hidden[0](y))
        return result


def test_layers_of_no_module_stay_and_are_named() -> None:
    model = Listed().eval()
    x = torch.randn(1, 3, 8, 8)
    result: Any = compact(model, (x,))
    assert (result.model.first.out_channels, result.model.second.out_channels) == (6, 8)
    assert any("no module" in name for name in result.report.not_pruned)
    assert all("belong to no module" in reason for reason in result.report.not_pruned.values())
    np.testing.assert_allclose(
        result.model(x).detach(), model(x).detach(), atol=1e-5
    )  # sums in another order


def test_tensors_that_a_module_holds_as_attributes_are_cut() -> None:
    class Scaled(Chain):
        def __init__(self) -> None:
            super().__init__()
            self.scale = torch.rand(1, 8, 1, 1) + 1

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.last(self.second(torch.relu(self.first(x) * self.scale)))
            return y

    result: Any = compact(Scaled().eval(), (torch.randn(1, 3, 8, 8),))
    assert result.model.first.out_channels == 6 and result.model.scale.shape == (1, 6, 1, 1)
