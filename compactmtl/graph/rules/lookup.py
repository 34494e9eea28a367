"""Rows of a table by their numbers: its columns are channels."""

from __future__ import annotations

import numpy as np
from torch import fx

from compactmtl.graph.calls import arguments
from compactmtl.graph.effect import Effect, Pin, Use, Uses
from compactmtl.graph.rule import Rule
from compactmtl.graph.space import Axis, Flags
from compactmtl.graph.view import View


class Embedding:
    """embedding: a column with one value in all rows is constant."""

    def layout(self, view: View, node: fx.Node) -> Effect | str:
        table = arguments(node)["weight"]
        if not view.is_static(table):
            return "its table depends on the input"
        columns = next((axis for axis in view.layout(table) if axis.dims == (1,)), None)
        if columns is None:
            return "its table's columns are not followed"
        return Effect(
            (Axis((len(view.shape(node)) - 1,), columns.ids),),
            pins=tuple(
                Pin(axis.ids, "its rows are numbered") for axis in view.layout(table) if axis is not columns
            ),
            roles=tuple((key, "producer") for key in view.keys_in(table, columns.ids)),
        )

    def constant(self, view: View, node: fx.Node) -> Flags:
        table, axis = arguments(node)["weight"], view.axis(node)
        assert axis is not None
        columns = view.uniform(table, Axis((1,), axis.ids))[0]
        return np.asarray(columns)

    def used(self, view: View, node: fx.Node, used: Flags) -> Uses:
        return [Use(arguments(node)["indices"])]


RULES: dict[str, Rule] = {"embedding": Embedding()}
