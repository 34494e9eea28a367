"""What a trace did not reach: found, named, and what it may read kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compactmtl.errors import SurgeryError
from compactmtl.surgery import compact


class Two(nn.Module):
    """Two convolutions and two heads; filter 1 of the first and 2 and 3 of the second are dead."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.classes = nn.Conv2d(8, 4, 1)
        self.depth = nn.Conv2d(8, 1, 1)
        with torch.no_grad():
            for layer, dead in ((self.first, [1]), (self.second, [2, 3])):
                layer.weight[dead] = 0
                assert layer.bias is not None
                layer.bias[dead] = 0

    def features(self, x: Tensor) -> Tensor:
        return F.relu(self.second(F.relu(self.first(x))))


class InTraining(Two):
    def forward(self, x: Tensor) -> Any:
        y = self.features(x)
        return (self.classes(y), self.depth(F.avg_pool2d(y, 2))) if self.training else self.classes(y)


class ByName(Two):
    def forward(self, x: Tensor, task: str = "classes") -> Any:
        return self.classes(self.features(x)) if task == "classes" else self.depth(self.features(x))


class ByFlag(Two):
    def forward(self, x: Tensor, both: bool = False) -> Any:
        y = self.features(x)
        return (self.classes(y), self.depth(y)) if both else self.classes(y)


class Written(Two):
    """In training a branch is added to what the head reads."""

    def __init__(self) -> None:
        super().__init__()
        self.depth = nn.Conv2d(3, 8, 1)

    def forward(self, x: Tensor) -> Any:
        y = self.features(x)
        return self.classes(y + self.depth(x) if self.training else y)


class ByAttribute(Two):
    task = "classes"

    def forward(self, x: Tensor) -> Any:
        y = self.features(x)
        return self.classes(y) if self.task == "classes" else self.depth(y)


X = torch.randn(1, 3, 8, 8)
OTHERS: dict[str, tuple[type[Two], Callable[[Any], object]]] = {
    "a head of training": (InTraining, lambda model: model.train()(X)),
    "a head by name": (ByName, lambda model: model(X, "depth")),
    "a head by flag": (ByFlag, lambda model: model(X, True)),
    "a branch that is added": (Written, lambda model: model.train()(X)),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_not_reached_still_runs_and_the_rest_is_cut(name: str) -> None:
    kind, other = OTHERS[name]
    result: Any = compact(kind().eval(), (X,))
    assert result.report.unreached == ("depth",)
    assert result.model.first.out_channels == 7
    assert result.model.second.out_channels == 8
    assert "depth" in result.report.not_pruned["second"]
    other(result.model)


def test_what_no_way_leads_to_keeps_every_tensor_that_it_may_read() -> None:
    result: Any = compact(ByAttribute().eval(), (X,))
    assert result.report.unreached == ("depth",)
    result.model.task = "depth"
    assert result.model(X).shape == (1, 1, 8, 8)


def test_the_unreached_are_reported_and_cut_off_where_asked() -> None:
    result: Any = compact(ByFlag().eval(), (X,), unreached="report")
    assert result.report.unreached == ("depth",)
    assert result.report.to_json()["unreached"] == ["depth"]
    assert result.model.second.out_channels == 6


def test_the_unreached_are_refused_where_asked() -> None:
    with pytest.raises(SurgeryError, match="does not reach depth"):
        compact(ByFlag().eval(), (X,), unreached="error")
    with pytest.raises(SurgeryError, match="keep, report, error"):
        compact(ByFlag().eval(), (X,), unreached="drop")  # type: ignore[arg-type]


def test_a_model_that_is_read_whole_has_none() -> None:
    result: Any = compact(ByFlag().eval(), (X, True), unreached="error")
    assert result.report.unreached == ()
    assert result.model.second.out_channels == 6


def test_what_no_method_names_keeps_nothing() -> None:
    class LeftOver(Two):
        def forward(self, x: Tensor) -> Any:
            return self.classes(self.features(x))

    result: Any = compact(LeftOver().eval(), (X,))
    assert result.report.unreached == ("depth",)
    assert (result.model.first.out_channels, result.model.second.out_channels) == (7, 6)


def test_what_another_method_reads_is_kept() -> None:
    class Methods(Two):
        def forward(self, x: Tensor) -> Any:
            return self.classes(self.features(x))

        def distance(self, x: Tensor) -> Any:
            return self.depth(self.features(x))

    result: Any = compact(Methods().eval(), (X,))
    assert result.model.distance(X).shape == (1, 1, 8, 8)
