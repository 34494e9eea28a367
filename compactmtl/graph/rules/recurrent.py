"""LSTM, GRU and plain recurrent layers and cells: a hidden unit goes with its rows of every gate.

A unit is dead where it is 0 at every step, or where nothing that is used reads it. It is 0 at every step where its
first state is 0 and what its state is made of is: the cell gate of an LSTM, the new gate of a GRU, with no bias and
no weight on an input or on a unit that is not 0 itself. The other gates only scale that, whatever they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import fx

from compactmtl.graph.analysis import Analysis, Product, Rule
from compactmtl.graph.calls import arguments, operator
from compactmtl.graph.space import Axis, Flags, Ids

_GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}
_MADE_OF = {"lstm": 2, "gru": 2, "rnn_tanh": 0, "rnn_relu": 0}  # the gate that the state is made of


@dataclass(frozen=True)
class _Weights:
    """The parameters of one layer and direction; `project` makes an LSTM's output of its cells."""

    inputs: fx.Node  # (gates * H, I)
    hidden: fx.Node  # (gates * H, outputs)
    biases: tuple[fx.Node, ...]  # two of (gates * H,), or none
    project: fx.Node | None  # (outputs, H)

    @property
    def all(self) -> tuple[fx.Node, ...]:
        return (self.inputs, self.hidden, *self.biases, *([self.project] if self.project is not None else []))


@dataclass(frozen=True)
class _Call:
    """One call of a layer or cell. Rows are its layers times directions, in the order of its states."""

    kind: str
    source: fx.Node
    states: tuple[fx.Node, ...]  # the first outputs (rows, ..., outputs), and cells of an LSTM (rows, ..., H)
    rows: tuple[_Weights, ...]
    directions: int
    cell: bool

    @property
    def gates(self) -> int:
        return _GATES[self.kind]


def _call(node: fx.Node) -> _Call:
    given = arguments(node)
    name = operator(node)
    kind = name.removesuffix("_cell")
    states = given["hx"]
    states = tuple(states) if isinstance(states, (list, tuple)) else (states,)
    if name.endswith("_cell"):
        biases = tuple(given[key] for key in ("b_ih", "b_hh") if given[key] is not None)
        rows: tuple[_Weights, ...] = (_Weights(given["w_ih"], given["w_hh"], biases, None),)
        return _Call(kind, given["input"], states, rows, 1, True)
    directions = 2 if given["bidirectional"] else 1
    count = int(given["num_layers"]) * directions
    parameters: Sequence[Any] = given["params"]
    each = len(parameters) // count
    biased = 2 if given["has_biases"] else 0
    found = []
    for row in range(count):
        own = parameters[row * each : (row + 1) * each]
        found.append(
            _Weights(own[0], own[1], tuple(own[2 : 2 + biased]), own[-1] if each > 2 + biased else None)
        )
    source = (
        given["input"] if "input" in given else given["data"]
    )  # the steps of packed sequences, one by one
    return _Call(kind, source, states, tuple(found), directions, False)


class Recurrent:
    """The node's own axis lists all cells, row by row, and behind them all outputs where they are projected."""

    def layout(self, analysis: Analysis, node: fx.Node) -> str | None:
        call = _call(node)
        if any(analysis.parameter(weight) is None for row in call.rows for weight in row.all):
            return "its weights are computed"
        if arguments(node).get("train") and arguments(node).get("dropout"):
            return "it draws what it drops"
        cells = np.stack([self._bind(analysis, call, row) for row in call.rows])
        outputs = np.stack(
            [
                own
                if row.project is None
                else analysis.bind(self._name(analysis, row.project), 0, "producer")
                for row, own in zip(call.rows, cells, strict=True)
            ]
        )
        self._bind_inputs(analysis, node, call, cells, outputs)
        analysis.space.grid(cells)
        if call.rows[0].project is not None:
            analysis.space.grid(outputs)
            analysis.projected.append((cells, outputs))
        for state, ids in zip(call.states, (outputs, cells), strict=False):
            self._bind_state(analysis, node, state, ids, call.cell)
        projected = call.rows[0].project is not None
        flat = np.concatenate([cells.ravel(), outputs.ravel()]) if projected else cells.ravel()
        own_rank = len(analysis.shape(node))
        analysis.layouts[node] = (Axis((max(own_rank - 1, 0),), flat),)
        places = np.arange(flat.size)
        of_cells = places[: cells.size].reshape(cells.shape)
        of_outputs = places[cells.size :].reshape(outputs.shape) if projected else of_cells
        if call.cell:
            analysis.parts[node] = [of_outputs[0], of_cells[0]]
        else:
            last = of_outputs[-call.directions :].ravel()
            analysis.parts[node] = [last, *(own for own in (of_outputs, of_cells)[: len(call.states)])]
        return None

    def part(
        self, analysis: Analysis, node: fx.Node, index: int, shape: tuple[int, ...]
    ) -> tuple[tuple[int, ...], Ids]:
        """The dims of one of the results and, in their shape, the places of its entries in the node's axis."""
        places = analysis.parts[node][index]
        if places.ndim == 1:
            return (len(shape) - 1,), places
        return ((len(shape) - 1,), places[0]) if len(places) == 1 else ((0, len(shape) - 1), places)

    @staticmethod
    def _name(analysis: Analysis, node: fx.Node) -> str:
        name = analysis.parameter(node)
        assert name is not None
        return name

    def _bind(self, analysis: Analysis, call: _Call, row: _Weights) -> Ids:
        """The ids of one row's cells, with which the rows of all its gates go."""
        cells: Ids | None = None
        for weight in (row.inputs, row.hidden, *row.biases):
            rows = analysis.bind(self._name(analysis, weight), 0, "producer").reshape(call.gates, -1)
            cells = rows[0] if cells is None else cells
            analysis.space.union(rows, cells[None])
        assert cells is not None
        return cells

    def _bind_inputs(self, analysis: Analysis, node: fx.Node, call: _Call, cells: Ids, outputs: Ids) -> None:
        axis = analysis.axis(call.source)
        shape = analysis.shape(call.source)
        if axis is not None and axis.dim == len(shape) - 1:
            read = axis.ids
        else:
            analysis.pin(call.source)
            read = analysis.space.fresh(shape[-1])
            analysis.space.pin(read)
        steps = float(np.prod(shape[:-1]))
        for place, row in enumerate(call.rows):
            before = place // call.directions * call.directions
            inputs = read if before == 0 else outputs[before - call.directions : before].ravel()
            pairs = [
                (row.inputs, inputs, cells[place], call.gates),
                (row.hidden, outputs[place], cells[place], call.gates),
            ]
            if row.project is not None:
                pairs.append((row.project, cells[place], outputs[place], 1))
            for weight, columns, written, gates in pairs:
                name = self._name(analysis, weight)
                analysis.space.union(analysis.bind(name, 1, "consumer"), columns)
                known = analysis.products.get(weight)
                scale = steps * gates
                if known is not None:  # called again, as a cell is at every step
                    analysis.products[weight] = replace(known, scale=known.scale + scale)
                    continue
                analysis.products[weight] = Product(
                    name=name.rpartition(".")[0],
                    kind=operator(node),
                    weight=name,
                    bias=None,
                    node=node,
                    node_in=None,
                    outputs=written,
                    inputs=columns,
                    input_size=len(columns),
                    groups=1,
                    scale=scale,
                    padded=False,
                    folds=False,
                    rows=False,
                )

    @staticmethod
    def _bind_state(analysis: Analysis, node: fx.Node, state: fx.Node, ids: Ids, cell: bool) -> None:
        rank = len(analysis.shape(state))
        single = cell or len(ids) == 1
        dims = (rank - 1,) if single else (0, rank - 1)
        own = ids[0] if single else ids
        analysis.adopt(state, dims, own)
        axis = analysis.axis(state)
        if axis is not None and axis.dims == dims and axis.ids.shape == own.shape:
            analysis.space.union(axis.ids, own)
        elif axis is not None and axis.dims == (rank - 1,) and axis.ids.shape == ids.shape[-1:]:
            analysis.space.union(ids, axis.ids[None])
        else:
            analysis.pin(state)
            analysis.stop(node, ids, "its first state is not followed")

    # -- constants ---------------------------------------------------------------------------------

    def constant(self, analysis: Analysis, node: fx.Node) -> Flags:
        """The cells and outputs that are 0 at every step."""
        call = _call(node)
        source_axis = analysis.axis(call.source)
        followed = source_axis is not None and source_axis.dim == len(analysis.shape(call.source)) - 1
        width = analysis.shape(call.source)[-1]
        inputs = analysis.zero(call.source) if followed else np.zeros(width, dtype=bool)
        cells: list[Flags] = []
        outputs: list[Flags] = []
        first = [self._zero_state(analysis, call, index) for index in range(len(call.states))]
        for place, row in enumerate(call.rows):
            before = place // call.directions * call.directions
            if before:
                inputs = np.concatenate(outputs[before - call.directions : before])
            own, written = self._zero_row(analysis, call, row, inputs, first[0][place], first[-1][place])
            cells.append(own)
            outputs.append(written)
        projected = outputs if call.rows[0].project is not None else []
        return np.concatenate([*cells, *projected])

    def _zero_row(
        self, analysis: Analysis, call: _Call, row: _Weights, inputs: Flags, first: Flags, first_cells: Flags
    ) -> tuple[Flags, Flags]:
        """Cells and outputs of one layer and direction that are 0 at every step, assumed so until something is not."""
        gate = _MADE_OF[call.kind]
        from_inputs = self._nonzero(analysis, row.inputs).reshape(call.gates, -1, len(inputs))[gate]
        from_hidden = self._nonzero(analysis, row.hidden)
        from_hidden = from_hidden.reshape(call.gates, -1, from_hidden.shape[1])[gate]
        possible = ~(from_inputs & ~inputs).any(1) & first_cells
        if row.biases:
            biases = [analysis.tensor(bias).detach().reshape(call.gates, -1)[gate] for bias in row.biases]
            # A GRU scales the second one by a gate before it adds them.
            sums = biases if call.kind == "gru" else [biases[0] + biases[1]]
            for value in sums:
                possible &= (value == 0).cpu().numpy()
        cells: Flags = possible
        while True:
            outputs: Flags = cells
            if row.project is not None:
                outputs = np.asarray(~(self._nonzero(analysis, row.project) & ~cells).any(1))
            left: Flags = possible & ~(from_hidden & ~(outputs & first)).any(1)
            if (left == cells).all():
                return cells, outputs
            cells = left & cells

    @staticmethod
    def _nonzero(analysis: Analysis, weight: fx.Node) -> NDArray[np.bool_]:
        flags: NDArray[np.bool_] = (analysis.tensor(weight).detach() != 0).cpu().numpy()
        return flags

    @staticmethod
    def _zero_state(analysis: Analysis, call: _Call, index: int) -> Flags:
        """Which entries of a first state are 0, (rows, width)."""
        state = call.states[index]
        shape = (len(call.rows), analysis.shape(state)[-1])
        axis = analysis.axis(state)
        if axis is None or axis.ids.shape not in (shape, shape[1:]):
            return np.zeros(shape, dtype=bool)
        return np.broadcast_to(analysis.zero(state), shape)

    # -- uses --------------------------------------------------------------------------------------

    def used(self, analysis: Analysis, node: fx.Node, used: Flags) -> None:
        call = _call(node)
        rows, projected = len(call.rows), call.rows[0].project is not None
        zero = analysis.constant(node)
        if projected:
            width = analysis.shape(call.rows[0].project)[1]  # type: ignore[arg-type]
            cells = used[: rows * width].reshape(rows, width).copy()
            outputs = used[rows * width :].reshape(rows, -1).copy()
            zero = zero[: rows * width]
        else:
            cells = used.reshape(rows, -1).copy()
            outputs = cells
        zero = zero.reshape(rows, -1)
        read = np.zeros(analysis.shape(call.source)[-1], dtype=bool)
        recurrent = np.zeros_like(outputs)
        for place in reversed(range(rows)):
            row = call.rows[place]
            hidden = self._nonzero(analysis, row.hidden)
            from_hidden = hidden.reshape(call.gates, -1, hidden.shape[1]).any(0)
            project = None if row.project is None else self._nonzero(analysis, row.project)
            while True:
                before = int(cells[place].sum()) + int(outputs[place].sum())
                if project is not None:
                    cells[place] |= (project & outputs[place][:, None]).any(0)
                live = cells[place] & ~zero[place]
                recurrent[place] = (from_hidden & live[:, None]).any(0)
                outputs[place] |= recurrent[place]
                if int(cells[place].sum()) + int(outputs[place].sum()) == before:
                    break
            inputs = self._nonzero(analysis, row.inputs)
            needed = (inputs.reshape(call.gates, -1, inputs.shape[1]).any(0) & live[:, None]).any(0)
            first = place // call.directions * call.directions
            if first:
                outputs[first - call.directions : first] |= needed.reshape(call.directions, -1)
            else:
                read |= needed
        analysis.use(node, np.concatenate([cells.ravel(), outputs.ravel()]) if projected else cells.ravel())
        if (axis := analysis.axis(call.source)) is not None:
            followed = axis.dim == len(analysis.shape(call.source)) - 1
            analysis.use_exactly(call.source, read if followed else np.ones(axis.ids.shape, dtype=bool))
        # A GRU and a plain layer carry the first state on, an LSTM its cells.
        needs = [recurrent, cells] if call.kind == "lstm" else [recurrent | cells]
        for state, flags in zip(call.states, needs, strict=True):
            axis = analysis.axis(state)
            if axis is not None and axis.ids.shape == flags.shape:
                analysis.use_exactly(state, flags)
            elif axis is not None and axis.ids.shape == flags.shape[1:]:
                analysis.use_exactly(state, np.asarray(flags.any(0)))
            else:
                analysis.use_all(state)


RULES: dict[str, Rule] = dict.fromkeys([*_GATES, *(f"{kind}_cell" for kind in _GATES)], Recurrent())
