"""Views and moves: where a channel lies afterwards, and what has to go with it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.support.masking import Between, all_left, compacted, image, kill, left, shape

Function = Callable[[Tensor], Tensor]

MOVES: dict[str, Function] = {
    "view": lambda x: x.view(x.shape[0], x.shape[1], -1).view(x.shape),
    "flatten positions": lambda x: x.flatten(2).unsqueeze(2),
    "permute": lambda x: F.relu(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2),
    "transpose": lambda x: F.relu(x.transpose(1, 3)).transpose(3, 1),
    "swapaxes": lambda x: x.swapaxes(0, 1).swapaxes(1, 0),
    "movedim": lambda x: F.relu(x.movedim(1, -1)).movedim(-1, 1),
    "moveaxis of two": lambda x: torch.moveaxis(torch.moveaxis(x, (1, 2), (2, 3)), (2, 3), (1, 2)),
    "mT": lambda x: x.mT,
    "unsqueeze": lambda x: x.unsqueeze(1).unsqueeze(-1).squeeze(-1).squeeze(1),
    "expand": lambda x: x.mean((2, 3), keepdim=True).expand(-1, -1, 4, 4),
    "expand_as": lambda x: x.amax((2, 3), keepdim=True).expand_as(x),
    "repeat": lambda x: x.repeat(1, 1, 2, 1),
    "tile": lambda x: x.tile(1, 1, 1, 2),
    "repeat_interleave": lambda x: x.repeat_interleave(2, dim=3),
    "contiguous": lambda x: x.contiguous(memory_format=torch.channels_last),
    "tokens": lambda x: x.flatten(2).transpose(1, 2).transpose(1, 2).reshape(x.shape),
    "windows": lambda x: (
        x.reshape(x.shape[0], x.shape[1], 2, -1, 2, x.shape[3] // 2).permute(0, 2, 4, 1, 3, 5).flatten(0, 2)
    ),
}


@pytest.mark.slow
def test_channel_is_followed() -> None:
    assert all_left(MOVES) == (dict.fromkeys(MOVES, 5), {})


class Tail(nn.Module):
    """A convolution, a rearrangement and a linear layer over all that is left."""

    def __init__(self, function: Function, features: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.function, self.head = nn.Conv2d(3, 8, 1), function, nn.Linear(features, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.function(self.conv(x)))
        return y


@pytest.mark.parametrize(
    "function",
    [lambda x: x.flatten(1), lambda x: x.permute(0, 2, 3, 1).flatten(1), lambda x: x.view(x.shape[0], -1)],
)
def test_flattened_map_loses_all_pixels_of_a_channel(function: Function) -> None:
    model = Tail(function, 8 * 16)
    kill(model.conv, zero=[1], constant=[4])
    result = compacted(model, image(2, 3, 4, 4))
    assert shape(result, "conv.weight")[0] == 6
    assert shape(result, "head.weight") == (3, 6 * 16)


def test_channel_goes_only_when_none_of_its_pixels_is_read() -> None:
    model = Tail(lambda x: x.flatten(1), 8 * 16)
    kill(model.head, unread=[*range(16, 32), *range(48, 60)])  # all of channel 1, most of channel 3
    result = compacted(model, image(2, 3, 4, 4))
    assert shape(result, "conv.weight")[0] == 7


class Shuffled(nn.Module):
    """Pixel shuffle: four channels make one, and go when all four may."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.last = nn.Conv2d(3, 12, 1), nn.Conv2d(3, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(F.pixel_shuffle(self.conv(x), 2))
        return y


def test_pixel_shuffle_takes_four_at_once() -> None:
    model = Shuffled()
    kill(model.conv, zero=[0, 1, 4, 5, 6, 7])
    result = compacted(model, image())
    assert shape(result, "conv.weight")[0] == 8
    assert shape(result, "last.weight")[1] == 2


def test_constant_of_one_phase_is_no_constant_map() -> None:
    model = Shuffled()
    kill(model.conv, constant=[4, 5, 6], zero=[7])
    assert shape(compacted(model, image()), "conv.weight")[0] == 12


def test_pixel_unshuffle_spreads_a_channel() -> None:
    result = compacted(Between(lambda x: F.pixel_unshuffle(x, 2), reads=32), image())
    assert shape(result, "first.weight")[0] == 5
    assert shape(result, "last.weight")[1] == 20


@pytest.mark.parametrize("fused", [True, False])
def test_channel_shuffle_keeps_the_same_places_of_every_group(fused: bool) -> None:
    def shuffle(x: Tensor) -> Tensor:
        if fused:
            return F.channel_shuffle(x, 2)
        b, c, h, w = x.shape
        return x.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)

    # Dead are 1, 2 and 5: of the groups 0-3 and 4-7 only place 1 is dead in both.
    assert left(shuffle) == 6


def test_split_dimension_of_a_channel_is_counted_by_its_attribute() -> None:
    model = Between(nn.Sequential(nn.Unflatten(1, (2, 4)), nn.ReLU(), nn.Flatten(1, 2)))
    result = compacted(model, image())
    assert shape(result, "first.weight")[0] == 6  # 2 and 3 are left of each four: rows keep equal counts
    unflatten = result.model.get_submodule("function.0")
    assert isinstance(unflatten, nn.Unflatten) and tuple(unflatten.unflattened_size) == (2, 3)
