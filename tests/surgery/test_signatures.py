"""Models of several inputs and outputs: lists, dicts, tuples, numbers beside tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from compactmtl.surgery import compact
from tests.support.masking import compacted, image, kill, shape


class Many(nn.Module):
    """Two inputs in a dict, a list and a number; a dict of a tensor, a tuple and a list as output."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.left, self.right = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 3, padding=1)
        self.join, self.head = nn.Conv2d(16, 6, 1), nn.Linear(6, 2)
        self.whole = nn.Conv2d(8, 4, 1)

    def forward(self, images: dict[str, Tensor], extra: list[Tensor], times: int = 1) -> dict[str, Any]:
        left, right = torch.relu(self.left(images["a"])), torch.relu(self.right(images["b"] + extra[0]))
        both = self.join(torch.cat([left, right], 1)) * times
        return {
            "vector": self.head(both.mean((2, 3))),
            "maps": (self.whole(left), [both.sum(1)]),
            "times": times,
        }


def test_nested_inputs_and_outputs() -> None:
    model = Many()
    kill(model.left, zero=[0], constant=[1])
    kill(model.right, zero=[7])
    kill(model.whole, zero=[2])
    kill(model.join, zero=[3])
    result = compacted(model, {"a": image(), "b": image()}, [image()], 2)
    assert shape(result, "left.weight")[0] == 6 and shape(result, "right.weight")[0] == 7
    assert shape(result, "whole.weight")[:2] == (4, 6)  # an output keeps its channels, dead or not
    assert shape(result, "join.weight")[:2] == (5, 13)  # summed over: a zero adds nothing
    assert result.report.not_pruned["whole"] == "an output of the model"


class Tokens(nn.Module):
    """Whole numbers as input: a table of embeddings keeps its width."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.up, self.down = nn.Embedding(11, 6), nn.Linear(6, 10), nn.Linear(10, 2)

    def forward(self, tokens: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        y = self.down(torch.relu(self.up(self.table(tokens)))) * weights[..., None]
        return y, y.argmax(-1)


def test_tokens_and_whole_numbers_as_output() -> None:
    model = Tokens()
    kill(model.up, zero=[0], constant=[3])
    tokens = torch.arange(10).reshape(2, 5)
    result = compacted(model, tokens, image(2, 5))
    assert shape(result, "up.weight") == (8, 6) and shape(result, "table.weight") == (11, 6)
    assert all(case.max_relative_error == case.max_relative_error for case in result.report.proof.cases)


def test_input_returned_as_it_is() -> None:
    class Passing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)

        def forward(self, x: Tensor) -> list[Tensor]:
            return [x, self.last(self.first(x))]

    torch.manual_seed(0)
    model = Passing()
    kill(model.first, zero=[2])
    assert shape(compacted(model, image()), "first.weight")[0] == 7


def test_input_written_in_place_is_left_alone() -> None:
    class Writing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.last(self.first(x.mul_(2.0)))
            return y

    torch.manual_seed(0)
    model, given = Writing(), image()
    kill(model.first, zero=[2])
    before = given.clone()
    assert shape(compacted(model, given), "first.weight")[0] == 7
    assert torch.equal(given, before)


def test_buffer_that_counts_calls_is_left_alone() -> None:
    class Counting(nn.Module):
        calls: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)
            self.register_buffer("calls", torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            y: Tensor = self.last(self.first(x))
            return y

    torch.manual_seed(0)
    model = Counting().double()
    kill(model.first, zero=[2])
    result: Any = compact(model, (image(),), join=False)
    assert model.calls.item() == 0
    assert result.model.first.out_channels == 7
