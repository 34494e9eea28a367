"""Concatenation and its opposites: offsets of channels, and parts that keep equal counts."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.support.masking import Between, all_left, compacted, image, kill, left, shape

Function = Callable[[Tensor], Tensor]

# Eight channels taken apart and put together again. 1, 2 and 5 are dead: of halves one stays for equal counts.
WHOLE: dict[str, tuple[int, Function]] = {
    "chunk": (6, lambda x: torch.cat(x.chunk(2, 1), 1)),
    "split in equal parts": (6, lambda x: torch.cat(torch.split(x, x.shape[1] // 2, 1)[::-1], 1)),
    "tensor_split": (6, lambda x: torch.cat(x.tensor_split(2, 1), 1)),
    "slices by share": (6, lambda x: torch.cat([x[:, : x.shape[1] // 2], x[:, x.shape[1] // 2 :]], 1)),
    "narrow": (
        6,
        lambda x: torch.cat([x.narrow(1, i * x.shape[1] // 2, x.shape[1] // 2) for i in (0, 1)], 1),
    ),
    "stack and sum": (7, lambda x: torch.stack([x, 2 * x], 1).sum(1)),
    "stack and mean": (5, lambda x: torch.stack([x, x.relu()], 2).mean(2)),
    "stack, the channel last": (
        5,
        lambda x: torch.stack([x.movedim(1, -1), x.relu().movedim(1, -1)]).mean(0).movedim(-1, 1),
    ),
    "stack and unbind": (5, lambda x: torch.add(*torch.stack([x, x.relu()], 0).unbind(0))),
    "select of images": (5, lambda x: torch.stack([x[0], x[-1]])),
    "select of positions": (5, lambda x: x[:, :, 0, 1][..., None, None]),
    "concatenated positions": (5, lambda x: torch.cat([x, x.relu()], 2)),
    "concatenated images": (5, lambda x: torch.cat([x, x.relu()])),
    "sliced positions": (5, lambda x: x[..., 1:-1]),
    "an empty part": (5, lambda x: torch.cat([x[:, :0], x], 1)),
}


@pytest.mark.slow
def test_taken_apart_and_put_together() -> None:
    kept, _ = all_left({name: function for name, (_, function) in WHOLE.items()})
    assert kept == {name: stay for name, (stay, _) in WHOLE.items()}


class Dense(nn.Module):
    """Concatenation of three producers, one of them the input itself, read at the right offsets."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = nn.Conv2d(3, 4, 1), nn.Conv2d(7, 6, 1)
        self.norm = nn.BatchNorm2d(13)
        self.last = nn.Conv2d(13, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([x, F.relu(self.one(x))], 1)
        z = torch.cat([y, F.relu(self.two(y))], 1)
        out: Tensor = self.last(self.norm(z))
        return out


def test_dense_connections_keep_their_offsets() -> None:
    model = Dense()
    kill(model.one, zero=[1, 3])
    kill(model.two, zero=[0, 5])
    with torch.no_grad():
        model.norm.bias[[4, 6, 7, 12]] = 0  # their means are 0 as well: the zeros stay zeros
    kill(model.last, unread=[0, 3])  # an input channel cannot go, the first of `one` is still read by `two`
    result = compacted(model, image())
    assert shape(result, "one.weight")[0] == 2
    assert shape(result, "two.weight")[:2] == (4, 5)
    assert shape(result, "norm.weight") == (9,) and shape(result, "last.weight")[1] == 9


class Halves(nn.Module):
    """Cross-stage partial: split sizes kept as attributes, of unequal parts."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.sizes = [6, 4]
        self.conv, self.inner, self.last = (
            nn.Conv2d(3, 10, 1),
            nn.Conv2d(4, 4, 3, padding=1),
            nn.Conv2d(10, 2, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        a, b = torch.split(self.conv(x), self.sizes, 1)
        y: Tensor = self.last(torch.cat([a, self.inner(b)], 1))
        return y


def test_split_sizes_in_an_attribute_follow() -> None:
    model = Halves()
    kill(model.conv, zero=[0, 1, 7])
    result = compacted(model, image())
    assert shape(result, "conv.weight")[0] == 7 and shape(result, "inner.weight")[1] == 3
    assert result.model.sizes == [4, 3]
    assert model.sizes == [6, 4]


class GatedUnit(nn.Module):
    """Two halves of one layer multiplied: they go in pairs."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.last = nn.Conv2d(3, 12, 1), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.conv(x).chunk(2, 1)
        y: Tensor = self.last(a * torch.sigmoid(b))
        return y


def test_gated_halves_go_in_pairs() -> None:
    model = GatedUnit()
    kill(model.conv, zero=[0, 1])
    kill(model.last, unread=[5])
    result = compacted(model, image())
    assert shape(result, "conv.weight")[0] == 6 and shape(result, "last.weight")[1] == 3


class Written(nn.Module):
    """A part of a map overwritten through a view."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        y[:, :3] = torch.relu(y[:, 3:6])
        z: Tensor = self.last(y)
        return z


def test_write_through_a_view_keeps_all_and_says_so() -> None:
    model = Written()
    kill(model.conv, zero=[0, 4, 7])
    result = compacted(model, image())
    assert result.plan.empty
    assert "view" in result.report.not_pruned["conv"]


def test_whole_tensor_written_in_place_is_no_view() -> None:
    assert left(lambda x: x.clone().mul_(2).relu_()) == 5


def test_hard_coded_cut_is_rolled_back_and_named() -> None:
    result = compacted(Between(lambda x: torch.cat([x[:, 3:8], x[:, :3]], 1)), image(), rolled_back=True)
    assert result.plan.empty
    assert "rolled back" in result.report.not_pruned["first"]
