"""Pooling, resizing and means over positions: coordinates pass, a constant stays one where nothing is padded."""

from __future__ import annotations

import numpy as np
from torch import fx

from compactmtl.graph.analysis import Analysis, Rule, arguments, operator, source_of
from compactmtl.graph.space import Axis, Flags, Ids


class _OneTensor:
    """Operators that read one tensor whose coordinates they keep."""

    def untracked(self, analysis: Analysis, node: fx.Node) -> None:
        analysis.pin(source_of(node))
        analysis.layouts[node] = ()

    def constant(self, analysis: Analysis, node: fx.Node) -> Flags:
        return analysis.constant(source_of(node))

    def used(self, analysis: Analysis, node: fx.Node, used: Flags) -> None:
        if analysis.axis(source_of(node)) is not None:
            if analysis.axis(node) is None:
                analysis.use_all(source_of(node))
            else:
                analysis.use(source_of(node), used)


class Spatial(_OneTensor):
    """Operators on each channel's positions, which are the last dimensions."""

    def layout(self, analysis: Analysis, node: fx.Node) -> str | None:
        axis = analysis.axis(source_of(node))
        if axis is None:
            self.untracked(analysis, node)
            return None
        first = len(analysis.shape(source_of(node))) - self.positions(node)
        if any(dim >= first for dim in axis.dims):
            return "the channel is one of the dimensions that it pools"
        analysis.layouts[node] = (axis,)
        return None

    @staticmethod
    def positions(node: fx.Node) -> int:
        """How many trailing dimensions are positions."""
        name = operator(node)
        return 1 if "1d" in name else 3 if "3d" in name else 2

    def constant(self, analysis: Analysis, node: fx.Node) -> Flags:
        padding = arguments(node).get("padding", 0)
        padded = any(padding) if isinstance(padding, (list, tuple)) else bool(padding)
        if padded and "avg" in operator(node):
            return analysis.zero(source_of(node))
        return analysis.constant(source_of(node))


class Padding(Spatial):
    """pad: what it adds is another value than a constant channel's, unless both are 0."""

    def layout(self, analysis: Analysis, node: fx.Node) -> str | None:
        axis = analysis.axis(source_of(node))
        rank = len(analysis.shape(source_of(node)))
        sizes = list(arguments(node)["pad"])
        touched = {rank - 1 - index // 2 for index, size in enumerate(sizes) if int(size) != 0}
        if axis is None:
            self.untracked(analysis, node)
        elif touched & set(axis.dims):
            return "it pads the channel"
        else:
            analysis.layouts[node] = (axis,)
        return None

    def constant(self, analysis: Analysis, node: fx.Node) -> Flags:
        given = arguments(node)
        if given.get("mode", "constant") != "constant":
            return analysis.constant(source_of(node))
        return (
            analysis.zero(source_of(node))
            if not given.get("value")
            else np.zeros_like(analysis.constant(source_of(node)))
        )


class Reduction(_OneTensor):
    """mean, sum, amax, amin over dimensions that are not the channel's."""

    def layout(self, analysis: Analysis, node: fx.Node) -> str | None:
        given = arguments(node)
        source = source_of(node)
        rank = len(analysis.shape(source))
        dims = given.get("dim")
        chosen = range(rank) if dims is None or dims == [] else [dims] if isinstance(dims, int) else dims
        reduced = {int(dim) % rank for dim in chosen} if rank else set()
        kept = []
        for axis in analysis.layouts.get(source, ()):
            if reduced & set(axis.dims):
                if node not in analysis.static:
                    return self._over_rows(analysis, node, axis, reduced)
                analysis.space.pin(axis.ids)
                continue
            shift = [
                0 if given.get("keepdim") else sum(other < dim for other in reduced) for dim in axis.dims
            ]
            kept.append(Axis(tuple(dim - by for dim, by in zip(axis.dims, shift, strict=True)), axis.ids))
        if len(analysis.layouts.get(source, ())) > 1 and node not in analysis.static:
            self.untracked(analysis, node)
        else:
            analysis.layouts[node] = tuple(kept)
        return None

    @staticmethod
    def _over_rows(analysis: Analysis, node: fx.Node, axis: Axis, reduced: set[int]) -> str | None:
        """Over one of several channel dimensions: what it sums goes together, and all rows stay."""
        left = [k for k, dim in enumerate(axis.dims) if dim not in reduced]
        if not left or arguments(node).get("keepdim") or len(analysis.layouts[source_of(node)]) > 1:
            return "it reduces over the channel"
        rows = tie_rows(analysis, axis, [k for k in range(len(axis.dims)) if k not in left])
        dims = tuple(axis.dims[k] - sum(other < axis.dims[k] for other in reduced) for k in left)
        analysis.layouts[node] = (Axis(dims, rows),)
        return None

    def constant(self, analysis: Analysis, node: fx.Node) -> Flags:
        gone = self._gone(analysis, node)
        return np.asarray(analysis.constant(source_of(node)).all(axis=gone), dtype=bool)

    def used(self, analysis: Analysis, node: fx.Node, used: Flags) -> None:
        source, gone = analysis.axis(source_of(node)), self._gone(analysis, node)
        if source is None or not gone or analysis.axis(node) is None:
            super().used(analysis, node, used)
        else:
            spread = np.broadcast_to(np.expand_dims(used, gone), source.ids.shape)
            analysis.use(source_of(node), spread)

    @staticmethod
    def _gone(analysis: Analysis, node: fx.Node) -> tuple[int, ...]:
        """Positions, among the dimensions of the source's axis, of those that are reduced."""
        source = analysis.axis(source_of(node))
        dims = arguments(node).get("dim")
        if source is None or dims is None:
            return ()
        rank = len(analysis.shape(source_of(node)))
        reduced = {int(dim) % rank for dim in ([dims] if isinstance(dims, int) else dims)}
        return tuple(k for k, dim in enumerate(source.dims) if dim in reduced)


def tie_rows(analysis: Analysis, axis: Axis, over: list[int]) -> Ids:
    """Entries of an axis that differ only in its dimensions `over` go together; the ids of one of each."""
    first = tuple(slice(0, 1) if k in over else slice(None) for k in range(axis.ids.ndim))
    analysis.space.union(axis.ids, axis.ids[first])
    return np.ascontiguousarray(
        axis.ids[first].reshape([n for k, n in enumerate(axis.ids.shape) if k not in over])
    )


class Softmax(_OneTensor):
    """Softmax over positions; over the channel it is a barrier. A constant becomes 1/n, not itself.

    Over one of several channel dimensions its rows stay, and the columns that it compares go together.
    """

    def layout(self, analysis: Analysis, node: fx.Node) -> str | None:
        source = source_of(node)
        axis = analysis.axis(source)
        if axis is None:
            self.untracked(analysis, node)
            return None
        dim = int(arguments(node)["dim"]) % len(analysis.shape(source))
        if dim in axis.dims:
            if axis.ids.ndim == 1:
                return "it normalizes over the channel"
            tie_rows(analysis, axis, [axis.dims.index(dim)])
        analysis.layouts[node] = (axis,)
        return None

    def constant(self, analysis: Analysis, node: fx.Node) -> Flags:
        return np.zeros_like(analysis.constant(source_of(node)))

    def used(self, analysis: Analysis, node: fx.Node, used: Flags) -> None:
        if analysis.axis(source_of(node)) is not None and analysis.axis(node) is not None:
            analysis.use_exactly(source_of(node), used)
        else:
            super().used(analysis, node, used)


class Roll(_OneTensor):
    """roll and flip along positions: the same values elsewhere."""

    def layout(self, analysis: Analysis, node: fx.Node) -> str | None:
        source = source_of(node)
        axis = analysis.axis(source)
        rank = len(analysis.shape(source))
        if axis is None:
            self.untracked(analysis, node)
        elif not arguments(node)["dims"] or {int(d) % rank for d in arguments(node)["dims"]} & set(axis.dims):
            return "it moves the channel"
        else:
            analysis.layouts[node] = (axis,)
        return None


_spatial, _reduction, _softmax, _roll = Spatial(), Reduction(), Softmax(), Roll()
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
            *(f"upsample_{kind}" for kind in ("bicubic2d", "trilinear3d")),
            "_upsample_nearest_exact2d",
            "_upsample_bilinear2d_aa",
            "_upsample_bicubic2d_aa",
        ),
        _spatial,
    ),
    "pad": Padding(),
    "constant_pad_nd": Padding(),
    **dict.fromkeys(("mean", "sum", "amax", "amin"), _reduction),
    **dict.fromkeys(("softmax", "log_softmax", "_softmax"), _softmax),
    **dict.fromkeys(("roll", "flip"), _roll),
}
