"""Convolution and linear layers: where channels are produced and consumed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from compactmtl.graph.calls import arguments, operator, owner
from compactmtl.graph.effect import Effect, Pin, Product, Use, Uses
from compactmtl.graph.groups import Role
from compactmtl.graph.rule import Rule
from compactmtl.graph.space import Axis, Flags, Grid, Ids
from compactmtl.graph.view import View


def _nonzero(weight: Tensor) -> NDArray[np.bool_]:
    """Which (output, input) pairs a weight (out, in, ...) connects."""
    connected = (weight.detach() != 0).flatten(2).any(2) if weight.ndim > 2 else weight.detach() != 0
    flags: NDArray[np.bool_] = connected.cpu().numpy()
    return flags


Said = tuple[Ids, Effect]  # ids, and what has to be said of them


def _weight_ids(view: View, node: fx.Node, dim: int, role: Role) -> Said | None:
    """The ids of a weight's dimension; None where the weight is computed and they cannot be followed."""
    name = view.parameter(node)
    if name is not None:
        return view.bound(name, dim), Effect(roles=(((name, dim), role),))
    for axis in view.layout(node):
        if axis.dim == dim:
            return axis.ids, Effect(roles=tuple((key, role) for key in view.keys_of(axis.ids)))
    return None


def _first_parameter(view: View, node: fx.Node) -> str:
    """The parameter that a computed weight is mainly made of."""
    pending = [node]
    while pending:
        current = pending.pop(0)
        name = view.parameter(current)
        if name is not None:
            return name
        pending.extend(filter(view.is_static, current.all_input_nodes))
    return ".".join((owner(node), str(node))).lstrip(".")  # a forward makes it


def _pinned(view: View, size: int) -> Said:
    """Ids of channels that have to stay."""
    ids = view.fresh(size)
    return ids, Effect(pins=(Pin(ids),))


def _tracked_input(view: View, source: fx.Node, dim: int, size: int) -> tuple[Ids, bool, Effect]:
    """The ids that a layer reads, and whether they are followed (else all of them stay)."""
    axis = view.axis(source)
    if axis is not None and axis.dim == dim:
        return axis.ids, True, Effect()
    read = view.fresh(size)
    return read, False, Effect(pins=(*view.pins(source), Pin(read)))


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

    def operands(self, view: View, node: fx.Node) -> Operands:
        given = arguments(node)
        dims = (1, 0) if self.transposed else (0, 1)
        return Operands(given["input"], given["weight"], given["bias"], 1, 1, *dims)

    def bind(
        self, view: View, node: fx.Node, groups: int, scale: float, padded: bool, kind: str
    ) -> Effect | str:
        own = self.operands(view, node)
        if not view.is_static(own.weight):
            return "its weight depends on the input"
        weight = view.tensor(own.weight)
        if weight.ndim < 2:
            return "its weight is one vector, which adds all channels up"
        if own.bias is not None and not view.is_static(own.bias):
            return "its bias depends on the input"
        outputs = int(weight.shape[own.out_dim]) * (groups if self.transposed else 1)
        inputs = int(weight.shape[own.in_dim]) * (1 if self.transposed else groups)
        read, tracked, effect = _tracked_input(view, own.source, own.in_channel, inputs)
        depthwise = groups > 1 and inputs == groups
        if groups == 1:
            written, said = self._plain(view, own, read, outputs)
        elif depthwise:
            written, said = self._depthwise(view, own, outputs)
            said += Effect(unions=((written.reshape(groups, -1), read[:, None]),))
        else:
            written, said = self._group(view, own, read, outputs, groups)
        product = Product(
            name=_first_parameter(view, own.weight).rpartition(".")[0],
            kind="depthwise" if depthwise else kind,
            weight=view.parameter(own.weight),
            bias=None if own.bias is None else view.parameter(own.bias),
            node=node,
            node_in=own.source if tracked else None,
            outputs=written,
            inputs=None if depthwise else read,
            input_size=inputs,
            groups=groups,
            scale=scale / (1 if depthwise else groups),
            padded=padded,
            folds=self._folds(view, own.weight, groups, depthwise, padded),
            rows=own.out_dim == 0,
        )
        effect += said + self._bias(view, own.bias, written)
        effect += Effect((Axis((own.out_channel,), written),), products=((node, product),))
        if groups > 1:
            effect += Effect(sized=((node, written),))  # a functional call counts its groups with a number
        return effect

    def _folds(self, view: View, weight_node: fx.Node, groups: int, depthwise: bool, padded: bool) -> bool:
        if depthwise:
            return True  # its own channel becomes a constant or stays live: nothing is left to fold
        return not self.transposed and view.parameter(weight_node) is not None

    @staticmethod
    def _plain(view: View, own: Operands, read: Ids, outputs: int) -> Said:
        """The ids of its outputs, of one group."""
        written, effect = _weight_ids(view, own.weight, own.out_dim, "producer") or _pinned(view, outputs)
        consumed = _weight_ids(view, own.weight, own.in_dim, "consumer")
        if consumed is None:
            return written, effect + Effect(pins=(Pin(read),))
        return written, effect + consumed[1] + Effect(unions=((consumed[0], read),))

    @staticmethod
    def _depthwise(view: View, own: Operands, outputs: int) -> Said:
        """The ids of its outputs: of a transposed one the weight has one filter, maybe of several outputs, an input."""
        filters = _weight_ids(view, own.weight, 0, "producer")
        if filters is not None:
            return np.repeat(filters[0], outputs // len(filters[0])), filters[1]
        weight = view.tensor(own.weight)
        if bool((weight == weight[:1]).all()):
            # One filter, repeated for as many channels as there are: it follows them.
            written = view.fresh(outputs)
            made = (source for source in view.static_sources(own.weight) if view.parameter(source) is None)
            return written, Effect(sized=tuple((source, written) for source in made))
        return _pinned(view, outputs)

    def _group(self, view: View, own: Operands, read: Ids, outputs: int, groups: int) -> Said:
        """Grouped: every group keeps as many inputs as the others, and as many outputs, or goes whole."""
        name = view.parameter(own.weight)
        if name is None:
            written, effect = _pinned(view, outputs)
            whole = (_first_parameter(view, own.weight), f"grouped with {groups} groups")
            return written, effect + Effect(pins=(Pin(read),), not_pruned=(whole,))
        plain = view.bound(name, own.in_dim if self.transposed else own.out_dim)
        grouped = view.grouped(name, groups, "producer" if self.transposed else "consumer")
        consumed, written = (plain, grouped.ids) if self.transposed else (grouped.ids, plain)
        rows = read.reshape(groups, -1), written.reshape(groups, -1)
        return written, Effect(
            bindings=(grouped,),
            roles=(((name, 0), "consumer" if self.transposed else "producer"),),
            unions=((consumed, read),),
            grids=(Grid(rows[0]), Grid(rows[1])),
            units=(np.concatenate(rows, axis=1),),
        )

    @staticmethod
    def _bias(view: View, bias: fx.Node | None, written: Ids) -> Effect:
        if bias is None:
            return Effect()
        said = _weight_ids(view, bias, 0, "producer")
        if said is None:
            return Effect(pins=(Pin(written),))
        return said[1] + Effect(unions=((said[0], written),))

    def connections(self, view: View, node: fx.Node, groups: int) -> NDArray[np.bool_]:
        """(outputs, inputs of its group) pairs with a weight other than 0."""
        own = self.operands(view, node)
        weight = view.tensor(own.weight)
        if not self.transposed:
            return _nonzero(weight.movedim((own.out_dim, own.in_dim), (0, 1)))
        nonzero = _nonzero(weight)
        per_group = nonzero.reshape(groups, -1, nonzero.shape[1]).transpose(0, 2, 1)
        return per_group.reshape(-1, per_group.shape[2])

    @abstractmethod
    def known_inputs(self, view: View, node: fx.Node) -> Flags:
        """Inputs whose effect on every output position is the same constant."""

    def groups(self, node: fx.Node) -> int:
        return int(arguments(node).get("groups", 1))

    def constant(self, view: View, node: fx.Node) -> Flags:
        groups = self.groups(node)
        nonzero = self.connections(view, node, groups)
        source = self.operands(view, node).source
        product = view.product(node)
        if product is not None and product.node_in is source:
            live = ~self.known_inputs(view, node).reshape(groups, -1)
            nonzero = nonzero & np.repeat(live, nonzero.shape[0] // groups, axis=0)
        return np.asarray(nonzero.sum(1) == 0, dtype=bool)

    def used(self, view: View, node: fx.Node, used: Flags) -> Uses:
        source = self.operands(view, node).source
        product = view.product(node)
        if product is None or product.node_in is not source:
            return [Use(source)]
        groups = self.groups(node)
        reads = self.connections(view, node, groups) & used[:, None]
        flags: Flags = reads.reshape(groups, -1, reads.shape[1]).any(1).ravel()
        return [Use(source, flags, exact=not product.folds)]


class Convolution(Layer):
    """1-D to 3-D convolution: plain, grouped or depthwise."""

    def layout(self, view: View, node: fx.Node) -> Effect | str:
        given = arguments(node)
        shape = view.shape(node)
        kernel = view.shape(given["weight"])[2:]
        scale = float(shape[0] * np.prod(shape[2:]) * np.prod(kernel))
        return self.bind(
            view, node, self.groups(node), scale, _is_padded(given["padding"], kernel), operator(node)
        )

    def known_inputs(self, view: View, node: fx.Node) -> Flags:
        given = arguments(node)
        padded = _is_padded(given["padding"], view.shape(given["weight"])[2:])
        return view.zero(given["input"]) if padded else view.constant(given["input"])


class TransposedConvolution(Layer):
    """Transposed convolution: overlaps differ from pixel to pixel, so only zeros pass."""

    transposed = True

    def layout(self, view: View, node: fx.Node) -> Effect | str:
        given = arguments(node)
        shape = view.shape(given["input"])
        kernel = view.shape(given["weight"])[2:]
        scale = float(shape[0] * np.prod(shape[2:]) * np.prod(kernel))
        return self.bind(view, node, self.groups(node), scale, True, operator(node))

    def known_inputs(self, view: View, node: fx.Node) -> Flags:
        return view.zero(arguments(node)["input"])


class DeformableConvolution(Convolution):
    """torchvision's deform_conv2d: a convolution that reads at places which other tensors say, zeros outside the image."""

    def layout(self, view: View, node: fx.Node) -> Effect | str:
        given = arguments(node)
        if int(given["offset_groups"]) > 1:
            return "it reads groups of channels at different places"
        shape, kernel = view.shape(node), view.shape(given["weight"])[2:]
        scale = float(shape[0] * np.prod(shape[2:]) * np.prod(kernel))
        effect = self.bind(view, node, self.groups(node), scale, True, "deform_conv2d")
        if isinstance(effect, str):
            return effect
        places = (view.pins(given[key], "it says where another tensor is read") for key in ("offset", "mask"))
        return effect + Effect(pins=tuple(pin for pins in places for pin in pins))

    def operands(self, view: View, node: fx.Node) -> Operands:
        own = super().operands(view, node)
        bias = own.bias
        if bias is None or view.parameter(bias) is not None or not view.is_static(bias):
            return own
        made = all(view.parameter(source) is None for source in view.static_sources(bias))
        # Without a bias its module makes zeros, as many as the weight has filters.
        return replace(own, bias=None) if made and not bool(view.tensor(bias).any()) else own

    def known_inputs(self, view: View, node: fx.Node) -> Flags:
        return view.zero(arguments(node)["input"])

    def used(self, view: View, node: fx.Node, used: Flags) -> Uses:
        given = arguments(node)
        return [*super().used(view, node, used), Use(given["offset"]), Use(given["mask"])]


class Linear(Layer):
    """A matrix product over the last dimension."""

    def layout(self, view: View, node: fx.Node) -> Effect | str:
        shape = view.shape(arguments(node)["input"])
        return self.bind(view, node, 1, float(np.prod(shape[:-1])), False, "linear")

    def operands(self, view: View, node: fx.Node) -> Operands:
        given = arguments(node)
        last = len(view.shape(given["input"])) - 1
        return Operands(given["input"], given["weight"], given["bias"], last, last)

    def known_inputs(self, view: View, node: fx.Node) -> Flags:
        return view.constant(arguments(node)["input"])


def _is_padded(padding: Any, kernel: tuple[int, ...] | torch.Size) -> bool:
    if isinstance(padding, str):
        return padding != "valid" and any(size > 1 for size in kernel)
    sizes = padding if isinstance(padding, (list, tuple)) else [padding]
    return any(int(size) > 0 for size in sizes)


_convolution, _transposed = Convolution(), TransposedConvolution()
RULES: dict[str, Rule] = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _convolution),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _transposed),
    "torchvision::deform_conv2d": DeformableConvolution(),
    "linear": Linear(),
}
