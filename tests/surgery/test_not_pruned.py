"""Property: every dead channel is removed, or its layer is listed with a reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from compactmtl.surgery import compact
from tests.support.dead import dead_outputs, unsaid
from tests.support.masking import Between, compacted, image, kill, shape
from tests.support.random_networks import Network, mask


def _check(seed: int, depth: int, align: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def draw(n: int) -> int:
        return int(torch.randint(n, (1,), generator=generator))

    torch.manual_seed(seed)
    model = Network(draw, depth).double().eval()
    mask(model, draw)
    result = compact(model, (torch.randn(2, 3, 16, 16, dtype=torch.float64),), align=align, tolerance=1e-9)
    dead = dead_outputs(model, lambda: (torch.randn(3, 3, 16, 16, dtype=torch.float64),))
    assert unsaid(result.report, dead) == {}


@settings(max_examples=6, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 10_000), depth=st.integers(1, 3), align=st.sampled_from([1, 4]))
def test_dead_channels_are_removed_or_listed(seed: int, depth: int, align: int) -> None:
    _check(seed, depth, align)


@pytest.mark.slow
@pytest.mark.timeout(900)
@settings(max_examples=25, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 10_000_000), depth=st.integers(2, 6), align=st.sampled_from([1, 4, 8]))
@example(seed=26, depth=3, align=1)
def test_dead_channels_are_removed_or_listed_in_deeper_networks(seed: int, depth: int, align: int) -> None:
    _check(seed, depth, align)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "mobilenetv3_small_050",
        "regnety_002",
        "shufflenet",
        "vit_tiny_patch16_224",
        "resnetblur18",
        "densenet",
    ],
)
def test_dead_channels_of_known_networks_are_removed_or_listed(name: str) -> None:
    import timm
    import torchvision

    torch.manual_seed(0)
    size = 224 if name.startswith("vit") else 64
    if name == "shufflenet":
        model: nn.Module = torchvision.models.shufflenet_v2_x0_5(num_classes=5)
    elif name == "densenet":
        model = torchvision.models.DenseNet(8, (2, 2), 8, num_classes=5)
    else:
        model = timm.create_model(name, num_classes=5)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            rows = torch.rand(len(module.weight)) < 0.3
            kill(module, zero=rows.nonzero()[:, 0].tolist())
    model = model.eval()
    result = compact(model, (torch.randn(1, 3, size, size),))
    assert not [reason for reason in result.report.not_pruned.values() if "rolled back" in reason]
    dead = dead_outputs(model.double(), lambda: (torch.randn(2, 3, size, size, dtype=torch.float64),))
    assert unsaid(result.report, dead) == {}


@pytest.mark.parametrize("parts", ["split", "slice", "chunk", "unbind", "tensor_split"])
def test_channels_kept_for_equal_parts_are_listed(parts: str) -> None:
    taken: dict[str, Callable[[Tensor], tuple[Tensor, ...]]] = {
        "split": lambda x: torch.split(x, [4, 4], 1),
        "slice": lambda x: (x[:, :4], x[:, 4:]),
        "chunk": lambda x: x.chunk(2, 1),
        "unbind": lambda x: x.view(len(x), 2, 4, *x.shape[2:]).unbind(1),
        "tensor_split": lambda x: x.tensor_split(2, 1),
    }

    def function(x: Tensor) -> Tensor:
        a, b = taken[parts](x)
        return torch.cat([a, torch.tanh(b)], 1)

    model = Between(function)
    with torch.no_grad():
        model.first.weight[[1, 2]] += 1.0  # leaves channel 5 dead, in the second part alone
    result = compacted(model, image())
    assert shape(result, "first.weight")[0] == 8
    assert "equal numbers" in result.report.not_pruned["first"]


def test_channels_that_go_together_with_others_in_use_are_listed() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.one, self.two, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.last(F.relu(self.one(x) + self.two(x)))
            return y

    model = Sum()
    kill(model.one, zero=[0, 1])
    result = compacted(model, image())
    assert shape(result, "one.weight")[0] == 8
    assert result.report.not_pruned == {"one": "it goes together with channels of two that are in use"}


def test_what_an_operator_makes_vary_is_listed_with_the_operator() -> None:
    result = compacted(Between(lambda x: x.softmax(-1).cumsum(-1)), image())
    assert shape(result, "first.weight")[0] == 8
    assert result.report.not_pruned["first"].startswith("softmax")


def test_channels_kept_for_alignment_and_the_last_one_are_listed() -> None:
    aligned = compacted(Between(torch.relu), image(), align=4)
    assert shape(aligned, "first.weight")[0] == 8
    assert "multiple of 4" in aligned.report.not_pruned["first"]
    model: Any = Between(torch.relu)
    kill(model.first, zero=range(8))
    with torch.no_grad():
        model.last.weight.zero_()
        nn.init.normal_(model.first.bias)

    class Beside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dead, self.live = model, nn.Conv2d(3, 2, 1)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.dead(x), self.live(
                x
            )  # an output stays, and is as large as the image: so does what gives it

    result = compacted(Beside(), image())
    assert shape(result, "dead.first.weight")[0] == 1
    assert "one channel" in result.report.not_pruned["dead.first"]
    with pytest.warns(DeprecationWarning, match="not_pruned"):
        assert result.report.kept_whole == result.report.not_pruned
