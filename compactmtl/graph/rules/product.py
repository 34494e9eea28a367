"""Convolution and linear layers: where channels are produced and consumed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from compactmtl.graph.analysis import Analysis, Product, Rule
from compactmtl.graph.calls import arguments, operator
from compactmtl.graph.groups import Role
from compactmtl.graph.space import Axis, Flags, Ids
from compactmtl.graph.wide import stack_of


def _nonzero(weight: Tensor) -> NDArray[np.bool_]:
    """Which (output, input) pairs a weight (out, in, ...) connects."""
    connected = (weight.detach() != 0).flatten(2).any(2) if weight.ndim > 2 else weight.detach() != 0
    flags: NDArray[np.bool_] = connected.cpu().numpy()
    return flags


def _weight_ids(analysis: Analysis, node: fx.Node, dim: int, role: Role) -> Ids | None:
    """The ids of a weight's dimension; None where the weight is computed and they cannot be followed."""
    name = analysis.parameter(node)
    if name is not None:
        return analysis.bind(name, dim, role)
    for axis in analysis.layouts.get(node, ()):
        if axis.dim == dim:
            for binding in analysis.bindings.values():
                if binding.ids is axis.ids:
                    binding.roles.add(role)
            return axis.ids
    return None


def _first_parameter(analysis: Analysis, node: fx.Node) -> str:
    """The parameter that a computed weight is mainly made of."""
    pending = [node]
    while pending:
        current = pending.pop(0)
        name = analysis.parameter(current)
        if name is not None:
            return name
        pending.extend(filter(analysis.is_static, current.all_input_nodes))
    return ".".join([*list(stack_of(node).values())[-1:], str(node)]).lstrip(".")  # a forward makes it


def _pinned(analysis: Analysis, size: int) -> Ids:
    """Ids of channels that have to stay."""
    ids = analysis.space.fresh(size)
    analysis.space.pin(ids)
    return ids


def _tracked_input(analysis: Analysis, source: fx.Node, dim: int, size: int) -> tuple[Ids, bool]:
    """The ids that a layer reads, and whether they are followed (else all of them stay)."""
    axis = analysis.axis(source)
    if axis is not None and axis.dim == dim:
        return axis.ids, True
    analysis.pin(source)
    read = analysis.space.fresh(size)
    analysis.space.pin(read)
    return read, False


@dataclass(frozen=True)
class Operands:
    """What a layer reads and where its channels lie: dimensions of the input, the output and the weight."""

    source: fx.Node
    weight: fx.Node
    bias: fx.Node | None
    in_channel: int
    out_channel: int
    out_dim: int = 0
    in_dim: int = 1


class Layer(ABC):
    """What convolution and linear layers share: how they bind, and how constants and uses pass them."""

    transposed = False

    def operands(self, analysis: Analysis, node: fx.Node) -> Operands:
        given = arguments(node)
        dims = (1, 0) if self.transposed else (0, 1)
        return Operands(given["input"], given["weight"], given["bias"], 1, 1, *dims)

    def bind(
        self, analysis: Analysis, node: fx.Node, groups: int, scale: float, padded: bool, kind: str
    ) -> str | None:
        own = self.operands(analysis, node)
        if not analysis.is_static(own.weight):
            return "its weight depends on the input"
        weight = analysis.tensor(own.weight)
        if weight.ndim < 2:
            return "its weight is one vector, which adds all channels up"
        if own.bias is not None and not analysis.is_static(own.bias):
            return "its bias depends on the input"
        outputs = int(weight.shape[own.out_dim]) * (groups if self.transposed else 1)
        inputs = int(weight.shape[own.in_dim]) * (1 if self.transposed else groups)
        read, tracked = _tracked_input(analysis, own.source, own.in_channel, inputs)
        depthwise = groups > 1 and inputs == groups
        if groups == 1:
            written = _weight_ids(analysis, own.weight, own.out_dim, "producer")
            written = _pinned(analysis, outputs) if written is None else written
            consumed = _weight_ids(analysis, own.weight, own.in_dim, "consumer")
            if consumed is None:
                analysis.space.pin(read)
            else:
                analysis.space.union(consumed, read)
        elif depthwise:
            written = self._depthwise(analysis, node, own, outputs)
            analysis.space.union(written.reshape(groups, -1), read[:, None])
        else:
            written = self._group(analysis, own, read, outputs, groups)
        self._bind_bias(analysis, own.bias, written)
        name = _first_parameter(analysis, own.weight)
        analysis.products[node] = Product(
            name=name.rpartition(".")[0],
            kind="depthwise" if depthwise else kind,
            weight=analysis.parameter(own.weight),
            bias=None if own.bias is None else analysis.parameter(own.bias),
            node=node,
            node_in=own.source if tracked else None,
            outputs=written,
            inputs=None if depthwise else read,
            input_size=inputs,
            groups=groups,
            scale=scale / (1 if depthwise else groups),
            padded=padded,
            folds=self._folds(analysis, own.weight, groups, depthwise, padded),
            rows=own.out_dim == 0,
        )
        if groups > 1:
            analysis.sized[node] = written  # a functional call counts its groups with a number
        analysis.layouts[node] = (Axis((own.out_channel,), written),)
        return None

    def _folds(
        self, analysis: Analysis, weight_node: fx.Node, groups: int, depthwise: bool, padded: bool
    ) -> bool:
        if depthwise:
            return True  # its own channel becomes a constant or stays live: nothing is left to fold
        carried = not padded or groups == 1
        return carried and not self.transposed and analysis.parameter(weight_node) is not None

    def _depthwise(self, analysis: Analysis, node: fx.Node, own: Operands, outputs: int) -> Ids:
        """The ids of its outputs: of a transposed one the weight has one filter, maybe of several outputs, an input."""
        filters = _weight_ids(analysis, own.weight, 0, "producer")
        if filters is not None:
            return np.repeat(filters, outputs // len(filters))
        weight = analysis.tensor(own.weight)
        if bool((weight == weight[:1]).all()):
            # One filter, repeated for as many channels as there are: it follows them.
            written = analysis.space.fresh(outputs)
            for source in analysis.static_sources(own.weight) - set(analysis.traced.tensors):
                analysis.sized[source] = written
            return written
        return _pinned(analysis, outputs)

    def _group(self, analysis: Analysis, own: Operands, read: Ids, outputs: int, groups: int) -> Ids:
        """Grouped: every group keeps as many inputs as the others, and as many outputs, or goes whole."""
        name = analysis.parameter(own.weight)
        if name is None:
            analysis.space.pin(read)
            analysis.kept_whole[_first_parameter(analysis, own.weight)] = f"grouped with {groups} groups"
            return _pinned(analysis, outputs)
        if self.transposed:
            consumed = analysis.bind(name, own.in_dim, "consumer")
            written = analysis.bind_grouped(name, groups, "producer")
        else:
            consumed = analysis.bind_grouped(name, groups)
            written = analysis.bind(name, own.out_dim, "producer")
        analysis.space.union(consumed, read)
        analysis.space.grid(read.reshape(groups, -1))
        analysis.space.grid(written.reshape(groups, -1))
        analysis.space.slab(read.reshape(groups, -1), written.reshape(groups, -1))
        return written

    @staticmethod
    def _bind_bias(analysis: Analysis, bias_node: fx.Node | None, written: Ids) -> None:
        if bias_node is None:
            return
        ids = _weight_ids(analysis, bias_node, 0, "producer")
        if ids is None:
            analysis.space.pin(written)
        else:
            analysis.space.union(ids, written)

    def connections(self, analysis: Analysis, node: fx.Node, groups: int) -> NDArray[np.bool_]:
        """(outputs, inputs of its group) pairs with a weight other than 0."""
        own = self.operands(analysis, node)
        weight = analysis.tensor(own.weight)
        if not self.transposed:
            return _nonzero(weight.movedim((own.out_dim, own.in_dim), (0, 1)))
        nonzero = _nonzero(weight)
        per_group = nonzero.reshape(groups, -1, nonzero.shape[1]).transpose(0, 2, 1)
        return per_group.reshape(-1, per_group.shape[2])

    @abstractmethod
    def known_inputs(self, analysis: Analysis, node: fx.Node) -> Flags:
        """Inputs whose effect on every output position is the same constant."""

    def groups(self, node: fx.Node) -> int:
        return int(arguments(node).get("groups", 1))

    def constant(self, analysis: Analysis, node: fx.Node) -> Flags:
        groups = self.groups(node)
        nonzero = self.connections(analysis, node, groups)
        source = self.operands(analysis, node).source
        if self._follows(analysis, node, source):
            live = ~self.known_inputs(analysis, node).reshape(groups, -1)
            nonzero = nonzero & np.repeat(live, nonzero.shape[0] // groups, axis=0)
        return np.asarray(nonzero.sum(1) == 0, dtype=bool)

    def used(self, analysis: Analysis, node: fx.Node, used: Flags) -> None:
        source = self.operands(analysis, node).source
        if not self._follows(analysis, node, source):
            analysis.use_all(source)
            return
        groups = self.groups(node)
        reads = self.connections(analysis, node, groups) & used[:, None]
        flags: Flags = reads.reshape(groups, -1, reads.shape[1]).any(1).ravel()
        analysis.use(source, flags)
        if not analysis.products[node].folds:
            analysis.use_exactly(source, flags)

    @staticmethod
    def _follows(analysis: Analysis, node: fx.Node, source: fx.Node) -> bool:
        return analysis.products[node].node_in is source


class Convolution(Layer):
    """1-D to 3-D convolution: plain, grouped or depthwise."""

    def layout(self, analysis: Analysis, node: fx.Node) -> str | None:
        given = arguments(node)
        shape = analysis.shape(node)
        kernel = analysis.shape(given["weight"])[2:]
        scale = float(shape[0] * np.prod(shape[2:]) * np.prod(kernel))
        return self.bind(
            analysis, node, self.groups(node), scale, _is_padded(given["padding"], kernel), operator(node)
        )

    def known_inputs(self, analysis: Analysis, node: fx.Node) -> Flags:
        given = arguments(node)
        padded = _is_padded(given["padding"], analysis.shape(given["weight"])[2:])
        return analysis.zero(given["input"]) if padded else analysis.constant(given["input"])


class TransposedConvolution(Layer):
    """Transposed convolution: overlaps differ from pixel to pixel, so only zeros pass."""

    transposed = True

    def layout(self, analysis: Analysis, node: fx.Node) -> str | None:
        given = arguments(node)
        shape = analysis.shape(given["input"])
        kernel = analysis.shape(given["weight"])[2:]
        scale = float(shape[0] * np.prod(shape[2:]) * np.prod(kernel))
        return self.bind(analysis, node, self.groups(node), scale, True, operator(node))

    def known_inputs(self, analysis: Analysis, node: fx.Node) -> Flags:
        return analysis.zero(arguments(node)["input"])


class Linear(Layer):
    """A matrix product over the last dimension."""

    def layout(self, analysis: Analysis, node: fx.Node) -> str | None:
        shape = analysis.shape(arguments(node)["input"])
        return self.bind(analysis, node, 1, float(np.prod(shape[:-1])), False, "linear")

    def operands(self, analysis: Analysis, node: fx.Node) -> Operands:
        given = arguments(node)
        last = len(analysis.shape(given["input"])) - 1
        return Operands(given["input"], given["weight"], given["bias"], last, last)

    def known_inputs(self, analysis: Analysis, node: fx.Node) -> Flags:
        return analysis.constant(arguments(node)["input"])


def _is_padded(padding: Any, kernel: tuple[int, ...] | torch.Size) -> bool:
    if isinstance(padding, str):
        return padding != "valid" and any(size > 1 for size in kernel)
    sizes = padding if isinstance(padding, (list, tuple)) else [padding]
    return any(int(size) > 0 for size in sizes)


_convolution, _transposed = Convolution(), TransposedConvolution()
RULES: dict[str, Rule] = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _convolution),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _transposed),
    "linear": Linear(),
}
