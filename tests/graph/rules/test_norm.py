"""Normalization: batch and instance norm go with their channels, norms over the channel lose those that are zero."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from timm.layers.grn import GlobalResponseNorm
from timm.layers.norm import LayerNorm2d, RmsNorm2d
from timm.layers.norm_act import LayerNormAct2d
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, weight_norm

from compactmtl.surgery import CompactResult, apply_plan
from tests.support.masking import Between, assert_close, compacted, image, kill, shape


def _settled(norm: nn.BatchNorm2d) -> nn.BatchNorm2d:
    torch.manual_seed(2)
    assert norm.running_mean is not None and norm.running_var is not None
    norm.running_mean.uniform_(-0.5, 0.5)
    norm.running_var.uniform_(0.5, 1.5)
    if norm.affine:
        with torch.no_grad():
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.uniform_(-0.5, 0.5)
    return norm


@pytest.mark.parametrize("affine", [True, False])
def test_batch_norm_turns_constants_into_others(affine: bool) -> None:
    result = compacted(Between(_settled(nn.BatchNorm2d(8, affine=affine))), image())
    assert shape(result, "first.weight")[0] == 5
    norm = result.model.get_submodule("function")
    assert isinstance(norm, nn.BatchNorm2d) and norm.num_features == 5
    assert norm.running_var is not None and norm.running_var.shape == (5,)


def test_batch_norm_scaled_by_zero_takes_its_input_along() -> None:
    model = Between(_settled(nn.BatchNorm2d(8)))
    with torch.no_grad():
        model.function.weight[[0, 6]] = 0  # type: ignore[attr-defined]
    assert shape(compacted(model, image()), "first.weight")[0] == 3


def test_batch_norm_of_the_batch_keeps_its_channels() -> None:
    result = compacted(Between(nn.BatchNorm2d(8, track_running_stats=False)), image())
    assert result.plan.empty
    assert "statistics of the batch" in result.report.not_pruned["first"]


@pytest.mark.parametrize("affine", [True, False])
def test_instance_norm_passes_zeros_and_counts_its_features(affine: bool) -> None:
    result = compacted(Between(nn.InstanceNorm2d(8, affine=affine)), image())
    assert shape(result, "first.weight")[0] == 7
    norm = result.model.get_submodule("function")
    assert isinstance(norm, nn.InstanceNorm2d) and norm.num_features == 7


class LastDimension(nn.Module):
    """A norm over the last dimension, where tokens carry their channel."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return y


@pytest.mark.parametrize(
    ("norm", "operator"),
    [
        (nn.GroupNorm(4, 8), "group_norm"),
        (nn.GroupNorm(1, 8), "group_norm"),
        (LastDimension(nn.LayerNorm(8)), "layer_norm"),
        (nn.LayerNorm([8, 8, 8]), "layer_norm"),
    ],
)
def test_norms_over_the_channel_keep_what_they_make_vary_and_say_so(norm: nn.Module, operator: str) -> None:
    result = compacted(Between(norm), image())
    assert shape(result, "first.weight")[0] == 8 and not result.plan.full_width
    assert result.report.not_pruned["first"].startswith(f"{operator}: it normalizes over the channels")


class Response(nn.Module):
    """Each channel's norm over its positions, over the mean of all channels' (global response normalization)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        size = x.norm(p=2, dim=(2, 3), keepdim=True)
        share = size / (size.mean(dim=1, keepdim=True) + 1e-6)
        y: Tensor = x + self.bias.view(1, -1, 1, 1) + self.weight.view(1, -1, 1, 1) * x * share
        return y


class Functional(nn.Module):
    """A norm called as a function, by a module with nothing else in it or with a layer."""

    def __init__(self, layer: bool) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(8)), nn.Parameter(torch.ones(8))
        self.layer = nn.Conv2d(8, 8, 1) if layer else None

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.layer is None else self.layer(x)
        y = F.layer_norm(
            x.movedim(1, -1), self.weight.shape, self.weight.to(x.dtype), self.bias.to(x.dtype), 1e-6
        )
        return F.silu(y.movedim(-1, 1))


def _scaled(norm: nn.Module, dead: list[int], bias: float = 0.0) -> nn.Module:
    """Random entries, and `dead` channels scaled by zero."""
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in norm.named_parameters():
            if parameter.ndim == 1:
                parameter.uniform_(0.5, 1.5)
                parameter[dead] = bias if name.endswith("bias") else 0.0
    return norm


_NORMS: dict[str, Callable[[], nn.Module]] = {
    "layer_norm": lambda: LastDimension(nn.LayerNorm(8)),
    "layer_norm_2d": lambda: LayerNorm2d(8),
    "layer_norm_act": lambda: LayerNormAct2d(8, act_layer=nn.GELU),
    "one_group": lambda: nn.GroupNorm(1, 8),
    "rms_norm": lambda: LastDimension(nn.RMSNorm(8)),
    "rms_norm_2d": lambda: RmsNorm2d(8),
    "response": lambda: Response(8),
    "response_timm": lambda: GlobalResponseNorm(8, channels_last=False),
    "functional": lambda: Functional(layer=False),
}


@pytest.mark.slow
@pytest.mark.parametrize("bias", [0.0, 0.7])
def test_zeros_that_norms_over_the_channel_scale_by_zero_go(bias: float) -> None:
    """Channel 2 is zero, 1 and 5 are constants that are not; what the norm makes of 2 and 5 is constant."""
    branches = [Between(_scaled(norm(), [2, 5], bias)) for norm in _NORMS.values()]
    result = compacted(Side(branches), image())
    left = {name: shape(result, f"branches.{index}.first.weight")[0] for index, name in enumerate(_NORMS)}
    assert left == dict.fromkeys(_NORMS, 7)
    assert len(result.plan.full_width) == len(_NORMS)


class Side(nn.Module):
    """Models side by side: one trace serves them all."""

    def __init__(self, branches: Sequence[nn.Module]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [branch(x) for branch in self.branches]


def test_a_root_mean_square_passes_zeros_whatever_its_weight() -> None:
    result = compacted(Between(LastDimension(nn.RMSNorm(8))), image())
    assert shape(result, "first.weight")[0] == 7


def test_norms_without_a_module_of_their_own_are_barriers() -> None:
    function = Functional(layer=True)
    model = Between(_scaled(function, [2]))
    kill(function.layer, zero=[2])
    result = compacted(model, image())
    assert shape(result, "function.layer.weight")[0] == 8 and not result.plan.full_width
    assert result.report.not_pruned["function.layer"].startswith(
        "layer_norm: it normalizes over the channels"
    )


@pytest.mark.parametrize(
    ("function", "left"),
    [
        (lambda x: x * x.sum(1, keepdim=True), 7),
        (lambda x: F.normalize(x, dim=1), 7),
        (lambda x: x * x.mean(1, keepdim=True), 8),  # called where nothing can be widened
        (lambda x: x * x.amax(1, keepdim=True), 8),
    ],
)
def test_sums_over_the_channel_do_without_zeros(function: Callable[[Tensor], Tensor], left: int) -> None:
    model = Between(function)
    assert shape(compacted(model, image()), "first.weight")[0] == left


class Tokens(nn.Module):
    """Two layers around a LayerNorm: what lies between barriers goes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.up, self.down = nn.LayerNorm(6), nn.Linear(6, 12), nn.Linear(12, 6)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.down(F.gelu(self.up(self.norm(x))))
        return y


def test_interior_between_two_barriers_goes() -> None:
    model = Tokens()
    kill(model.up, zero=[0, 3], constant=[5])
    kill(model.down, unread=[7])
    result = compacted(model, image(2, 5, 6))
    assert shape(result, "up.weight") == (8, 6) and shape(result, "down.weight") == (6, 8)


class Normalized(nn.Module):
    """Convolutions whose weight is computed from a direction and a length for each filter."""

    def __init__(self, modern: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        norm = parametrizations.weight_norm if modern else weight_norm
        self.first, self.inner = nn.Conv2d(3, 8, 1), norm(nn.Conv2d(8, 8, 3, padding=1))
        self.last = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(F.relu(self.inner(F.relu(self.first(x)))))
        return y


def _computed(result: CompactResult) -> tuple[int, int]:
    """Filters and inputs of the layer with a computed weight, as it is now."""
    weight = result.model.get_submodule("inner").weight
    assert isinstance(weight, Tensor)
    return weight.shape[0], weight.shape[1]


@pytest.mark.slow
@pytest.mark.parametrize("modern", [True, False])
@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
def test_weight_norm_is_followed_in_both_of_its_forms(modern: bool) -> None:
    model = Normalized(modern)
    kill(model.last, unread=[1, 2])
    assert _computed(compacted(model, image())) == (6, 8)


class Standardized(nn.Conv2d):
    """A convolution whose filters are standardized before use."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        weight = weight / (weight.std((1, 2, 3), keepdim=True) + 1e-5)
        return F.conv2d(x, weight, self.bias, padding=self.padding)


def test_filters_of_a_standardized_convolution_go() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.ReLU(), Standardized(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 2, 1)
    )
    kill(model[4], unread=[1, 2])
    assert shape(compacted(model, image()), "2.weight") == (6, 8, 3, 3)


class Grouped(nn.Module):
    """A norm over groups of 4 of 16 channels between two convolutions, the second one maybe grouped."""

    def __init__(self, norm: nn.Module, groups: int = 1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm = nn.Conv2d(3, 16, 1), norm
        self.middle, self.last = nn.Conv2d(16, 16, 3, groups=groups), nn.Conv2d(16, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(torch.relu(self.middle(torch.relu(self.norm(self.first(x))))))
        return y


@pytest.mark.parametrize("groups", [1, 4, 16])
@pytest.mark.parametrize("scaled", [True, False])
def test_a_whole_dead_group_of_a_norm_goes(groups: int, scaled: bool) -> None:
    model: Any = Grouped(nn.GroupNorm(4, 16), groups)
    kill(model.first, zero=range(4, 8))
    if scaled:
        kill(model.norm, zero=range(4, 8))
    else:
        with torch.no_grad():
            model.norm.bias[4:8] = -1.0  # what it makes of zeros, cut off behind it
    result = compacted(model, image())
    assert shape(result, "first.weight")[0] == 12 and shape(result, "middle.weight")[1] * groups in (
        12,
        16,
        4,
    )
    small: Any = result.model
    assert small.norm.num_groups == 3 and small.norm.num_channels == 12


def test_a_group_of_constants_goes_and_is_folded() -> None:
    model: Any = Grouped(nn.GroupNorm(4, 16))
    with torch.no_grad():
        model.first.weight[4:8] = 0
        model.first.bias[4:8] = torch.tensor([0.1, 0.5, 0.7, 0.9])
        model.middle = nn.Conv2d(16, 16, 1)
    assert shape(compacted(model, image()), "first.weight")[0] == 12


@pytest.mark.parametrize("bias", [0.0, 0.7])
@pytest.mark.parametrize("dead", [[4, 5, 6], [0, 4, 8, 12], [0, 4, 5, 6, 7, 13]])
def test_zeros_inside_a_group_go_at_full_width(dead: list[int], bias: float) -> None:
    """Also beside a group that is dead as a whole."""
    model: Any = Grouped(_scaled(nn.GroupNorm(4, 16), dead, bias))
    kill(model.first, zero=dead)
    result = compacted(model, image())
    assert shape(result, "first.weight")[0] == 16 - len(dead) == shape(result, "middle.weight")[1]
    assert shape(result, "norm.weight") == (16,)
    (edit,) = result.plan.full_width
    assert edit.places == tuple(sorted(set(range(16)) - set(dead)))
    again = apply_plan(model, type(result.plan).from_json(result.plan.to_json()))
    assert_close(again(image()), result.model(image()))


def test_constants_of_a_group_stay_together() -> None:
    """What is left of a group that is constant is computed of all of it: here a carrier needs one of them."""
    model: Any = Grouped(nn.GroupNorm(4, 16))
    model.middle = nn.Conv2d(16, 16, 3, padding=1)
    with torch.no_grad():
        model.first.weight[4:8] = 0
        model.first.bias[4:8] = torch.tensor([0.1, 0.5, 0.7, 0.9])
    assert shape(compacted(model, image()), "first.weight")[0] == 16


def test_a_norm_over_groups_without_a_module_loses_whole_groups() -> None:
    class Called(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 2, 1)
            self.groups = 4

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.last(F.relu(F.group_norm(self.first(x), self.groups) - 0.1))
            return y

    called: Any = Called()
    kill(called.first, zero=[4, 5, 6, 7, 8])
    assert shape(compacted(called, image()), "first.weight")[0] == 12


@pytest.mark.parametrize("dead", [[4, 5, 6], [0, 4, 8, 12]])
def test_a_part_of_a_group_stays_and_is_listed(dead: list[int]) -> None:
    model: Any = Grouped(nn.GroupNorm(4, 16))
    kill(model.first, zero=dead)
    result = compacted(model, image())
    assert shape(result, "first.weight")[0] == 16
    assert "channels of a group" in result.report.not_pruned["first"]
