"""Recurrent layers and cells: dead units go with their rows of every gate, dead inputs with their columns."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.support.masking import compacted, image, kill, shape

GATES = {nn.LSTM: 4, nn.GRU: 3, nn.RNN: 1, nn.LSTMCell: 4, nn.GRUCell: 3, nn.RNNCell: 1}
LAYERS = [nn.LSTM, nn.GRU, nn.RNN]
CELLS = [nn.LSTMCell, nn.GRUCell, nn.RNNCell]


def kill_units(layer: Any, units: list[int], gate: int | None = None, ends: str = "") -> None:
    """Zero the rows of some units, of all gates or of one."""
    chosen = slice(None) if gate is None else gate
    with torch.no_grad():
        for name, value in layer.named_parameters():
            if "weight_hr" not in name and name.endswith(ends):
                value.view(GATES[type(layer)], -1, *value.shape[1:])[chosen, units] = 0


class Reader(nn.Module):
    """A convolution of 8 channels, a recurrent layer along the columns of its map, and a linear layer behind it."""

    def __init__(self, layer: Any, width: int, last: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.layer, self.head, self.last = nn.Conv2d(3, 8, 3), layer, nn.Linear(width, 2), last

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.conv(x)).mean(2)
        y = y.transpose(1, 2) if self.layer.batch_first else y.permute(2, 0, 1)
        steps, state = self.layer(y)
        state = state[0] if isinstance(state, tuple) else state
        out: Tensor = self.head(torch.cat([state[-2], state[-1]], -1) if self.last else steps)
        return out


class Stepper(nn.Module):
    """A cell that is called step by step."""

    def __init__(self, cell: Any, made: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.cell, self.head, self.made = nn.Conv2d(3, 8, 3), cell, nn.Linear(6, 2), made
        self.width = 6

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.conv(x)).mean(2)
        state: Any = y.new_zeros(len(y), self.width) if self.made else None
        if self.made and isinstance(self.cell, nn.LSTMCell):
            state = (state, state)
        outputs = []
        for step in range(3):
            state = self.cell(y[..., step], state)
            outputs.append(state[0] if isinstance(state, tuple) else state)
        out: Tensor = self.head(torch.stack(outputs, 1))
        return out


@pytest.mark.parametrize("kind", LAYERS)
def test_dead_inputs_and_units_go(kind: Any) -> None:
    model: Any = Reader(kind(8, 6, batch_first=True), 6)
    kill(model.conv, zero=[0, 3, 4])
    kill_units(model.layer, [1, 2])
    result = compacted(model, image())
    gates = GATES[kind]
    assert shape(result, "conv.weight")[0] == 5
    assert shape(result, "layer.weight_ih_l0") == (4 * gates, 5)
    assert shape(result, "layer.weight_hh_l0") == (4 * gates, 4)
    assert shape(result, "layer.bias_hh_l0") == (4 * gates,)
    assert shape(result, "head.weight") == (2, 4)
    small: Any = result.model
    assert small.layer.hidden_size == 4 and small.layer.input_size == 5
    own = {id(value) for value in small.layer.parameters()}
    assert {id(value) for value in small.layer._flat_weights} == own  # what training moves is what runs


@pytest.mark.slow
@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("last", [False, True])
def test_layers_and_directions_keep_equal_widths(kind: Any, last: bool) -> None:
    model: Any = Reader(kind(8, 6, 2, bidirectional=True), 12, last)
    kill_units(model.layer, [1, 2])
    kill_units(model.layer, [5], ends="l0")  # of one layer alone: it stays
    result = compacted(model, image())
    assert shape(result, "layer.weight_ih_l1_reverse") == (4 * GATES[kind], 8)
    assert shape(result, "head.weight") == (2, 8)
    assert "equal numbers" in result.report.not_pruned["layer"]


@pytest.mark.parametrize(
    ("kind", "gate", "goes"),
    [
        (nn.LSTM, 2, True),
        *((nn.LSTM, gate, False) for gate in (0, 1, 3)),
        (nn.GRU, 2, True),
        *((nn.GRU, gate, False) for gate in (0, 1)),
        (nn.RNN, 0, True),
    ],
)
def test_only_the_gate_that_makes_the_state_decides(kind: Any, gate: int, goes: bool) -> None:
    model: Any = Reader(kind(8, 6), 6)
    kill_units(model.layer, [1, 2], gate)
    assert shape(compacted(model, image()), "head.weight") == (2, 4 if goes else 6)


@pytest.mark.parametrize("kind", LAYERS)
def test_units_are_alive_with_a_bias_or_a_living_neighbor(kind: Any) -> None:
    gate = {nn.LSTM: 2, nn.GRU: 2, nn.RNN: 0}[kind]
    model: Any = Reader(kind(8, 6), 6)
    kill_units(model.layer, [0, 1, 2, 3])
    weight, bias = model.layer.weight_hh_l0, model.layer.bias_hh_l0
    with torch.no_grad():
        bias.view(GATES[kind], 6)[gate, 0] = 0.5  # alive of itself
        weight.view(GATES[kind], 6, 6)[gate, 1, 0] = 0.5  # alive by unit 0
        weight.view(GATES[kind], 6, 6)[gate, 2, 3] = 0.5  # reads a unit that is 0, which reads it
        weight.view(GATES[kind], 6, 6)[gate, 3, 2] = 0.5
    assert shape(compacted(model, image()), "head.weight") == (2, 4)


@pytest.mark.parametrize("kind", LAYERS)
def test_units_that_nothing_reads_go(kind: Any) -> None:
    model: Any = Reader(kind(8, 6), 6)
    with torch.no_grad():
        model.head.weight[:, [0, 4, 5]] = 0
        model.layer.weight_hh_l0[:, 0] = 0  # unread everywhere
        model.layer.weight_hh_l0[:, 4] = 0
        model.layer.weight_hh_l0.view(GATES[kind], 6, 6)[:, 4, 5] = 1  # read by unit 4 alone
        model.layer.weight_hh_l0.view(GATES[kind], 6, 6)[:, [0, 1, 2, 3, 5], 5] = 0
    assert shape(compacted(model, image()), "head.weight") == (2, 3)


@pytest.mark.slow
def test_projected_outputs_go_and_leave_more_cells_than_outputs() -> None:
    model: Any = Reader(nn.LSTM(8, 6, proj_size=4), 4)
    kill_units(model.layer, [1, 2])
    with torch.no_grad():
        model.layer.weight_hr_l0[3] = 0
    result = compacted(model, image())
    assert shape(result, "layer.weight_hr_l0") == (3, 4) and shape(result, "head.weight") == (2, 3)
    kill_units(model.layer, [1, 2, 3])
    result = compacted(model, image())
    assert shape(result, "layer.weight_hr_l0") == (3, 4)
    assert "more cells" in result.report.not_pruned["layer"]


@pytest.mark.parametrize("kind", CELLS)
@pytest.mark.parametrize("made", [False, True])
def test_cells_lose_units_whoever_makes_their_first_state(kind: Any, made: bool) -> None:
    model: Any = Stepper(kind(8, 6), made)
    kill(model.conv, zero=[0, 3, 4])
    kill_units(model.cell, [1, 2])
    result = compacted(model, image())
    assert shape(result, "cell.weight_ih") == (4 * GATES[kind], 5)
    assert shape(result, "head.weight") == (2, 4)


def test_a_first_state_that_is_not_zero_keeps_its_units() -> None:
    class Started(Stepper):
        def forward(self, x: Tensor) -> Tensor:
            y = F.relu(self.conv(x)).mean(2)
            out: Tensor = self.head(self.cell(y[..., 0], y.new_ones(len(y), self.width)))
            return out

    model: Any = Started(nn.GRUCell(8, 6), True)
    kill_units(model.cell, [1, 2])
    assert shape(compacted(model, image()), "head.weight") == (2, 6)
