"""Normalization: batch norm scales each channel; norms over the channel can lose those that are zero."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import fx

from compactmtl.graph.calls import arguments
from compactmtl.graph.effect import Counted, Effect, Pin, Use, Uses
from compactmtl.graph.rule import Rule
from compactmtl.graph.space import Axis, Flags
from compactmtl.graph.view import View


def scaled_by_zero(view: View, weight: fx.Node | None) -> Flags:
    """Which channels a norm's weight turns into constants."""
    if weight is None:
        return np.zeros(1, dtype=bool)
    zero: Flags = (view.tensor(weight) == 0).cpu().numpy()
    return zero


def _affine(view: View, node: fx.Node, axis: Axis) -> Effect | None:
    """A norm's weight or bias goes with the channels of `axis`; None where it cannot be followed."""
    own = view.axis(node)
    if own is None or own.ids.shape != axis.ids.shape or not view.is_static(node):
        return None
    keys = view.keys_in(node, own.ids)
    return Effect(unions=((own.ids, axis.ids),), roles=tuple((key, "affine") for key in keys))


class BatchNorm:
    """Batch norm with running statistics: a scale and shift of each channel."""

    def layout(self, view: View, node: fx.Node) -> Effect | str:
        given = arguments(node)
        axes = [axis for axis in view.layout(given["input"]) if axis.dim == 1]
        if not axes:
            return "its input's channels are not tracked"
        effect = Effect((axes[0],))
        if self._own_statistics(given):
            if not view.is_computed(node):
                return "it uses the statistics of the batch"
            # Standardized weights: each filter by its own statistics, so its inputs stay whole.
            others = (axis for axis in view.layout(given["input"]) if axis.dim != 1)
            effect += Effect(pins=tuple(Pin(axis.ids) for axis in others))
        for key in ("weight", "bias", "running_mean", "running_var"):
            if given[key] is None:
                continue
            if not view.is_static(given[key]):
                return f"its {key} depends on the input"
            name = view.parameter(given[key])
            if name is not None:
                effect += Effect(unions=((view.bound(name, 0), axes[0].ids),))
                if key in ("weight", "bias"):
                    effect += Effect(roles=(((name, 0), "affine"),))
            else:
                own = view.axis(given[key])
                if own is None or own.ids.shape != axes[0].ids.shape:
                    return f"its {key} is computed in a way that cannot be followed"
                effect += Effect(unions=((own.ids, axes[0].ids),))
        return effect

    def constant(self, view: View, node: fx.Node) -> Flags:
        given = arguments(node)
        return view.constant(given["input"]) | scaled_by_zero(view, given["weight"])

    def used(self, view: View, node: fx.Node, used: Flags) -> Uses:
        given = arguments(node)
        return [Use(given["input"], used & ~scaled_by_zero(view, given["weight"]))]

    @staticmethod
    def _own_statistics(given: dict[str, Any]) -> bool:
        """Whether each channel is normalized over all of the batch that is there."""
        return bool(given["training"]) or given["running_mean"] is None


class InstanceNorm(BatchNorm):
    """Instance norm: each channel of each image by its own statistics, which of zeros are 0."""

    def layout(self, view: View, node: fx.Node) -> Effect | str:
        effect = super().layout(view, node)
        if isinstance(effect, str):
            return effect
        # without weights, its own count of features is checked
        return effect + Effect(sized=((node, effect.layout[0].ids),))

    def constant(self, view: View, node: fx.Node) -> Flags:
        given = arguments(node)
        return view.zero(given["input"]) | scaled_by_zero(view, given["weight"])

    def used(self, view: View, node: fx.Node, used: Flags) -> Uses:
        given = arguments(node)
        read = used & ~scaled_by_zero(view, given["weight"])
        # Another constant is divided by its own rounding: it is not to be trusted.
        return [Use(given["input"], read, exact=True)]

    @staticmethod
    def _own_statistics(given: dict[str, Any]) -> bool:
        return False


class OverChannel:
    """Norms over the channel alone: one that is zero adds nothing but to their number, which is kept (see `FullWidth`).

    Removing any other would change all that are left. Without a mean (`centered`) zeros also stay zeros.
    """

    def __init__(self, centered: bool) -> None:
        self._centered = centered

    def layout(self, view: View, node: fx.Node) -> Effect | str:
        given = arguments(node)
        axis = view.axis(given["input"])
        reason = "it normalizes over the channels together"
        if view.is_computed(node) or axis is None or not self._alone(view, given, axis):
            return reason
        effect = Effect((axis,), counted=Counted(axis.ids, reason))
        for key in ("weight", "bias"):
            affine = None if given.get(key) is None else _affine(view, given[key], axis)
            if affine is not None:
                effect += affine
            elif given.get(key) is not None:
                return reason
        return effect

    @staticmethod
    def _alone(view: View, given: dict[str, Any], axis: Axis) -> bool:
        """Whether each position, or each image, is normalized over exactly this axis and its positions."""
        if axis.ids.ndim != 1:
            return False
        if "num_groups" in given:
            return axis.dim == 1
        return len(given["normalized_shape"]) == 1 and axis.dim == len(view.shape(given["input"])) - 1

    def constant(self, view: View, node: fx.Node) -> Flags:
        given = arguments(node)
        fixed = scaled_by_zero(view, given["weight"])
        return np.broadcast_to(fixed, view.zero(given["input"]).shape) | (
            np.zeros(1, dtype=bool) if self._centered else view.zero(given["input"])
        )

    def used(self, view: View, node: fx.Node, used: Flags) -> Uses:
        # Each of its outputs depends on all of its inputs.
        return [Use(arguments(node)["input"], exact=True)]


class GroupNorm:
    """GroupNorm of several groups: a group goes where all of it is dead, and a zero channel as in `OverChannel`."""

    _single = OverChannel(centered=True)

    def layout(self, view: View, node: fx.Node) -> Effect | str:
        given = arguments(node)
        groups = int(given["num_groups"])
        if groups == 1:
            return self._single.layout(view, node)
        axis = view.axis(given["input"])
        if view.is_computed(node) or axis is None or axis.dim != 1:
            return "its input's channels are not tracked"
        reason = "it normalizes over the channels of a group"
        effect = Effect(
            (axis,),
            sized=((node, axis.ids),),
            joined=((axis.ids, f"group_norm: {reason}"),),
            counted=Counted(axis.ids, reason, groups),
        )
        for key in ("weight", "bias"):
            if given[key] is None:
                continue
            affine = _affine(view, given[key], axis)
            if affine is None:
                return f"its {key} is computed in a way that cannot be followed"
            effect += affine
        return effect

    def constant(self, view: View, node: fx.Node) -> Flags:
        given = arguments(node)
        if given["num_groups"] == 1:
            return self._single.constant(view, node)
        fixed: Flags = self._whole(view, node) | scaled_by_zero(view, given["weight"])
        return fixed

    @staticmethod
    def _whole(view: View, node: fx.Node) -> Flags:
        """The channels of groups that are constant as a whole."""
        given = arguments(node)
        known = view.constant(given["input"]).reshape(given["num_groups"], -1)
        whole = known.all(1)
        if whole.any():
            values = view.values(given["input"]).reshape(known.shape)
            # Equal constants other than 0 are divided by their own rounding: they are not to be trusted.
            spread, size = values.max(1) - values.min(1), np.abs(values).max(1)
            whole = whole & ((size == 0) | (spread > 1e-2 * size))
        return np.repeat(whole, known.shape[1])

    def used(self, view: View, node: fx.Node, used: Flags) -> Uses:
        given = arguments(node)
        if given["num_groups"] == 1:
            return self._single.used(view, node, used)
        read = used & ~scaled_by_zero(view, given["weight"])
        rows = read.reshape(given["num_groups"], -1)
        groups, whole = np.repeat(rows.any(1), rows.shape[1]), self._whole(view, node)
        # What stays of a group is computed of all of it: beside zeros only all of a group of constants may go.
        return [Use(given["input"], groups & whole), Use(given["input"], groups & ~whole, exact=True)]


class WeightNorm:
    """`_weight_norm` (v, g, dim 0): each filter by its own norm, so its inputs stay whole."""

    def layout(self, view: View, node: fx.Node) -> Effect | str:
        given = arguments(node)
        if int(given.get("dim", 0)) != 0:
            return "it normalizes over another dimension than the filters"
        axes = [axis for source in view.tensors_in(node) for axis in view.layout(source)]
        filters = [axis for axis in axes if axis.dim == 0]
        return Effect(
            tuple(filters[:1]),
            unions=tuple((filters[0].ids, axis.ids) for axis in filters[1:]),
            pins=tuple(Pin(axis.ids) for axis in axes if axis.dim != 0),
        )

    def constant(self, view: View, node: fx.Node) -> Flags:
        axis = view.axis(node)
        assert axis is not None
        return np.zeros(axis.ids.shape, dtype=bool)

    def used(self, view: View, node: fx.Node, used: Flags) -> Uses:
        return [Use(source) for source in view.tensors_in(node)]


RULES: dict[str, Rule] = {
    "batch_norm": BatchNorm(),
    "instance_norm": InstanceNorm(),
    "_weight_norm": WeightNorm(),
    "layer_norm": OverChannel(centered=True),
    "group_norm": GroupNorm(),
    "rms_norm": OverChannel(centered=False),
}
