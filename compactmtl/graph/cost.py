"""What a model costs: multiply-accumulates and parameters, whole and by layer. The one counter of MACs is here."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import HigherOrderOperator
from torch.utils._python_dispatch import TorchDispatchMode

from compactmtl.graph.borrow import borrowed
from compactmtl.graph.inputs import as_arguments, copied
from compactmtl.graph.threads import one_thread
from compactmtl.graph.whole import OPERATOR, run_whole


@dataclass(frozen=True)
class LayerCost:
    """What one module computes and holds itself, the modules in it apart."""

    macs: int
    parameters: int


@dataclass(frozen=True)
class Cost:
    """A whole model at the given inputs (all of the batch); the MACs of its `layers` add up to its own."""

    macs: int
    parameters: int
    layers: dict[str, LayerCost]


Formula = Callable[[Sequence[Any], Any], int]


class MacCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the MACs of all that runs under it: convolutions, products of matrices, attention, recurrent layers.

    One multiplication with its addition is one MAC, whatever the operands are: weights or activations. Attention is
    q·kᵀ and the weighted sum of v, its softmax apart; masked pairs count. A recurrent layer is its weights, once for
    each step. What works element by element (norms, activations, sums) counts nothing.
    """

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0
        self.by_place: dict[str, int] = {}
        self.places = [""]  # paths of the modules that run now, innermost last

    def take(self) -> int:
        """What was counted since the last call."""
        total, self.total = self.total, 0
        return total

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = dict(kwargs or {})
        if isinstance(func, HigherOrderOperator):  # a branch, or a block under autocast
            return func(*(self._counted(arg) for arg in args), **given)
        name = func._schema.name
        if name == OPERATOR:  # a module that a trace took whole
            with self:
                return run_whole(*args, **given)
        formula = _FORMULAS.get(name)
        if formula is None and name not in _LEAVES:
            # In inference mode operators made of others arrive whole.
            with self:
                parts = func.decompose(*args, **given)
            if parts is not NotImplemented:
                return parts
        result = func(*args, **given)
        if formula is not None:
            macs = formula(_positional(func, args, given), result)
            self.total += macs
            self.by_place[self.places[-1]] = self.by_place.get(self.places[-1], 0) + macs
        return result

    def _counted(self, argument: Any) -> Any:
        """A function that counts what it runs, in the place of one that a higher-order operator calls."""
        if isinstance(argument, Tensor) or not callable(argument):
            return argument

        def run(*args: Any) -> Any:
            with self:
                return argument(*args)

        return run


@one_thread()
def cost(model: nn.Module, example_inputs: Sequence[Any] | Mapping[str, Any]) -> Cost:
    """Count the MACs (see `MacCounter`) and parameters of `model` in eval mode; it is left as it was."""
    counter = MacCounter()
    arguments = copied(as_arguments(model, example_inputs))
    with borrowed(model), _unfused(), _placed(model, counter), counter:
        model(*arguments)
    layers = {}
    for name, module in model.named_modules():
        own = sum(parameter.numel() for parameter in module.parameters(recurse=False))
        macs = counter.by_place.get(name, 0)
        if own or macs:
            layers[name] = LayerCost(macs, own)
    total = sum(parameter.numel() for parameter in model.parameters())
    return Cost(counter.total, total, layers)


@contextmanager
def _unfused() -> Iterator[None]:
    """Without the kernels that run a whole encoder layer of torch.nn at once."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextmanager
def _placed(model: nn.Module, counter: MacCounter) -> Iterator[None]:
    """Tell the counter which module runs."""

    def enter(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: object) -> None:
            counter.places.append(name)

        return hook

    def leave(_module: nn.Module, _args: object, _output: object) -> None:
        counter.places.pop()

    handles = []
    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(enter(name)))
        handles.append(module.register_forward_hook(leave, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _positional(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
    """All arguments in the order of the schema."""
    names = [argument.name for argument in func._schema.arguments]
    return [*args, *(kwargs.get(name) for name in names[len(args) :])]


# -- formulas: of (arguments in order, result) -----------------------------------------------------------


def _convolution(args: Sequence[Any], result: Tensor) -> int:
    weight: Tensor = args[1]
    transposed = bool(args[6])
    positions = args[0] if transposed else result  # at which the whole kernel is applied
    return _over_map(positions, weight)


def _over_map(positions: Tensor, weight: Tensor) -> int:
    spatial = weight.dim() - 2
    batch = positions.shape[0] if positions.dim() == weight.dim() else 1
    return batch * math.prod(positions.shape[-spatial:]) * weight.numel()


def _mm(first: int, second: int) -> Formula:
    """(..., n, k) @ (..., k, m), or a vector on either side."""

    def formula(args: Sequence[Any], _result: Any) -> int:
        left, right = args[first], args[second]
        columns = right.shape[-1] if right.dim() > 1 else 1
        return int(left.numel() * columns)

    return formula


def _attention(args: Sequence[Any], _result: Any) -> int:
    query, key, value = args[:3]
    scores = math.prod(query.shape[:-1]) * key.shape[-2]
    return int(scores * (query.shape[-1] + value.shape[-1]))


def _efficient_attention(args: Sequence[Any], result: Any) -> int:
    # (batch, length, heads, width)
    query, key, value = (tensor.transpose(1, 2) for tensor in args[:3])
    return _attention((query, key, value), result)


def _recurrent(steps: Callable[[Sequence[Any]], Tensor], weights: Callable[[Sequence[Any]], Any]) -> Formula:
    def formula(args: Sequence[Any], _result: Any) -> int:
        x = steps(args)  # (steps, batch, features) or packed (steps of all, features)
        matrices = [w for w in weights(args) if isinstance(w, Tensor) and w.dim() == 2]
        return math.prod(x.shape[:-1]) * sum(w.numel() for w in matrices)

    return formula


def _trilinear(args: Sequence[Any], _result: Any) -> int:
    """The sizes of all dimensions, those that are expanded counted once."""
    *tensors, first, second, third = args[:6]
    sizes: dict[int, int] = {}
    rank = max(t.dim() + len(e) for t, e in zip(tensors, (first, second, third), strict=True))
    for tensor, expanded in zip(tensors, (first, second, third), strict=True):
        held = [dim for dim in range(rank) if dim not in expanded]
        sizes.update(zip(held, tensor.shape, strict=True))
    return math.prod(sizes.values())


def _deformed(args: Sequence[Any], result: Tensor) -> int:
    return _over_map(result, args[1])


_FORMULAS: dict[str, Formula] = {
    **{f"aten::{name}": _convolution for name in ("convolution", "convolution_overrideable", "_convolution")},
    **{f"aten::{name}": _mm(0, 1) for name in ("mm", "bmm", "mv", "dot", "vdot", "_int_mm", "_scaled_mm")},
    **{f"aten::{name}": _mm(1, 2) for name in ("addmm", "addmv", "addbmm", "baddbmm", "_addmm_activation")},
    **{f"aten::{name}_": _mm(1, 2) for name in ("addmm", "addmv", "addbmm", "baddbmm")},
    **{
        f"aten::_scaled_dot_product_{name}": _attention
        for name in (
            "flash_attention",
            "flash_attention_for_cpu",
            "efficient_attention",
            "cudnn_attention",
            "fused_attention_overrideable",
            "attention_math_for_mps",
        )
    },
    "aten::_efficient_attention_forward": _efficient_attention,
    "aten::_flash_attention_forward": _efficient_attention,
    "aten::mkldnn_rnn_layer": _recurrent(lambda args: args[0], lambda args: args[1:5]),
    "aten::_cudnn_rnn": _recurrent(lambda args: args[0], lambda args: args[1]),
    "aten::miopen_rnn": _recurrent(lambda args: args[0], lambda args: args[1]),
    "aten::_trilinear": _trilinear,
    "torchvision::deform_conv2d": _deformed,
}
_LEAVES = frozenset({"prim::device"})
