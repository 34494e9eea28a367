"""Normalization: batch norm scales each channel; norms over the channel can lose those that are zero."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import fx

from compactmtl.graph.analysis import Analysis, Rule
from compactmtl.graph.calls import arguments
from compactmtl.graph.groups import Role
from compactmtl.graph.space import Axis, Flags


def scaled_by_zero(analysis: Analysis, weight: fx.Node | None) -> Flags:
    """Which channels a norm's weight turns into constants."""
    if weight is None:
        return np.zeros(1, dtype=bool)
    zero: Flags = (analysis.tensor(weight) == 0).cpu().numpy()
    return zero


class BatchNorm:
    """Batch norm with running statistics: a scale and shift of each channel."""

    def layout(self, analysis: Analysis, node: fx.Node) -> str | None:
        given = arguments(node)
        axes = [axis for axis in analysis.layouts.get(given["input"], ()) if axis.dim == 1]
        if not axes:
            return "its input's channels are not tracked"
        if self._own_statistics(given):
            if node not in analysis.static:
                return "it uses the statistics of the batch"
            # Standardized weights: each filter by its own statistics, so its inputs stay whole.
            for axis in analysis.layouts[given["input"]]:
                if axis.dim != 1:
                    analysis.space.pin(axis.ids)
        for key in ("weight", "bias", "running_mean", "running_var"):
            if given[key] is not None:
                if not analysis.is_static(given[key]):
                    return f"its {key} depends on the input"
                role: Role | None = "affine" if key in ("weight", "bias") else None
                name = analysis.parameter(given[key])
                if name is not None:
                    analysis.space.union(analysis.bind(name, 0, role), axes[0].ids)
                else:
                    own = analysis.axis(given[key])
                    if own is None or own.ids.shape != axes[0].ids.shape:
                        return f"its {key} is computed in a way that cannot be followed"
                    analysis.space.union(own.ids, axes[0].ids)
        analysis.layouts[node] = (axes[0],)
        return None

    def constant(self, analysis: Analysis, node: fx.Node) -> Flags:
        given = arguments(node)
        return analysis.constant(given["input"]) | scaled_by_zero(analysis, given["weight"])

    def used(self, analysis: Analysis, node: fx.Node, used: Flags) -> None:
        given = arguments(node)
        analysis.use(given["input"], used & ~scaled_by_zero(analysis, given["weight"]))

    @staticmethod
    def _own_statistics(given: dict[str, Any]) -> bool:
        """Whether each channel is normalized over all of the batch that is there."""
        return bool(given["training"]) or given["running_mean"] is None


class InstanceNorm(BatchNorm):
    """Instance norm: each channel of each image by its own statistics, which of zeros are 0."""

    def layout(self, analysis: Analysis, node: fx.Node) -> str | None:
        reason = super().layout(analysis, node)
        axis = analysis.axis(node)
        if axis is not None:
            analysis.sized[node] = axis.ids  # without weights, its own count of features is checked
        return reason

    def constant(self, analysis: Analysis, node: fx.Node) -> Flags:
        given = arguments(node)
        return analysis.zero(given["input"]) | scaled_by_zero(analysis, given["weight"])

    def used(self, analysis: Analysis, node: fx.Node, used: Flags) -> None:
        given = arguments(node)
        read = used & ~scaled_by_zero(analysis, given["weight"])
        # Another constant is divided by its own rounding: it is not to be trusted.
        analysis.use_exactly(given["input"], read)

    @staticmethod
    def _own_statistics(given: dict[str, Any]) -> bool:
        return False


class OverChannel:
    """Norms over the channel alone: one that is zero adds nothing but to their number, which is kept (see `Wide`).

    Removing any other would change all that are left. Without a mean (`centered`) zeros also stay zeros.
    """

    def __init__(self, centered: bool) -> None:
        self._centered = centered

    def layout(self, analysis: Analysis, node: fx.Node) -> str | None:
        given = arguments(node)
        axis = analysis.axis(given["input"])
        reason = "it normalizes over the channels together"
        if node in analysis.static or axis is None or not self._alone(analysis, given, axis):
            return reason
        for key in ("weight", "bias"):
            own = None if given.get(key) is None else analysis.axis(given[key])
            if own is not None and own.ids.shape == axis.ids.shape and analysis.is_static(given[key]):
                analysis.space.union(own.ids, axis.ids)
                analysis.mark(given[key], own.ids, "affine")
            elif given.get(key) is not None:
                return reason
        analysis.counted[node] = axis.ids, reason
        analysis.layouts[node] = (axis,)
        return None

    @staticmethod
    def _alone(analysis: Analysis, given: dict[str, Any], axis: Axis) -> bool:
        """Whether each position, or each image, is normalized over exactly this axis and its positions."""
        if axis.ids.ndim != 1:
            return False
        if "num_groups" in given:
            return axis.dim == 1
        return len(given["normalized_shape"]) == 1 and axis.dim == len(analysis.shape(given["input"])) - 1

    def constant(self, analysis: Analysis, node: fx.Node) -> Flags:
        given = arguments(node)
        fixed = scaled_by_zero(analysis, given["weight"])
        return np.broadcast_to(fixed, analysis.zero(given["input"]).shape) | (
            np.zeros(1, dtype=bool) if self._centered else analysis.zero(given["input"])
        )

    def used(self, analysis: Analysis, node: fx.Node, used: Flags) -> None:
        # Each of its outputs depends on all of its inputs.
        analysis.use_exactly(arguments(node)["input"], np.ones(1, dtype=bool))


class GroupNorm:
    """GroupNorm of several groups: the channels of one go together, where all are dead. Of one group: see `OverChannel`."""

    _single = OverChannel(centered=True)

    def layout(self, analysis: Analysis, node: fx.Node) -> str | None:
        given = arguments(node)
        groups = int(given["num_groups"])
        if groups == 1:
            return self._single.layout(analysis, node)
        axis = analysis.axis(given["input"])
        if node in analysis.static or axis is None or axis.dim != 1:
            return "its input's channels are not tracked"
        rows = axis.ids.reshape(groups, -1)
        analysis.space.union(rows, rows[:, :1])
        for key in ("weight", "bias"):
            if given[key] is None:
                continue
            own = analysis.axis(given[key])
            if own is None or own.ids.shape != axis.ids.shape or not analysis.is_static(given[key]):
                return f"its {key} is computed in a way that cannot be followed"
            analysis.space.union(own.ids, axis.ids)
            analysis.mark(given[key], own.ids, "affine")
        analysis.sized[node] = axis.ids
        analysis.joined.append((axis.ids, "group_norm: it normalizes over the channels of a group"))
        analysis.layouts[node] = (axis,)
        return None

    def constant(self, analysis: Analysis, node: fx.Node) -> Flags:
        given = arguments(node)
        if given["num_groups"] == 1:
            return self._single.constant(analysis, node)
        known = analysis.constant(given["input"]).reshape(given["num_groups"], -1)
        whole = known.all(1)
        if whole.any():
            values = analysis.values[given["input"]].reshape(known.shape)
            # Equal constants other than 0 are divided by their own rounding: they are not to be trusted.
            spread, size = values.max(1) - values.min(1), np.abs(values).max(1)
            whole = whole & ((size == 0) | (spread > 1e-2 * size))
        fixed: Flags = np.repeat(whole, known.shape[1]) | scaled_by_zero(analysis, given["weight"])
        return fixed

    def used(self, analysis: Analysis, node: fx.Node, used: Flags) -> None:
        given = arguments(node)
        if given["num_groups"] == 1:
            self._single.used(analysis, node, used)
            return
        read = used & ~scaled_by_zero(analysis, given["weight"])
        rows = read.reshape(given["num_groups"], -1)
        analysis.use(given["input"], np.repeat(rows.any(1), rows.shape[1]))


class WeightNorm:
    """`_weight_norm` (v, g, dim 0): each filter by its own norm, so its inputs stay whole."""

    def layout(self, analysis: Analysis, node: fx.Node) -> str | None:
        given = arguments(node)
        if int(given.get("dim", 0)) != 0:
            return "it normalizes over another dimension than the filters"
        first: Axis | None = None
        for source in analysis.tensors_in(node):
            for axis in analysis.layouts.get(source, ()):
                if axis.dim != 0:
                    analysis.space.pin(axis.ids)
                elif first is None:
                    first = axis
                else:
                    analysis.space.union(first.ids, axis.ids)
        analysis.layouts[node] = () if first is None else (first,)
        return None

    def constant(self, analysis: Analysis, node: fx.Node) -> Flags:
        axis = analysis.axis(node)
        assert axis is not None
        return np.zeros(axis.ids.shape, dtype=bool)

    def used(self, analysis: Analysis, node: fx.Node, used: Flags) -> None:
        for source in analysis.tensors_in(node):
            analysis.use_all(source)


RULES: dict[str, Rule] = {
    "batch_norm": BatchNorm(),
    "instance_norm": InstanceNorm(),
    "_weight_norm": WeightNorm(),
    "layer_norm": OverChannel(centered=True),
    "group_norm": GroupNorm(),
    "rms_norm": OverChannel(centered=False),
}
