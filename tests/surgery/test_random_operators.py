"""Property: whatever operator of ATen lies between two layers, the compact network is the masked one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from compactmtl.errors import SurgeryError
from compactmtl.surgery import compact
from tests.support.masking import kill

TOLERANCE = 1e-9  # float64: sums in another order
WIDTH = 8
# Drawing random numbers, reading what was never written, and asking for other storage says nothing of channels.
_LEFT_OUT = (
    "rand",
    "bernoulli",
    "empty",
    "dropout",
    "resize",
    "set_",
    "sparse",
    "cudnn",
    "mkldnn",
    "quantize",
    "_",
)


def _overloads() -> Iterator[Any]:
    """All overloads that give a tensor of tensors, sizes and numbers alone, out of place."""
    every = torch._C._dispatch_get_all_op_names()  # also those that nothing has loaded yet
    for name in sorted({full[6:].partition(".")[0] for full in every if full.startswith("aten::")}):
        if name.startswith(_LEFT_OUT) or name.endswith("_") or any(part in name for part in _LEFT_OUT[:-1]):
            continue
        packet = getattr(torch.ops.aten, name)
        for overload in packet.overloads():
            target = getattr(packet, overload)
            schema = target._schema
            plain = len(schema.returns) == 1 and str(schema.returns[0].type) == "Tensor"
            if (
                plain
                and not schema.is_mutable
                and _family(target)
                and str(schema.arguments[0].type) == "Tensor"
            ):
                yield target


def _family(target: Any) -> bool:
    """Whether an operator is pointwise, a reduction or scan over dimensions, a view, or an index."""
    names = {argument.name for argument in target._schema.arguments}
    pointwise = torch.Tag.pointwise in target.tags
    view = target._schema.arguments[0].alias_info is not None if target._schema.arguments else False
    return pointwise or view or bool(names & {"dim", "dims", "index", "indices", "diagonal", "offset"})


class Reads(nn.Module):
    """A layer of 8 channels, an operator, and a linear layer over a dimension of 8 that is left, or over all."""

    def __init__(self, target: Any, arguments: list[Any], sample: Tensor) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, WIDTH, 1, dtype=sample.dtype)
        self.other = nn.Conv2d(3, WIDTH, 1, dtype=sample.dtype)
        self.target, self.arguments = target, arguments
        result = self._called(sample)
        if not isinstance(result, Tensor) or result.dim() == 0 or result.numel() == 0:
            raise ValueError("nothing to read")
        dims = [dim for dim, size in enumerate(result.shape) if size == WIDTH]
        self.dim = dims[0] if dims else -1
        self.last = nn.Linear(result.shape[self.dim], 3)

    def _called(self, x: Tensor) -> Tensor:
        one, other = self.first(x), self.other(x)
        given = [other if value is Tensor else value for value in self.arguments]
        result: Tensor = self.target(one, *given)
        return result

    def forward(self, x: Tensor) -> Tensor:
        y = self._called(x)
        y = torch.view_as_real(y).sum(-1) if y.is_complex() else y.to(x.dtype)
        out: Tensor = self.last(y.movedim(self.dim, -1))
        return out


def _argument(argument: Any, draw: Any, length: int) -> Any:
    """A value for an argument by its type and name."""
    kind, name = str(argument.type), argument.name
    if argument.has_default_value() and draw(2):
        return argument.default_value
    if kind == "Tensor":
        return torch.arange(4) if name in ("index", "indices") else Tensor
    if kind in ("int", "SymInt", "Optional[int]"):
        return draw(4) if name in ("dim", "dim0", "dim1", "dim2", "axis0", "axis1", "start_dim") else draw(3)
    if kind.startswith("List[int]") or kind.startswith("List[SymInt]"):
        count = 1 + draw(2)
        dims = torch.randperm(4, generator=torch.Generator().manual_seed(draw(1000)))[:count].tolist()
        return dims if "dim" in name else [1 + draw(2) for _ in range(count)]
    if kind in ("number", "Scalar", "float", "Optional[number]", "Optional[float]"):
        return (0.5, 2.0, 1.0)[draw(3)]
    if kind == "bool":
        return bool(draw(2))
    if kind.startswith("Optional"):
        return None
    raise ValueError(f"no value for {kind} {name}")


OPERATORS = list(_overloads())


def _model(target: Any, seed: int, sample: Tensor) -> Reads | None:
    generator = torch.Generator().manual_seed(seed)

    def draw(count: int) -> int:
        return int(torch.randint(count, (1,), generator=generator))

    torch.manual_seed(seed)
    try:
        arguments = [_argument(one, draw, 4) for one in target._schema.arguments[1:] if not one.kwarg_only]
        model = Reads(target, arguments, sample).double().eval()
        kill(model.first, zero=[1, 4], constant=[6] if draw(2) else [])
        kill(model.other, zero=[1, draw(WIDTH)])
        if draw(2) and model.last.in_features == WIDTH:
            kill(model.last, unread=[2, 4])
        finite = bool(torch.isfinite(model(sample)).all())
    except Exception:  # arguments that the operator does not take
        return None
    return model if finite else None


def _held(position: int, seed: int) -> bool:
    """Whether an operator with drawn arguments was tried, and the compact network is the masked one."""
    sample = torch.randn(2, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    target = OPERATORS[position % len(OPERATORS)]
    model = _model(target, seed, sample)
    if model is None:
        return False
    try:
        small = compact(model, (sample,), tolerance=TOLERANCE).model
    except SurgeryError:  # said in words: it cannot be traced, or its size depends on values
        return False
    fresh = torch.randn(3, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + 1))
    with torch.no_grad():
        try:
            expected = model(fresh)
        except Exception:  # sizes that were written out for the example's batch
            fresh = fresh[:2]
            expected = model(fresh)
        found = small(fresh)
    same = torch.isfinite(expected)
    scale = float(expected[same].abs().max()) if bool(same.any()) else 1.0
    assert torch.equal(same, torch.isfinite(found)), target
    assert float((expected - found)[same].abs().max()) <= TOLERANCE * (scale or 1.0), (
        target,
        model.arguments,
    )
    return True


def test_there_are_operators_of_every_family() -> None:
    names = {target._schema.name.removeprefix("aten::") for target in OPERATORS}
    assert len(names) > 200
    assert {"erfinv", "logcumsumexp", "unfold", "index_select", "amax", "movedim", "take_along_dim"} <= names


@pytest.mark.slow
@pytest.mark.timeout(600)
@settings(
    max_examples=60, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.filter_too_much]
)
@given(position=st.integers(0, 10_000), seed=st.integers(0, 1000))
def test_compact_equals_masked_whatever_lies_between(position: int, seed: int) -> None:
    assume(_held(position, seed))
