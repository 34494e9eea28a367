"""Pooling, resizing and means over positions: coordinates pass, a constant stays one where nothing is padded."""

from __future__ import annotations

import numpy as np
from torch import fx

from compactmtl.graph.calls import arguments, operator, source_of
from compactmtl.graph.effect import ALL, Counted, Effect, Pin, Use, Uses
from compactmtl.graph.rule import Rule
from compactmtl.graph.space import Axis, Flags, Ids
from compactmtl.graph.view import View

OF_VALUES = ("var_mean", "std_mean", "aminmax")


class _OneTensor:
    """Operators that read one tensor whose coordinates they keep."""

    def untracked(self, view: View, node: fx.Node) -> Effect:
        return Effect(pins=view.pins(source_of(node)))

    def constant(self, view: View, node: fx.Node) -> Flags:
        return view.constant(source_of(node))

    def used(self, view: View, node: fx.Node, used: Flags) -> Uses:
        return [Use(source_of(node), ALL if view.axis(node) is None else used)]


class Spatial(_OneTensor):
    """Operators on each channel's positions, which are the last dimensions."""

    def layout(self, view: View, node: fx.Node) -> Effect | str:
        axis = view.axis(source_of(node))
        if axis is None:
            return self.untracked(view, node)
        first = len(view.shape(source_of(node))) - self.positions(node)
        if any(dim >= first for dim in axis.dims):
            return "the channel is one of the dimensions that it pools"
        return Effect((axis,))

    @staticmethod
    def positions(node: fx.Node) -> int:
        """How many trailing dimensions are positions."""
        name = operator(node)
        return 1 if "1d" in name else 3 if "3d" in name else 2

    def constant(self, view: View, node: fx.Node) -> Flags:
        padding = arguments(node).get("padding", 0)
        padded = any(padding) if isinstance(padding, (list, tuple)) else bool(padding)
        if padded and "avg" in operator(node):
            return view.zero(source_of(node))
        return view.constant(source_of(node))


class Reduction(_OneTensor):
    """mean, amax, amin and the like over dimensions that are not the channel's: a constant stays one."""

    def layout(self, view: View, node: fx.Node) -> Effect | str:
        given = arguments(node)
        source = source_of(node)
        layout = view.layout(source)
        rank = len(view.shape(source))
        dims = given.get("dim")
        chosen = range(rank) if dims is None or dims == [] else [dims] if isinstance(dims, int) else dims
        reduced = {int(dim) % rank for dim in chosen} if rank else set()
        kept: list[Axis] = []
        pins: list[Pin] = []
        for axis in layout:
            if reduced & set(axis.dims):
                if not view.is_computed(node):
                    whole = self._over_channel(view, node, axis)
                    return self._over_rows(view, node, axis, reduced) if whole is None else whole
                pins.append(Pin(axis.ids))
                continue
            shift = [
                0 if given.get("keepdim") else sum(other < dim for other in reduced) for dim in axis.dims
            ]
            kept.append(Axis(tuple(dim - by for dim, by in zip(axis.dims, shift, strict=True)), axis.ids))
        if len(layout) > 1 and not view.is_computed(node):
            return self.untracked(view, node)
        return Effect(tuple(kept), pins=tuple(pins))

    def _over_channel(self, view: View, node: fx.Node, axis: Axis) -> Effect | None:
        """Over all of the channel, and maybe positions: zeros add nothing, but that a mean counts them (see `FullWidth`)."""
        if axis.dim is None or len(view.layout(source_of(node))) > 1:
            return None
        if self._ignores_zeros(node):
            return Effect()
        if operator(node) != "mean":
            return None
        return Effect(counted=Counted(axis.ids, "it reduces over the channel"))

    def _ignores_zeros(self, node: fx.Node) -> bool:
        """Whether it gives the same with and without entries that are zero."""
        return False

    def _of_each_row(self, view: View, node: fx.Node) -> bool:
        """Whether it reduces the columns of rows of channels, and zeros among them add nothing."""
        source = view.axis(source_of(node))
        return (
            source is not None
            and source.ids.ndim == 2
            and self._gone(view, node) == (1,)
            and self._ignores_zeros(node)
        )

    def _over_rows(self, view: View, node: fx.Node, axis: Axis, reduced: set[int]) -> Effect | str:
        """Over one of several channel dimensions: what it sums goes together, and all rows stay."""
        remaining = [k for k, dim in enumerate(axis.dims) if dim not in reduced]
        if self._of_each_row(view, node):
            # What it gives for a row, such as the length of a head's vector, is there for as long as any of the row is.
            rows = view.fresh(len(axis.ids))
            shift = 0 if arguments(node).get("keepdim") else sum(other < axis.dims[0] for other in reduced)
            unit = np.concatenate([axis.ids, rows[:, None]], axis=1)
            return Effect(
                (Axis((axis.dims[0] - shift,), rows),), units=(unit,), followers=((rows, axis.ids),)
            )
        if not remaining or arguments(node).get("keepdim") or len(view.layout(source_of(node))) > 1:
            return "it reduces over the channel"
        rows = one_of_each(axis, [k for k in range(len(axis.dims)) if k not in remaining])
        dims = tuple(axis.dims[k] - sum(other < axis.dims[k] for other in reduced) for k in remaining)
        ids = np.ascontiguousarray(rows.reshape([axis.ids.shape[k] for k in remaining]))
        return Effect((Axis(dims, ids),), unions=((axis.ids, rows),))

    def constant(self, view: View, node: fx.Node) -> Flags:
        gone = self._gone(view, node)
        return np.asarray(view.constant(source_of(node)).all(axis=gone), dtype=bool)

    def used(self, view: View, node: fx.Node, used: Flags) -> Uses:
        source, gone = view.axis(source_of(node)), self._gone(view, node)
        if source is not None and len(gone) == source.ids.ndim:
            return [Use(source_of(node), exact=True)]
        if source is None or not gone or view.axis(node) is None:
            return super().used(view, node, used)
        return [Use(source_of(node), np.expand_dims(used, gone))]

    @staticmethod
    def _gone(view: View, node: fx.Node) -> tuple[int, ...]:
        """Positions, among the dimensions of the source's axis, of those that are reduced."""
        source = view.axis(source_of(node))
        dims = arguments(node).get("dim")
        if source is None:
            return ()
        if dims is None or dims == []:
            return tuple(range(source.ids.ndim))
        rank = len(view.shape(source_of(node)))
        reduced = {int(dim) % rank for dim in ([dims] if isinstance(dims, int) else dims)}
        return tuple(k for k, dim in enumerate(source.dims) if dim in reduced)


def one_of_each(axis: Axis, over: list[int]) -> Ids:
    """Of entries that differ only in the axis's dimensions `over`, the ids of the first, with size 1 there."""
    return axis.ids[tuple(slice(0, 1) if k in over else slice(None) for k in range(axis.ids.ndim))]


class Sum(Reduction):
    """Reductions whose result for a constant grows with the number of positions: only zeros pass.

    The rows of a channel that has several dimensions are always as many: over them alone a constant passes.
    """

    def constant(self, view: View, node: fx.Node) -> Flags:
        if self._of_each_row(view, node):
            return np.asarray(view.zero(source_of(node)).all(axis=1), dtype=bool)
        if self._of_rows_alone(view, node):
            return super().constant(view, node)
        return np.asarray(view.zero(source_of(node)).all(axis=self._gone(view, node)), dtype=bool)

    def used(self, view: View, node: fx.Node, used: Flags) -> Uses:
        if self._of_each_row(view, node) and view.axis(node) is not None:
            return _used_unless_zero(view, node, used[:, None])
        if self._of_rows_alone(view, node) or view.axis(node) is None:
            return super().used(view, node, used)
        return _used_unless_zero(view, node, np.expand_dims(used, self._gone(view, node)))

    def _ignores_zeros(self, node: fx.Node) -> bool:
        given = arguments(node)
        order = given.get("ord", given.get("p", 2))
        return operator(node) == "sum" or (operator(node) != "prod" and (order is None or float(order) > 0))

    def _of_rows_alone(self, view: View, node: fx.Node) -> bool:
        dims = arguments(node).get("dim")
        count = 1 if isinstance(dims, int) else len(dims or ())
        return 0 < count == len(self._gone(view, node))


class Opaque(Reduction):
    """Reductions that say nothing of a constant: the place of the largest value, the log of a sum."""

    def constant(self, view: View, node: fx.Node) -> Flags:
        return np.zeros_like(super().constant(view, node))


def _used_unless_zero(view: View, node: fx.Node, used: Flags) -> Uses:
    source = source_of(node)
    return [Use(source, used, exact=True) if view.axis(node) is not None else Use(source)]


class Pair:
    """Operators that give values and their places, along positions: max_pool2d_with_indices, max over a dimension.

    Their parts are read by getitem. Those of `OF_VALUES` are both values.
    """

    def layout(self, view: View, node: fx.Node) -> Effect | str:
        source = source_of(node)
        axis = view.axis(source)
        if axis is None:
            return Effect(pins=view.pins(source), is_pair=True)
        given = arguments(node)
        rank = len(view.shape(source))
        if "pool" in operator(node):
            reduced, gone = set(range(rank - Spatial.positions(node), rank)), set[int]()
        elif given.get("dim") in (None, []):
            return "it flattens the channel"
        else:
            chosen = given["dim"] if isinstance(given["dim"], (list, tuple)) else [given["dim"]]
            reduced = {int(dim) % rank for dim in chosen}
            gone = reduced if given.get("keepdim") is False else set()
        if reduced & set(axis.dims):
            return "it reorders or reduces the channel"
        dims = tuple(dim - sum(other < dim for other in gone) for dim in axis.dims)
        return Effect((Axis(dims, axis.ids),), is_pair=True)

    def constant(self, view: View, node: fx.Node) -> Flags:
        return np.zeros(0, dtype=bool)

    def used(self, view: View, node: fx.Node, used: Flags) -> Uses:
        return ()  # its parts say what they use


class Unpool:
    """max_unpool: values put at places; a zero needs no place."""

    def layout(self, view: View, node: fx.Node) -> Effect | str:
        values, places = self._operands(node)
        one, other = view.axis(values), view.axis(places)
        if one is None or other is None or one.dims != other.dims or one.dim != 1:
            return "the channels of its values and their places are not tracked alike"
        return Effect((one,), unions=((one.ids, other.ids),))

    def constant(self, view: View, node: fx.Node) -> Flags:
        return view.zero(self._operands(node)[0])

    def used(self, view: View, node: fx.Node, used: Flags) -> Uses:
        values, places = self._operands(node)
        return [Use(values, used, exact=True), Use(places, used & ~view.zero(values))]

    @staticmethod
    def _operands(node: fx.Node) -> tuple[fx.Node, fx.Node]:
        values, places = node.args[0], node.args[1]
        assert isinstance(values, fx.Node) and isinstance(places, fx.Node)
        return values, places


class Softmax(_OneTensor):
    """Softmax over positions; over the channel it is a barrier. A constant becomes 1/n, not itself.

    Over one of several channel dimensions its rows stay, and the columns that it compares go together.
    """

    def layout(self, view: View, node: fx.Node) -> Effect | str:
        source = source_of(node)
        axis = view.axis(source)
        if axis is None:
            return self.untracked(view, node)
        dim = int(arguments(node)["dim"]) % len(view.shape(source))
        if dim not in axis.dims:
            return Effect((axis,))
        if axis.ids.ndim == 1:
            return "it normalizes over the channel"
        return Effect((axis,), unions=((axis.ids, one_of_each(axis, [axis.dims.index(dim)])),))

    def constant(self, view: View, node: fx.Node) -> Flags:
        return np.zeros_like(view.constant(source_of(node)))

    def used(self, view: View, node: fx.Node, used: Flags) -> Uses:
        return _used_unless_zero(view, node, used)


def _dims(node: fx.Node) -> list[int]:
    """The dimensions that a call names; none where it means all."""
    given = arguments(node)
    return [int(given["dim"])] if "dim" in given else [int(dim) for dim in given["dims"]]


class Roll(_OneTensor):
    """roll and rot90 along positions: the same values elsewhere."""

    def layout(self, view: View, node: fx.Node) -> Effect | str:
        source = source_of(node)
        axis = view.axis(source)
        rank = len(view.shape(source))
        if axis is None:
            return self.untracked(view, node)
        dims = _dims(node)
        if not dims or {dim % rank for dim in dims} & set(axis.dims):
            return "it moves the channel"
        return Effect((axis,))


class Cumulative(Roll):
    """cumsum, cumprod along positions: only zeros stay what they are."""

    def constant(self, view: View, node: fx.Node) -> Flags:
        return view.zero(source_of(node))

    def used(self, view: View, node: fx.Node, used: Flags) -> Uses:
        return _used_unless_zero(view, node, used)


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
            *("max", "min", "sort", "topk", "kthvalue", "median", "mode", "cummax", "cummin", *OF_VALUES),
        ),
        _pair,
    ),
    **dict.fromkeys(("max_unpool2d", "max_unpool3d"), Unpool()),
    **dict.fromkeys(("softmax", "log_softmax", "_softmax"), _softmax),
    **dict.fromkeys(("roll", "rot90"), _roll),
}
