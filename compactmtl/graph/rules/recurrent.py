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

from compactmtl.graph.calls import arguments, operator
from compactmtl.graph.effect import ALL, Effect, Pin, Product, Use, Uses
from compactmtl.graph.rule import Rule
from compactmtl.graph.space import Axis, Flags, Grid, Ids
from compactmtl.graph.view import View

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
    weights = []
    for row in range(count):
        own = parameters[row * each : (row + 1) * each]
        weights.append(
            _Weights(own[0], own[1], tuple(own[2 : 2 + biased]), own[-1] if each > 2 + biased else None)
        )
    source = (
        given["input"] if "input" in given else given["data"]
    )  # the steps of packed sequences, one by one
    return _Call(kind, source, states, tuple(weights), directions, False)


class Recurrent:
    """The node's own axis lists all cells, row by row, and behind them all outputs where they are projected."""

    def layout(self, view: View, node: fx.Node) -> Effect | str:
        call = _call(node)
        if any(view.parameter(weight) is None for row in call.rows for weight in row.all):
            return "its weights are computed"
        if arguments(node).get("train") and arguments(node).get("dropout"):
            return "it draws what it drops"
        projected = call.rows[0].project is not None
        cells = np.stack([self._cells(view, call, row) for row in call.rows])
        outputs = np.stack(
            [
                own if row.project is None else view.bound(self._name(view, row.project), 0)
                for row, own in zip(call.rows, cells, strict=True)
            ]
        )
        effect = self._weights(view, call, cells) + self._matrices(view, node, call, cells, outputs)
        effect += Effect(grids=(Grid(cells), *([Grid(outputs)] if projected else [])))
        if projected:
            effect += Effect(projected=((cells, outputs),))
        for state, ids in zip(call.states, (outputs, cells), strict=False):
            effect += self._state(view, state, ids, call.cell)
        flat = np.concatenate([cells.ravel(), outputs.ravel()]) if projected else cells.ravel()
        places = np.arange(flat.size)
        of_cells = places[: cells.size].reshape(cells.shape)
        of_outputs = places[cells.size :].reshape(outputs.shape) if projected else of_cells
        if call.cell:
            parts: list[Ids] = [of_outputs[0], of_cells[0]]
        else:
            parts = [of_outputs[-call.directions :].ravel(), *(of_outputs, of_cells)[: len(call.states)]]
        rank = len(view.shape(node))
        return effect + Effect((Axis((max(rank - 1, 0),), flat),), parts=tuple(parts))

    @staticmethod
    def _name(view: View, node: fx.Node) -> str:
        name = view.parameter(node)
        assert name is not None
        return name

    def _cells(self, view: View, call: _Call, row: _Weights) -> Ids:
        """The ids of one row's cells: of its first gate's rows."""
        rows: Ids = view.bound(self._name(view, row.inputs), 0).reshape(call.gates, -1)[0]
        return rows

    def _weights(self, view: View, call: _Call, cells: Ids) -> Effect:
        """The rows of all gates go with the cells, of each row of layers and directions."""
        effect = Effect()
        for row, own in zip(call.rows, cells, strict=True):
            for weight in (row.inputs, row.hidden, *row.biases):
                name = self._name(view, weight)
                gates = view.bound(name, 0).reshape(call.gates, -1)
                effect += Effect(unions=((gates, own[None]),), roles=(((name, 0), "producer"),))
            if row.project is not None:
                effect += Effect(roles=(((self._name(view, row.project), 0), "producer"),))
        return effect

    def _matrices(self, view: View, node: fx.Node, call: _Call, cells: Ids, outputs: Ids) -> Effect:
        """What each matrix reads and writes, and what it costs."""
        axis = view.axis(call.source)
        shape = view.shape(call.source)
        effect = Effect()
        if axis is not None and axis.dim == len(shape) - 1:
            read = axis.ids
        else:
            read = view.fresh(shape[-1])
            effect = Effect(pins=(*view.pins(call.source), Pin(read)))
        steps = float(np.prod(shape[:-1]))
        products: dict[fx.Node, Product] = {}
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
                name = self._name(view, weight)
                effect += Effect(unions=((view.bound(name, 1), columns),), roles=(((name, 1), "consumer"),))
                known = products.get(weight) or view.product(weight)
                scale = steps * gates
                if known is not None:  # called again, as a cell is at every step
                    products[weight] = replace(known, scale=known.scale + scale)
                    continue
                products[weight] = Product(
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
        return effect + Effect(products=tuple(products.items()))

    @staticmethod
    def _state(view: View, state: fx.Node, ids: Ids, cell: bool) -> Effect:
        """The first state goes with the channels `ids`, (rows, width)."""
        rank = len(view.shape(state))
        single = cell or len(ids) == 1
        dims = (rank - 1,) if single else (0, rank - 1)
        own = ids[0] if single else ids
        if view.adoptable(state, dims, own):
            return Effect(adopted=((state, Axis(dims, own)),))
        axis = view.axis(state)
        if axis is not None and axis.dims == dims and axis.ids.shape == own.shape:
            return Effect(unions=((axis.ids, own),))
        if axis is not None and axis.dims == (rank - 1,) and axis.ids.shape == ids.shape[-1:]:
            return Effect(unions=((ids, axis.ids[None]),))
        reason = "its first state is not followed"
        return Effect(pins=(*view.pins(state, reason), Pin(ids, reason)))

    # -- constants ---------------------------------------------------------------------------------

    def constant(self, view: View, node: fx.Node) -> Flags:
        """The cells and outputs that are 0 at every step."""
        call = _call(node)
        source_axis = view.axis(call.source)
        followed = source_axis is not None and source_axis.dim == len(view.shape(call.source)) - 1
        width = view.shape(call.source)[-1]
        inputs = view.zero(call.source) if followed else np.zeros(width, dtype=bool)
        cells: list[Flags] = []
        outputs: list[Flags] = []
        first = [self._zero_state(view, call, index) for index in range(len(call.states))]
        for place, row in enumerate(call.rows):
            before = place // call.directions * call.directions
            if before:
                inputs = np.concatenate(outputs[before - call.directions : before])
            own, written = self._zero_row(view, call, row, inputs, first[0][place], first[-1][place])
            cells.append(own)
            outputs.append(written)
        projected = outputs if call.rows[0].project is not None else []
        return np.concatenate([*cells, *projected])

    def _zero_row(
        self, view: View, call: _Call, row: _Weights, inputs: Flags, first: Flags, first_cells: Flags
    ) -> tuple[Flags, Flags]:
        """Cells and outputs of one layer and direction that are 0 at every step, assumed so until something is not."""
        gate = _MADE_OF[call.kind]
        from_inputs = self._nonzero(view, row.inputs).reshape(call.gates, -1, len(inputs))[gate]
        from_hidden = self._nonzero(view, row.hidden)
        from_hidden = from_hidden.reshape(call.gates, -1, from_hidden.shape[1])[gate]
        possible = ~(from_inputs & ~inputs).any(1) & first_cells
        if row.biases:
            biases = [view.tensor(bias).detach().reshape(call.gates, -1)[gate] for bias in row.biases]
            # A GRU scales the second one by a gate before it adds them.
            sums = biases if call.kind == "gru" else [biases[0] + biases[1]]
            for value in sums:
                possible &= (value == 0).cpu().numpy()
        cells: Flags = possible
        while True:
            outputs: Flags = cells
            if row.project is not None:
                outputs = np.asarray(~(self._nonzero(view, row.project) & ~cells).any(1))
            still: Flags = possible & ~(from_hidden & ~(outputs & first)).any(1)
            if (still == cells).all():
                return cells, outputs
            cells = still & cells

    @staticmethod
    def _nonzero(view: View, weight: fx.Node) -> NDArray[np.bool_]:
        flags: NDArray[np.bool_] = (view.tensor(weight).detach() != 0).cpu().numpy()
        return flags

    @staticmethod
    def _zero_state(view: View, call: _Call, index: int) -> Flags:
        """Which entries of a first state are 0, (rows, width)."""
        state = call.states[index]
        shape = (len(call.rows), view.shape(state)[-1])
        axis = view.axis(state)
        if axis is None or axis.ids.shape not in (shape, shape[1:]):
            return np.zeros(shape, dtype=bool)
        return np.broadcast_to(view.zero(state), shape)

    # -- uses --------------------------------------------------------------------------------------

    def used(self, view: View, node: fx.Node, used: Flags) -> Uses:
        call = _call(node)
        rows, projected = len(call.rows), call.rows[0].project is not None
        zero = view.constant(node)
        if projected:
            width = view.shape(call.rows[0].project)[1]  # type: ignore[arg-type]
            cells = used[: rows * width].reshape(rows, width).copy()
            outputs = used[rows * width :].reshape(rows, -1).copy()
            zero = zero[: rows * width]
        else:
            cells = used.reshape(rows, -1).copy()
            outputs = cells
        zero = zero.reshape(rows, -1)
        read = np.zeros(view.shape(call.source)[-1], dtype=bool)
        recurrent = np.zeros_like(outputs)
        for place in reversed(range(rows)):
            row = call.rows[place]
            hidden = self._nonzero(view, row.hidden)
            from_hidden = hidden.reshape(call.gates, -1, hidden.shape[1]).any(0)
            project = None if row.project is None else self._nonzero(view, row.project)
            while True:
                before = int(cells[place].sum()) + int(outputs[place].sum())
                if project is not None:
                    cells[place] |= (project & outputs[place][:, None]).any(0)
                live = cells[place] & ~zero[place]
                recurrent[place] = (from_hidden & live[:, None]).any(0)
                outputs[place] |= recurrent[place]
                if int(cells[place].sum()) + int(outputs[place].sum()) == before:
                    break
            inputs = self._nonzero(view, row.inputs)
            needed = (inputs.reshape(call.gates, -1, inputs.shape[1]).any(0) & live[:, None]).any(0)
            first = place // call.directions * call.directions
            if first:
                outputs[first - call.directions : first] |= needed.reshape(call.directions, -1)
            else:
                read |= needed
        yield Use(node, np.concatenate([cells.ravel(), outputs.ravel()]) if projected else cells.ravel())
        axis = view.axis(call.source)
        followed = axis is not None and axis.dim == len(view.shape(call.source)) - 1
        yield Use(call.source, read if followed else ALL, exact=True)
        # A GRU and a plain layer carry the first state on, an LSTM its cells.
        needs = [recurrent, cells] if call.kind == "lstm" else [recurrent | cells]
        for state, flags in zip(call.states, needs, strict=True):
            axis = view.axis(state)
            if axis is not None and axis.ids.shape == flags.shape:
                yield Use(state, flags, exact=True)
            elif axis is not None and axis.ids.shape == flags.shape[1:]:
                yield Use(state, np.asarray(flags.any(0)), exact=True)
            else:
                yield Use(state)


RULES: dict[str, Rule] = dict.fromkeys([*_GATES, *(f"{kind}_cell" for kind in _GATES)], Recurrent())
