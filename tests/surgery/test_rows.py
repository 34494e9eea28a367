"""Layers in a row become one where that has fewer MACs, exactly; whatever else reads or runs between them keeps them apart."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from compactmtl.errors import ArtifactError
from compactmtl.export import export_onnx
from compactmtl.surgery import apply_plan, compact, load_compact, save_compact
from compactmtl.surgery.plan import Join, Plan
from tests.support.masking import FLOAT32, TOLERANCE, assert_close, kill
from tests.support.rows import IMAGE, OTHER, checked, conv, identity, ready

TOKENS = torch.randn(2, 9, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


# Each row, and the layers that become one with that whose place it takes.
JOINED: dict[str, tuple[Callable[[], list[nn.Module]], dict[str, tuple[str, ...]]]] = {
    "1x1 after 1x1": (lambda: [conv(6, 16), conv(16, 5)], {"1": ("0", "1")}),
    "1x1 after a padded kernel": (lambda: [conv(6, 16, 3, padding=1), conv(16, 5)], {"0": ("0", "1")}),
    "a padded kernel after 1x1 without a bias": (
        lambda: [conv(6, 32, bias=False), conv(32, 5, 3, padding=1)],
        {"1": ("0", "1")},
    ),
    "a kernel without padding after 1x1": (lambda: [conv(6, 32), conv(32, 5, 3)], {"1": ("0", "1")}),
    "a kernel that reflects its input after 1x1": (
        lambda: [conv(6, 32), conv(32, 5, 3, padding=1, padding_mode="reflect")],
        {"1": ("0", "1")},
    ),
    "a stride after 1x1": (lambda: [conv(6, 6), conv(6, 5, stride=2)], {"1": ("0", "1")}),
    "a norm between": (
        lambda: [conv(6, 16, bias=False), nn.BatchNorm2d(16), conv(16, 5, bias=False)],
        {"2": ("0", "1", "2")},
    ),
    "norms on all sides": (
        lambda: [nn.BatchNorm2d(6), conv(6, 16, 3), nn.BatchNorm2d(16), conv(16, 5), nn.BatchNorm2d(5)],
        {"1": ("1", "2", "3")},
    ),
    "three in a row": (lambda: [conv(6, 16), conv(16, 16, 3), conv(16, 5)], {"1": ("0", "1", "2")}),
    "1x1 after a transposed kernel": (
        lambda: [nn.ConvTranspose2d(6, 16, 4, stride=2, padding=1), conv(16, 3)],
        {"0": ("0", "1")},
    ),
    "a transposed kernel after 1x1 without a bias": (
        lambda: [conv(6, 48, bias=False), nn.ConvTranspose2d(48, 4, 3, stride=2, output_padding=1)],
        {"1": ("0", "1")},
    ),
    "the narrow place stays narrow": (lambda: [conv(6, 2), conv(2, 16), conv(16, 16)], {"2": ("1", "2")}),
}


@pytest.mark.parametrize("name", JOINED)
def test_layers_in_a_row_become_one(name: str) -> None:
    torch.manual_seed(0)
    layers, expected = JOINED[name]
    model = ready(nn.Sequential(*layers()))
    result = checked(model)
    assert result.report.joined == expected
    assert result.report.macs_after < result.report.macs_before
    assert result.report.parameters_after == sum(value.numel() for value in result.model.parameters())
    for into, names in expected.items():
        assert {join.into: join.layers for join in result.plan.joins}[into] == names
        assert all(type(result.model.get_submodule(one)) is nn.Identity for one in names if one != into)
    layers_left = {layer.name: layer.after for layer in result.report.layers}
    assert all(
        layers_left[one] == (0, 0)
        for into, names in expected.items()
        for one in names
        if one != into and one in layers_left
    )


APART: dict[str, Callable[[], list[nn.Module]]] = {
    "a bias that meets zeros of padding": lambda: [conv(6, 32), conv(32, 5, 3, padding=1)],
    "a norm's bias that meets zeros of padding": lambda: [
        conv(6, 32, bias=False),
        nn.BatchNorm2d(32),
        conv(32, 5, 3, padding=1),
    ],
    "a bias before a transposed kernel": lambda: [conv(6, 48), nn.ConvTranspose2d(48, 4, 3, stride=2)],
    "two kernels": lambda: [conv(6, 32, 3), conv(32, 5, 3)],
    "1x1 with padding": lambda: [conv(6, 16, padding=1), conv(16, 5, padding=1)],
    "a function": lambda: [conv(6, 16), nn.ReLU(), conv(16, 5)],
    "dropout, for training goes on": lambda: [conv(6, 16), nn.Dropout(0.1), conv(16, 5)],
    "a narrow place": lambda: [conv(6, 2), conv(2, 6)],
    "groups": lambda: [conv(6, 16), conv(16, 4, groups=2)],
    "a norm over positions": lambda: [conv(6, 16), nn.InstanceNorm2d(16), conv(16, 5)],
    "a norm of the batch's own statistics": lambda: [
        conv(6, 16),
        nn.BatchNorm2d(16, affine=False, track_running_stats=False),
        conv(16, 5),
    ],
}


@pytest.mark.parametrize("name", APART)
def test_what_keeps_layers_apart(name: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*APART[name]()).double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.bias is not None:
            nn.init.uniform_(module.bias, 0.5, 1.5)
    result = checked(model)
    assert not result.plan.joins and not result.plan.identities


def test_linear_layers_in_a_row_become_one() -> None:
    torch.manual_seed(0)
    model = ready(nn.Sequential(nn.Linear(6, 20), nn.Linear(20, 16, bias=False), nn.Linear(16, 5)))
    assert checked(model, TOKENS, TOKENS[:, :4]).report.joined == {"2": ("0", "1", "2")}


def test_a_norm_after_a_linear_layer_counts_its_second_dimension() -> None:
    """Of tokens that are as many as channels it would pass for one of the channels."""
    torch.manual_seed(0)
    tokens = torch.randn(2, 16, 6, dtype=torch.float64)
    model = ready(nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Linear(16, 5)))
    assert not checked(model, tokens, 2 * tokens).plan.joins
    assert checked(model, tokens[:, 0], tokens[:, 1]).report.joined == {"2": ("0", "1", "2")}


class Two(nn.Module):
    """Two layers that could be one, but for what `way` does besides."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.first, self.second = conv(6, 16, bias=False), conv(16, 5)
        if way == "tied":
            self.third = conv(6, 16, bias=False)
            self.third.weight = self.first.weight
        if way == "in two places":
            self.also = self.first
        if way == "hook":
            self.first.register_forward_hook(lambda module, args, output: 2 * output)
        if way == "parametrized":
            nn.utils.parametrizations.weight_norm(self.second)
        if way == "a forward of its own":
            plain = self.first.forward
            self.first.forward = lambda x: 2 * plain(x) if self.training else plain(x)  # type: ignore[method-assign, assignment]

    def forward(self, image: Tensor) -> Any:
        x = self.first(image)
        if self.way == "read twice":
            return self.second(x), x.mean(1, keepdim=True)
        if self.way == "called twice":
            return self.second(x) + self.second(2 * x)
        if self.way == "written into":
            x += 1
        if self.way == "attribute":
            assert x.shape[1] == self.first.out_channels
        if self.way == "weight":
            return self.second(x) + self.first.weight.mean()
        if self.way == "function":
            return torch.nn.functional.conv2d(x, self.second.weight, self.second.bias)
        if self.way == "in training" and self.training:
            return self.second(x), x
        if self.way == "noise in training" and self.training:
            x = x + torch.randn_like(x)
        if self.way == "a loss in training" and self.training:
            return self.second(x) + x.mean()
        if self.way == "a dead write":
            result = self.second(x)
            x += 1  # nothing reads it afterwards
            return result
        if self.way == "written before" and self.training:
            image.mul_(2)
        if self.way == "another input in training" and self.training:
            return self.second(self.first(image).relu())
        if self.way == "tied":
            return self.second(x), self.third(image)
        return self.second(x)


@pytest.mark.parametrize(
    "way",
    [
        "tied",
        "in two places",
        "hook",
        "read twice",
        "called twice",
        "written into",
        "attribute",
        "weight",
        "function",
        "in training",
        "noise in training",
        "a loss in training",
        "another input in training",
        "a dead write",
        "written before",
        "a forward of its own",
    ],
)
def test_layers_that_something_else_reads_stay(way: str) -> None:
    torch.manual_seed(0)
    model = Two(way).double().eval()
    result = compact(model, (IMAGE,))
    assert not result.plan.joins
    expected, found = model(OTHER), result.model(OTHER)
    for one, other in zip(*((x if isinstance(x, tuple) else (x,)) for x in (expected, found)), strict=True):
        assert_close(one, other)


@pytest.mark.parametrize("layers", [2, 3])
def test_what_is_written_once_a_row_has_read_it_keeps_nothing_apart(layers: int) -> None:
    """As in a sum in place."""

    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.row = nn.Sequential(conv(6, 16), *[conv(16, 16) for _ in range(layers - 2)], conv(16, 6))

        def forward(self, image: Tensor) -> Tensor:
            x = image.sigmoid()
            x += self.row(x)
            return x

    torch.manual_seed(0)
    assert len(checked(Sum().double().eval()).plan.joins) == 1


def test_layers_that_nothing_else_reads_become_one() -> None:
    """The network of the test above without any of that."""
    torch.manual_seed(0)
    assert checked(Two("").double().eval()).report.joined == {"second": ("first", "second")}


def test_a_computed_weight_is_joined_once_it_is_plain() -> None:
    """Where its channels can go the layer becomes a plain one, and then it is in the row."""
    torch.manual_seed(0)
    model = Two("parametrized").double().eval()
    with torch.no_grad():
        model.first.weight[:4] = 0
    result = compact(model, (IMAGE,))
    assert result.report.contracted == ("second",)
    assert result.report.joined == {"second": ("first", "second")}
    assert_close(model(OTHER), result.model(OTHER), FLOAT32)


def test_it_comes_after_removal_and_can_be_left_out(tmp_path: Path) -> None:
    """Dead channels make the narrow place that a row has lie elsewhere."""
    torch.manual_seed(0)
    model = nn.Sequential(conv(6, 8), conv(8, 24), nn.BatchNorm2d(24), nn.ReLU(), conv(24, 3)).double().eval()
    kill(model[1], constant=range(4, 24))
    result = checked(model)
    assert result.report.joined == {"1": ("0", "1")}
    assert result.model.get_parameter("1.weight").shape[:2] == (4, 6)
    apart = compact(model, (IMAGE,), join=False)
    assert not apart.plan.joins and apart.model.get_parameter("0.weight").shape[0] == 8
    assert result.report.macs_after < apart.report.macs_after
    save_compact(result, str(tmp_path))
    fresh = nn.Sequential(conv(6, 8), conv(8, 24), nn.BatchNorm2d(24), nn.ReLU(), conv(24, 3)).double()
    loaded = load_compact(fresh, str(tmp_path))
    assert_close(model(OTHER), loaded(OTHER))
    assert set(result.model.state_dict()) <= set(model.state_dict())


def test_the_result_trains_and_repeats_itself() -> None:
    torch.manual_seed(0)
    model = ready(nn.Sequential(conv(6, 16, 3, padding=1), conv(16, 5), nn.BatchNorm2d(5)))
    small = compact(model, (IMAGE,)).model
    again = compact(small, (IMAGE,))
    assert not again.plan.joins and not again.plan.identities
    assert_close(model(OTHER), again.model(OTHER))
    copied = copy.deepcopy(small).train()
    copied(IMAGE).square().sum().backward()
    assert all(value.grad is not None for value in copied.parameters())
    frozen = model.requires_grad_(False)
    assert not any(value.requires_grad for value in compact(frozen, (IMAGE,)).model.parameters())


def test_numbers_are_joined_in_float64_and_rounded_once() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(conv(6, 256), conv(256, 64), conv(64, 5)).eval()
    result = compact(model, (IMAGE.float(),))
    assert result.report.joined
    weight = result.model.get_parameter("2.weight")
    matrices = [layer.get_parameter("weight").detach().double().flatten(1) for layer in model]
    assert weight.dtype == torch.float32
    exact = (matrices[2] @ matrices[1] @ matrices[0]).float()
    assert torch.equal(weight.detach().flatten(1), exact)


def test_types_that_round_too_much_stay_apart() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(conv(6, 16), conv(16, 5)).to(torch.bfloat16).eval()
    result = compact(model, (IMAGE.to(torch.bfloat16),))
    assert result.report.proof.passed and not result.plan.joins


def test_a_plan_that_does_not_fit_is_refused() -> None:
    torch.manual_seed(0)
    model = ready(nn.Sequential(conv(6, 16), conv(16, 5)))
    plan = compact(model, (IMAGE,)).plan
    for wrong in (
        Join(layers=("0", "nothing"), into="0"),
        Join(layers=("1", "0"), into="0"),
        Join(layers=("0", "1"), into="0"),
    ):
        with pytest.raises(ArtifactError, match="joins"):
            apply_plan(model, plan.model_copy(update={"joins": (wrong,)}))
    with pytest.raises(ArtifactError, match="elsewhere"):
        apply_plan(model, plan.model_copy(update={"identities": ("elsewhere",)}))
    with pytest.raises(ArtifactError, match="joins"):
        Plan.from_json(plan.to_json().replace('"into": "1"', '"into": "7"'))


@pytest.mark.slow
def test_a_norm_behind_a_convolution_is_left_to_the_export(tmp_path: Path) -> None:
    """It can be trained on in PyTorch, and the file holds none of it."""
    torch.manual_seed(0)
    model = ready(nn.Sequential(conv(6, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU(), conv(5, 2))).float()
    small = compact(model, (IMAGE.float(),)).model
    assert type(small.get_submodule("1")) is nn.BatchNorm2d
    path = export_onnx(small, (IMAGE.float(),), tmp_path / "model.onnx")
    assert [node.op_type for node in onnx.load(path).graph.node] == ["Conv", "Relu", "Conv"]


PARTS = ("1x1", "1x1 no bias", "3x3", "3x3 padded", "norm", "relu", "dropout", "identity")


@st.composite
def networks(draw: st.DrawFn) -> nn.Module:
    torch.manual_seed(draw(st.integers(0, 1000)))
    width, layers = 6, list[nn.Module]()
    for part in draw(st.lists(st.sampled_from(PARTS), min_size=2, max_size=7)):
        new = draw(st.sampled_from((2, 5, 9)))
        if part.startswith("1x1"):
            layers.append(conv(width, new, bias=part == "1x1"))
        elif part.startswith("3x3"):
            layers.append(conv(width, new, 3, padding=int(part == "3x3 padded"), bias=draw(st.booleans())))
        else:
            other = {
                "norm": nn.BatchNorm2d(width),
                "relu": nn.ReLU(draw(st.booleans())),
                "dropout": nn.Dropout(0.5),
            }
            layers.append(other.get(part) or identity(width=width))
            continue
        width = new
    return ready(nn.Sequential(*layers, nn.Sigmoid(), conv(width, 2)))  # type: ignore[no-any-return]


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(networks())
def test_whatever_lies_in_a_row_the_function_stays(model: nn.Module) -> None:
    image = torch.randn(1, 6, 20, 20, dtype=torch.float64)
    other = torch.randn(2, 6, 24, 18, dtype=torch.float64)
    result = checked(model, image, other)
    apart = compact(model, (image,), join=False)
    assert result.report.macs_after <= apart.report.macs_after
    assert (result.report.macs_after < apart.report.macs_after) == bool(
        result.plan.joins
        or any(isinstance(model.get_submodule(p), nn.Conv2d) for p in result.plan.identities)
    )
    assert result.report.proof.max_relative_error <= TOLERANCE
