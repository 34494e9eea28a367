"""Pooling, resizing and means over positions: coordinates pass, a constant stays one where nothing is padded."""

from __future__ import annotations

import numpy as np
from torch import fx

from compactmtl.graph.analysis import Analysis, Rule
from compactmtl.graph.calls import arguments, operator, source_of
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


class Reduction(_OneTensor):
    """mean, amax, amin and the like over dimensions that are not the channel's: a constant stays one."""

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
                    if self._over_channel(analysis, node, axis, reduced):
                        return None
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

    def _over_channel(self, analysis: Analysis, node: fx.Node, axis: Axis, reduced: set[int]) -> bool:
        """Over all of the channel, and maybe positions: zeros add nothing, but that a mean counts them (see `Wide`)."""
        if axis.dim is None or len(analysis.layouts[source_of(node)]) > 1:
            return False
        if not self._ignores_zeros(node):
            if operator(node) != "mean":
                return False
            analysis.counted[node] = axis.ids, "it reduces over the channel"
        analysis.layouts[node] = ()
        return True

    def _ignores_zeros(self, node: fx.Node) -> bool:
        """Whether it gives the same with and without entries that are zero."""
        return False

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
        if source is not None and len(gone) == source.ids.ndim:
            analysis.use_exactly(source_of(node), np.ones(1, dtype=bool))
        elif source is None or not gone or analysis.axis(node) is None:
            super().used(analysis, node, used)
        else:
            spread = np.broadcast_to(np.expand_dims(used, gone), source.ids.shape)
            analysis.use(source_of(node), spread)

    @staticmethod
    def _gone(analysis: Analysis, node: fx.Node) -> tuple[int, ...]:
        """Positions, among the dimensions of the source's axis, of those that are reduced."""
        source = analysis.axis(source_of(node))
        dims = arguments(node).get("dim")
        if source is None:
            return ()
        if dims is None or dims == []:
            return tuple(range(source.ids.ndim))
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


class Sum(Reduction):
    """Reductions whose result for a constant grows with the number of positions: only zeros pass.

    The rows of a channel that has several dimensions are always as many: over them alone a constant passes.
    """

    def constant(self, analysis: Analysis, node: fx.Node) -> Flags:
        if self._of_rows_alone(analysis, node):
            return super().constant(analysis, node)
        return np.asarray(analysis.zero(source_of(node)).all(axis=self._gone(analysis, node)), dtype=bool)

    def used(self, analysis: Analysis, node: fx.Node, used: Flags) -> None:
        if self._of_rows_alone(analysis, node) or analysis.axis(node) is None:
            super().used(analysis, node, used)
        else:
            _use_unless_zero(analysis, node, np.expand_dims(used, self._gone(analysis, node)))

    def _ignores_zeros(self, node: fx.Node) -> bool:
        given = arguments(node)
        order = given.get("ord", given.get("p", 2))
        return operator(node) == "sum" or (operator(node) != "prod" and (order is None or float(order) > 0))

    def _of_rows_alone(self, analysis: Analysis, node: fx.Node) -> bool:
        dims = arguments(node).get("dim")
        count = 1 if isinstance(dims, int) else len(dims or ())
        return 0 < count == len(self._gone(analysis, node))


class Opaque(Reduction):
    """Reductions that say nothing of a constant: the place of the largest value, the log of a sum."""

    def constant(self, analysis: Analysis, node: fx.Node) -> Flags:
        return np.zeros_like(super().constant(analysis, node))


def _use_unless_zero(analysis: Analysis, node: fx.Node, used: Flags) -> None:
    source = source_of(node)
    if analysis.axis(source) is not None and analysis.axis(node) is not None:
        analysis.use_exactly(source, used)
    elif analysis.axis(source) is not None:
        analysis.use_all(source)


class Pair:
    """Operators that give values and their places, along positions: max_pool2d_with_indices, max over a dimension.

    Their parts are read by getitem.
    """

    def layout(self, analysis: Analysis, node: fx.Node) -> str | None:
        source = source_of(node)
        axis = analysis.axis(source)
        analysis.layouts[node] = ()
        if axis is None:
            analysis.pin(source)
            return None
        given = arguments(node)
        rank = len(analysis.shape(source))
        if "pool" in operator(node):
            reduced, gone = set(range(rank - Spatial.positions(node), rank)), set[int]()
        elif given.get("dim") is None:
            return "it flattens the channel"
        else:
            reduced = {int(given["dim"]) % rank}
            gone = reduced if given.get("keepdim") is False else set()
        if reduced & set(axis.dims):
            return "it reorders or reduces the channel"
        dims = tuple(dim - sum(other < dim for other in gone) for dim in axis.dims)
        analysis.layouts[node] = (Axis(dims, axis.ids),)
        return None

    def constant(self, analysis: Analysis, node: fx.Node) -> Flags:
        return np.zeros(0, dtype=bool)

    def used(self, analysis: Analysis, node: fx.Node, used: Flags) -> None:
        return None  # its parts say what they use


class Unpool:
    """max_unpool: values put at places; a zero needs no place."""

    def layout(self, analysis: Analysis, node: fx.Node) -> str | None:
        values, places = self._operands(node)
        one, other = analysis.axis(values), analysis.axis(places)
        if one is None or other is None or one.dims != other.dims or one.dim != 1:
            return "the channels of its values and their places are not tracked alike"
        analysis.space.union(one.ids, other.ids)
        analysis.layouts[node] = (one,)
        return None

    def constant(self, analysis: Analysis, node: fx.Node) -> Flags:
        return analysis.zero(self._operands(node)[0])

    def used(self, analysis: Analysis, node: fx.Node, used: Flags) -> None:
        values, places = self._operands(node)
        analysis.use_exactly(values, used)
        analysis.use(places, used & ~analysis.zero(values))

    @staticmethod
    def _operands(node: fx.Node) -> tuple[fx.Node, fx.Node]:
        values, places = node.args[0], node.args[1]
        assert isinstance(values, fx.Node) and isinstance(places, fx.Node)
        return values, places


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
        _use_unless_zero(analysis, node, used)


def _dims(node: fx.Node) -> list[int]:
    """The dimensions that a call names; none where it means all."""
    given = arguments(node)
    return [int(given["dim"])] if "dim" in given else [int(dim) for dim in given["dims"]]


class Roll(_OneTensor):
    """roll and rot90 along positions: the same values elsewhere."""

    def layout(self, analysis: Analysis, node: fx.Node) -> str | None:
        source = source_of(node)
        axis = analysis.axis(source)
        rank = len(analysis.shape(source))
        if axis is None:
            self.untracked(analysis, node)
        elif not (dims := _dims(node)) or {dim % rank for dim in dims} & set(axis.dims):
            return "it moves the channel"
        else:
            analysis.layouts[node] = (axis,)
        return None


class Cumulative(Roll):
    """cumsum, cumprod along positions: only zeros stay what they are."""

    def constant(self, analysis: Analysis, node: fx.Node) -> Flags:
        return analysis.zero(source_of(node))

    def used(self, analysis: Analysis, node: fx.Node, used: Flags) -> None:
        _use_unless_zero(analysis, node, used)


_spatial, _reduction, _sum, _opaque = Spatial(), Reduction(), Sum(), Opaque()
_softmax, _roll, _cumulative, _pair = Softmax(), Roll(), Cumulative(), Pair()
RULES: dict[str, Rule] = {
    **dict.fromkeys(
        (
            *(f"{kind}_pool{n}d" for kind in ("max", "avg", "adaptive_avg") for n in (1, 2, 3)),
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
    **dict.fromkeys(("mean", "amax", "amin", "var", "std"), _reduction),
    **dict.fromkeys(("sum", "prod", "linalg_vector_norm", "norm"), _sum),
    **dict.fromkeys(("logsumexp", "argmax", "argmin"), _opaque),
    **dict.fromkeys(("cumsum", "cumprod"), _cumulative),
    **dict.fromkeys(
        (
            *(
                f"{kind}_pool{n}d{end}"
                for kind, end in (("max", "_with_indices"), ("adaptive_max", ""))
                for n in (1, 2, 3)
            ),
            *("max", "min", "sort", "topk", "kthvalue", "median", "mode", "cummax", "cummin"),
        ),
        _pair,
    ),
    **dict.fromkeys(("max_unpool2d", "max_unpool3d"), Unpool()),
    **dict.fromkeys(("softmax", "log_softmax", "_softmax"), _softmax),
    **dict.fromkeys(("roll", "rot90"), _roll),
}
