"""Convolution, linear and batch norm: where channels are produced, consumed and scaled."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from compactmtl.graph.analysis import Analysis, Product, Rule, arguments, operator
from compactmtl.graph.groups import Role
from compactmtl.graph.space import Axis, Flags


def _nonzero(weight: Tensor) -> NDArray[np.bool_]:
    """Which (output, input) pairs a weight (out, in, ...) connects."""
    return (
        (weight.detach() != 0).flatten(2).any(2).cpu().numpy()
        if weight.ndim > 2
        else (weight != 0).cpu().numpy()
    )


class Convolution:
    """1-D to 3-D convolution: plain or depthwise. Other groupings are followed but stay whole."""

    def layout(self, analysis: Analysis, node: fx.Node) -> str | None:
        given = arguments(node)
        source, weight_node, bias_node = given["input"], given["weight"], given["bias"]
        weight_name, bias_name = analysis.parameter(weight_node), analysis.parameter(bias_node)
        if weight_name is None or (bias_node is not None and bias_name is None):
            return "its weight is computed, not a parameter"
        groups = int(given["groups"])
        outputs, per_group = analysis.shape(weight_node)[:2]
        axis = analysis.axis(source)
        if axis is None or axis.dim != 1:
            analysis.pin(source)
            read = analysis.space.fresh(per_group * groups)
            analysis.space.pin(read)
            axis = None
        else:
            read = axis.ids
        written = analysis.bind(weight_name, 0, "producer")
        inputs = read
        depthwise = groups > 1 and per_group == 1
        if groups == 1:
            analysis.space.union(analysis.bind(weight_name, 1, "consumer"), read)
        elif depthwise:
            repeat = outputs // groups
            analysis.space.union(written, np.repeat(read, repeat))
        else:
            analysis.space.pin(read)
            analysis.space.pin(written)
            analysis.kept_whole[weight_name] = f"grouped convolution with {groups} groups"
        if bias_name is not None:
            analysis.space.union(analysis.bind(bias_name, 0, "producer"), written)
        shape = analysis.shape(node)
        kernel = analysis.shape(weight_node)[2:]
        analysis.products.append(
            Product(
                name=weight_name.rpartition(".")[0],
                kind="depthwise" if depthwise else operator(node),
                weight=weight_name,
                bias=bias_name,
                node=node,
                input_node=source if axis is not None else None,
                outputs=written,
                inputs=None if depthwise else inputs,
                input_size=per_group * groups,
                scale=float(shape[0] * np.prod(shape[2:]) * np.prod(kernel)) / (1 if depthwise else groups),
                padded=_is_padded(given["padding"], kernel),
            )
        )
        analysis.layouts[node] = (Axis(1, written),)
        return None

    def constant(self, analysis: Analysis, node: fx.Node) -> Flags:
        source, weight, groups, padded = _convolution(analysis, node)
        nonzero = _nonzero(weight)
        axis = analysis.axis(source)
        if axis is None:
            return np.asarray(nonzero.sum(1) == 0, dtype=bool)
        known = analysis.zero(source) if padded else analysis.constant(source)
        live = ~known.reshape(groups, -1)
        per_output = np.repeat(live, nonzero.shape[0] // groups, axis=0)
        return np.asarray((nonzero & per_output).sum(1) == 0, dtype=bool)

    def used(self, analysis: Analysis, node: fx.Node, used: Flags) -> None:
        source, weight, groups, _ = _convolution(analysis, node)
        if analysis.axis(source) is None:
            return
        reads = _nonzero(weight) & used[:, None]
        flags: Flags = reads.reshape(groups, -1, reads.shape[1]).any(1).ravel()
        analysis.use(source, flags)


def _convolution(analysis: Analysis, node: fx.Node) -> tuple[fx.Node, Tensor, int, bool]:
    given = arguments(node)
    weight = analysis.tensor(given["weight"])
    return given["input"], weight, int(given["groups"]), _is_padded(given["padding"], weight.shape[2:])


def _is_padded(padding: Any, kernel: tuple[int, ...] | torch.Size) -> bool:
    if isinstance(padding, str):
        return padding != "valid" and any(size > 1 for size in kernel)
    sizes = padding if isinstance(padding, (list, tuple)) else [padding]
    return any(int(size) > 0 for size in sizes)


class Linear:
    """A matrix product over the last dimension."""

    def layout(self, analysis: Analysis, node: fx.Node) -> str | None:
        given = arguments(node)
        source, weight_node, bias_node = given["input"], given["weight"], given["bias"]
        weight_name, bias_name = analysis.parameter(weight_node), analysis.parameter(bias_node)
        if weight_name is None or (bias_node is not None and bias_name is None):
            return "its weight is computed, not a parameter"
        shape = analysis.shape(source)
        axis = analysis.axis(source)
        if axis is None or axis.dim != len(shape) - 1:
            analysis.pin(source)
            read = analysis.space.fresh(shape[-1])
            analysis.space.pin(read)
            axis = None
        else:
            read = axis.ids
        written = analysis.bind(weight_name, 0, "producer")
        analysis.space.union(analysis.bind(weight_name, 1, "consumer"), read)
        if bias_name is not None:
            analysis.space.union(analysis.bind(bias_name, 0, "producer"), written)
        analysis.products.append(
            Product(
                name=weight_name.rpartition(".")[0],
                kind="linear",
                weight=weight_name,
                bias=bias_name,
                node=node,
                input_node=source if axis is not None else None,
                outputs=written,
                inputs=read,
                input_size=shape[-1],
                scale=float(np.prod(shape[:-1])),
                padded=False,
            )
        )
        analysis.layouts[node] = (Axis(len(shape) - 1, written),)
        return None

    def constant(self, analysis: Analysis, node: fx.Node) -> Flags:
        given = arguments(node)
        nonzero = _nonzero(analysis.tensor(given["weight"]))
        axis = analysis.axis(given["input"])
        live = np.ones(nonzero.shape[1], dtype=bool) if axis is None else ~analysis.constant(given["input"])
        return np.asarray((nonzero & live).sum(1) == 0, dtype=bool)

    def used(self, analysis: Analysis, node: fx.Node, used: Flags) -> None:
        given = arguments(node)
        if analysis.axis(given["input"]) is not None:
            reads = _nonzero(analysis.tensor(given["weight"])) & used[:, None]
            analysis.use(given["input"], np.any(reads, axis=0))


class BatchNorm:
    """Batch norm in eval mode: a scale and shift of each channel."""

    def layout(self, analysis: Analysis, node: fx.Node) -> str | None:
        given = arguments(node)
        axis = analysis.axis(given["input"])
        if axis is None or axis.dim != 1:
            return "its input's channels are not tracked"
        if given["training"] or given["running_mean"] is None:
            return "it uses the statistics of the batch"
        for key in ("weight", "bias", "running_mean", "running_var"):
            if given[key] is not None:
                name = analysis.parameter(given[key])
                if name is None:
                    return f"its {key} is computed, not a parameter"
                role: Role | None = "affine" if key in ("weight", "bias") else None
                analysis.space.union(analysis.bind(name, 0, role), axis.ids)
        analysis.layouts[node] = (axis,)
        return None

    def constant(self, analysis: Analysis, node: fx.Node) -> Flags:
        given = arguments(node)
        return analysis.constant(given["input"]) | self._scaled_by_zero(analysis, given["weight"])

    def used(self, analysis: Analysis, node: fx.Node, used: Flags) -> None:
        given = arguments(node)
        analysis.use(given["input"], used & ~self._scaled_by_zero(analysis, given["weight"]))

    @staticmethod
    def _scaled_by_zero(analysis: Analysis, weight: fx.Node | None) -> Flags:
        if weight is None:
            return np.zeros(1, dtype=bool)
        zero: Flags = (analysis.tensor(weight) == 0).cpu().numpy()
        return zero


_convolution_rule = Convolution()
RULES: dict[str, Rule] = {
    "conv1d": _convolution_rule,
    "conv2d": _convolution_rule,
    "conv3d": _convolution_rule,
    "linear": Linear(),
    "batch_norm": BatchNorm(),
}
