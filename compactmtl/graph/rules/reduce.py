"""Pooling, resizing and means over positions: coordinates pass, a constant stays one where nothing is padded."""

from __future__ import annotations

import numpy as np
from torch import fx

from compactmtl.graph.analysis import Analysis, Rule, arguments
from compactmtl.graph.space import Axis, Flags


class Spatial:
    """Operators on each channel's positions, the channel at dimension 1."""

    def layout(self, analysis: Analysis, node: fx.Node) -> str | None:
        source = arguments(node)["self" if "self" in arguments(node) else "input"]
        axis = analysis.axis(source)
        if axis is None:
            analysis.pin(source)
            analysis.layouts[node] = ()
        elif axis.dim != len(analysis.shape(source)) - self.spatial(node) - 1:
            return "the channel is one of the pooled dimensions"
        else:
            analysis.layouts[node] = (axis,)
        return None

    @staticmethod
    def spatial(node: fx.Node) -> int:
        """How many trailing dimensions are positions."""
        name = str(node.target)
        return 1 if "1d" in name else 3 if "3d" in name or "trilinear" in name else 2

    def constant(self, analysis: Analysis, node: fx.Node) -> Flags:
        given = arguments(node)
        source = given["self" if "self" in given else "input"]
        padding = given.get("padding", 0)
        padded = any(padding) if isinstance(padding, (list, tuple)) else bool(padding)
        if padded and "avg" in str(node.target):
            return analysis.zero(source)
        return analysis.constant(source)

    def used(self, analysis: Analysis, node: fx.Node, used: Flags) -> None:
        given = arguments(node)
        source = given["self" if "self" in given else "input"]
        if analysis.axis(source) is not None:
            analysis.use(source, used)


class Reduction:
    """mean, sum, amax, amin over dimensions that are not the channel's."""

    def layout(self, analysis: Analysis, node: fx.Node) -> str | None:
        given = arguments(node)
        source = given["self"]
        dims = given.get("dim")
        rank = len(analysis.shape(source))
        axis = analysis.axis(source)
        if axis is None:
            analysis.pin(source)
            analysis.layouts[node] = ()
            return None
        chosen = range(rank) if dims is None or dims == [] else [dims] if isinstance(dims, int) else dims
        reduced = {int(dim) % rank for dim in chosen}
        if axis.dim in reduced:
            return "it reduces over the channel"
        shift = 0 if given.get("keepdim") else sum(dim < axis.dim for dim in reduced)
        analysis.layouts[node] = (Axis(axis.dim - shift, axis.ids),)
        return None

    def constant(self, analysis: Analysis, node: fx.Node) -> Flags:
        source = arguments(node)["self"]
        return analysis.constant(source)

    def used(self, analysis: Analysis, node: fx.Node, used: Flags) -> None:
        source = arguments(node)["self"]
        if analysis.axis(source) is not None:
            analysis.use(source, used)


class Softmax(Reduction):
    """Softmax over positions; over the channel it is a barrier. A constant becomes 1/n, not itself."""

    def layout(self, analysis: Analysis, node: fx.Node) -> str | None:
        given = arguments(node)
        source = given["self"]
        axis = analysis.axis(source)
        if axis is None:
            return "its input's channels are not tracked"
        if int(given["dim"]) % len(analysis.shape(source)) == axis.dim:
            return "it normalizes over the channel"
        analysis.layouts[node] = (axis,)
        return None

    def constant(self, analysis: Analysis, node: fx.Node) -> Flags:
        axis = analysis.axis(node)
        assert axis is not None
        return np.zeros(len(axis.ids), dtype=bool)


_spatial, _reduction, _softmax = Spatial(), Reduction(), Softmax()
RULES: dict[str, Rule] = {
    **dict.fromkeys(
        (
            *(
                f"{kind}_pool{n}d"
                for kind in ("max", "avg", "adaptive_avg", "adaptive_max")
                for n in (1, 2, 3)
            ),
            *(
                f"upsample_{kind}"
                for kind in ("nearest1d", "nearest2d", "nearest3d", "linear1d", "bilinear2d")
            ),
            *(f"upsample_{kind}" for kind in ("bicubic2d", "trilinear3d", "_nearest_exact2d")),
            "_upsample_nearest_exact2d",
            "_upsample_bilinear2d_aa",
        ),
        _spatial,
    ),
    **dict.fromkeys(("mean", "sum", "amax", "amin"), _reduction),
    "softmax": _softmax,
    "log_softmax": _softmax,
}
