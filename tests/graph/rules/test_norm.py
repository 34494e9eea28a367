"""Normalization: batch and instance norm go with their channels, norms over the channel are barriers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, weight_norm

from compactmtl.surgery import CompactResult
from tests.support.masking import Between, compacted, image, kill, shape


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
    assert "statistics of the batch" in result.report.kept_whole["first"]


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
        (LastDimension(nn.RMSNorm(8)), "rms_norm"),
        (nn.LayerNorm([8, 8, 8]), "layer_norm"),
    ],
)
def test_norms_over_the_channel_are_barriers_with_a_reason(norm: nn.Module, operator: str) -> None:
    result = compacted(Between(norm), image())
    assert shape(result, "first.weight")[0] == 8
    assert result.report.kept_whole["first"].startswith(f"{operator}: it normalizes over the channels")


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
