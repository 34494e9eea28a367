"""Convolution and linear layers: where channels are produced and consumed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from compactmtl.graph.analysis import Analysis, Product, Rule, arguments, operator
from compactmtl.graph.groups import Role
from compactmtl.graph.space import Axis, Flags, Ids


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
        pending.extend(current.all_input_nodes)
    return str(node)


def _tracked_input(analysis: Analysis, source: fx.Node, dim: int, size: int) -> tuple[Ids, bool]:
    """The ids that a layer reads, and whether they are followed (else all of them stay)."""
    axis = analysis.axis(source)
    if axis is not None and axis.dim == dim:
        return axis.ids, True
    analysis.pin(source)
    read = analysis.space.fresh(size)
    analysis.space.pin(read)
    return read, False


class _Layer(ABC):
    """What convolution and linear layers share: how they bind, and how constants and uses pass them."""

    transposed = False

    def bind(
        self,
        analysis: Analysis,
        node: fx.Node,
        groups: int,
        channel_dim: int,
        scale: float,
        padded: bool,
        kind: str,
    ) -> str | None:
        given = arguments(node)
        source, weight_node, bias_node = given["input"], given["weight"], given["bias"]
        if not analysis.is_static(weight_node):
            return "its weight depends on the input"
        weight = analysis.tensor(weight_node)
        if weight.ndim < 2:
            return "its weight is one vector, which adds all channels up"
        if bias_node is not None and not analysis.is_static(bias_node):
            return "its bias depends on the input"
        out_dim, in_dim = (1, 0) if self.transposed else (0, 1)
        outputs = int(weight.shape[out_dim]) * (groups if self.transposed else 1)
        inputs = int(weight.shape[in_dim]) * (1 if self.transposed else groups)
        read, tracked = _tracked_input(analysis, source, channel_dim, inputs)
        depthwise = groups > 1 and inputs == groups
        written = None
        if groups == 1 or not self.transposed:
            written = _weight_ids(analysis, weight_node, out_dim, "producer")
        if written is None:
            written = analysis.space.fresh(outputs)
            analysis.space.pin(written)
        if groups == 1:
            consumed = _weight_ids(analysis, weight_node, in_dim, "consumer")
            if consumed is None:
                analysis.space.pin(read)
            else:
                analysis.space.union(consumed, read)
        elif depthwise and not self.transposed:
            analysis.space.union(written.reshape(groups, -1), read[:, None])
        else:
            self._group(analysis, weight_node, read, written, groups)
        self._bind_bias(analysis, bias_node, written)
        name = _first_parameter(analysis, weight_node)
        analysis.products[node] = Product(
            name=name.rpartition(".")[0],
            kind="depthwise" if depthwise else kind,
            weight=analysis.parameter(weight_node),
            bias=analysis.parameter(bias_node),
            node=node,
            node_in=source if tracked else None,
            outputs=written,
            inputs=None if depthwise else read,
            input_size=inputs,
            groups=groups,
            scale=scale / (1 if depthwise else groups),
            padded=padded,
            folds=self._folds(analysis, weight_node, groups, depthwise, padded),
        )
        analysis.layouts[node] = (Axis((channel_dim,), written),)
        return None

    def _folds(
        self, analysis: Analysis, weight_node: fx.Node, groups: int, depthwise: bool, padded: bool
    ) -> bool:
        if depthwise:
            return True  # its own channel becomes a constant or stays live: nothing is left to fold
        carried = not padded or groups == 1
        return carried and not self.transposed and analysis.parameter(weight_node) is not None

    def _group(self, analysis: Analysis, weight_node: fx.Node, read: Ids, written: Ids, groups: int) -> None:
        """Grouped: every group keeps as many inputs as the others, and as many outputs, or goes whole."""
        name = analysis.parameter(weight_node)
        if self.transposed or name is None:
            analysis.space.pin(read)
            analysis.space.pin(written)
            analysis.kept_whole[_first_parameter(analysis, weight_node)] = f"grouped with {groups} groups"
            return
        consumed = analysis.bind_grouped(name, groups)
        analysis.space.union(consumed, read)
        analysis.space.grid(read.reshape(groups, -1))
        analysis.space.grid(written.reshape(groups, -1))
        analysis.space.slab(read.reshape(groups, -1), written.reshape(groups, -1))

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
        nonzero = _nonzero(analysis.tensor(arguments(node)["weight"]))
        if not self.transposed:
            return nonzero
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
        source = arguments(node)["input"]
        if self._follows(analysis, node, source):
            live = ~self.known_inputs(analysis, node).reshape(groups, -1)
            nonzero = nonzero & np.repeat(live, nonzero.shape[0] // groups, axis=0)
        return np.asarray(nonzero.sum(1) == 0, dtype=bool)

    def used(self, analysis: Analysis, node: fx.Node, used: Flags) -> None:
        source = arguments(node)["input"]
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


class Convolution(_Layer):
    """1-D to 3-D convolution: plain, grouped or depthwise."""

    def layout(self, analysis: Analysis, node: fx.Node) -> str | None:
        given = arguments(node)
        shape = analysis.shape(node)
        kernel = analysis.shape(given["weight"])[2:]
        scale = float(shape[0] * np.prod(shape[2:]) * np.prod(kernel))
        return self.bind(
            analysis, node, self.groups(node), 1, scale, _is_padded(given["padding"], kernel), operator(node)
        )

    def known_inputs(self, analysis: Analysis, node: fx.Node) -> Flags:
        given = arguments(node)
        padded = _is_padded(given["padding"], analysis.shape(given["weight"])[2:])
        return analysis.zero(given["input"]) if padded else analysis.constant(given["input"])


class TransposedConvolution(_Layer):
    """Transposed convolution: overlaps differ from pixel to pixel, so only zeros pass."""

    transposed = True

    def layout(self, analysis: Analysis, node: fx.Node) -> str | None:
        given = arguments(node)
        shape = analysis.shape(given["input"])
        kernel = analysis.shape(given["weight"])[2:]
        scale = float(shape[0] * np.prod(shape[2:]) * np.prod(kernel))
        return self.bind(analysis, node, self.groups(node), 1, scale, True, operator(node))

    def known_inputs(self, analysis: Analysis, node: fx.Node) -> Flags:
        return analysis.zero(arguments(node)["input"])


class Linear(_Layer):
    """A matrix product over the last dimension."""

    def layout(self, analysis: Analysis, node: fx.Node) -> str | None:
        shape = analysis.shape(arguments(node)["input"])
        return self.bind(analysis, node, 1, len(shape) - 1, float(np.prod(shape[:-1])), False, "linear")

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
