"""What surgery cannot work with is said clearly, and the caller's model is as it was."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compactmtl.errors import CompactError, SurgeryError
from compactmtl.surgery import compact
from tests.support.masking import image, kill


class Small(nn.Module):
    offset: Tensor

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.last = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 2, 1)
        self.register_buffer("offset", torch.zeros(1))

    def forward(self, x: Tensor) -> Any:
        return self.last(self.norm(self.first(x)))


class Branching(Small):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x) if x.sum() > 0 else x


class Text(Small):
    def forward(self, x: Tensor) -> Any:
        return "a string"


class Parcel:
    def __init__(self, content: Tensor) -> None:
        self.content = content


class Parcels(Small):
    def forward(self, x: Tensor) -> Any:
        return Parcel(super().forward(x))


class Random(Small):
    def forward(self, x: Tensor) -> Any:
        return nn.functional.dropout(super().forward(x), training=True)


class Undefined(Small):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x) * float("nan")


class Locked(Small):
    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()


def _poisoned(name: str, value: float) -> Small:
    model = Small()
    with torch.no_grad():
        model.state_dict()[name].view(-1)[0] = value
    return model


Case = tuple[Callable[[], Any], Sequence[Any], str]
CASES: dict[str, Case] = {
    "no module": (lambda: "resnet18", [image()], "expected an nn.Module, found str"),
    "branches on values": (Branching, [image().float()], "Branching could not be traced"),
    "returns text": (Text, [image().float()], "Text returns something other than tensors"),
    "returns an object": (Parcels, [image().float()], "Parcels could not be traced"),
    "gives another output at every run": (Random, [image().float()], "another output at every run"),
    "gives NaN": (Undefined, [image().float()], "output 0 of Undefined holds nothing finite"),
    "cannot be copied": (Locked, [image().float()], "Locked could not be copied: TypeError: cannot pickle"),
    "NaN weight": (
        lambda: _poisoned("first.weight", float("nan")),
        [image().float()],
        r"parameter first\.weight",
    ),
    "infinite weight": (
        lambda: _poisoned("last.bias", float("inf")),
        [image().float()],
        r"parameter last\.bias",
    ),
    "NaN buffer": (
        lambda: _poisoned("norm.running_var", float("nan")),
        [image().float()],
        r"buffer norm\.running_var",
    ),
    "on the meta device": (
        lambda: Small().to("meta"),
        [image().float()],
        r"parameter first\.weight has no values",
    ),
    "lazy": (
        lambda: nn.Sequential(nn.LazyConv2d(4, 1)),
        [image().float()],
        r"parameter 0\.weight has no values",
    ),
    "a bare tensor": (Small, image().float(), "list or tuple, found a Tensor"),  # type: ignore[dict-item]
    "no inputs": (Small, [], "hold no tensor"),
    "too many inputs": (Small, [image().float()] * 2, "does not run on its example inputs: TypeError"),
    "wrong channels": (Small, [torch.zeros(1, 4, 8, 8)], "does not run on its example inputs: RuntimeError"),
    "wrong rank": (Small, [torch.zeros(5)], "does not run on its example inputs"),
}


def _state(model: Any) -> list[Any]:
    """All of a model that surgery could touch."""
    if not isinstance(model, nn.Module):
        return []
    values = (
        []
        if any(v.is_meta or nn.parameter.is_lazy(v) for v in model.parameters())
        else [
            (name, value.clone(), value.requires_grad)
            for name, value in model.state_dict(keep_vars=True).items()
        ]
    )
    return [
        *values,
        *((name, module.training, len(module._forward_hooks)) for name, module in model.named_modules()),
    ]


def _same(before: list[Any], after: list[Any]) -> bool:
    return len(before) == len(after) and all(
        all(
            torch.equal(a.nan_to_num(7), b.nan_to_num(7)) if isinstance(a, Tensor) else a == b
            for a, b in zip(one, other, strict=True)
        )
        for one, other in zip(before, after, strict=True)
    )


@pytest.mark.parametrize("case", CASES)
@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature:UserWarning")
def test_clear_error_and_untouched_model(case: str) -> None:
    build, inputs, message = CASES[case]
    model = build()
    if isinstance(model, Small):
        model.train()
        model.norm.eval()
        model.last.requires_grad_(False)
    before = _state(model)
    with pytest.raises(SurgeryError, match=message) as caught:
        compact(model, inputs)
    assert caught.value.hint and "\n" not in caught.value.message
    assert _same(before, _state(model))


def test_infinite_buffer_is_a_mask_and_no_fault() -> None:
    class Masked(Small):
        def forward(self, x: Tensor) -> Any:
            return super().forward(x).flatten(2).transpose(1, 2) + torch.where(
                self.offset > 1, self.offset, 0.0
            )

    model = Masked()
    model.offset = torch.tensor([float("-inf")])
    kill(model.first, zero=[0])
    compact(model, (image().float(),))


def test_outputs_with_infinities_are_compared() -> None:
    class Causal(Small):
        def forward(self, x: Tensor) -> Any:
            y = super().forward(x)
            return y.masked_fill(
                torch.ones(y.shape[-1], y.shape[-1], dtype=torch.bool).triu(1), float("-inf")
            )

    model = Causal()
    kill(model.first, zero=[0])
    with torch.no_grad():
        model.norm.bias[0] = 0
    result: Any = compact(model, (image().float(),), join=False)
    assert result.model.first.out_channels == 7
    assert result.report.proof.passed and result.report.proof.max_relative_error < 1e-9


def test_casts_on_the_way_are_passed_over_in_the_proof() -> None:
    class Single(Small):
        def forward(self, x: Tensor) -> Any:
            return torch.mm(super().forward(x.float()).flatten(1), torch.ones(128, 1, dtype=torch.float32))

    model = Single()
    kill(model.first, zero=[0])
    with torch.no_grad():
        model.norm.bias[0] = 0
    result: Any = compact(model, (image().float(),), join=False)
    assert result.model.first.out_channels == 7
    assert (result.report.proof.dtype, result.report.proof.tolerance) == ("float64", 1e-5)


def test_model_that_refuses_float64_is_proved_in_its_own_type() -> None:
    class Single(Small):
        def forward(self, x: Tensor) -> Any:
            if x.dtype is torch.float64:
                raise TypeError("no float64")
            return super().forward(x)

    model = Single()
    kill(model.first, zero=[0])
    with torch.no_grad():
        model.norm.bias[0] = 0
    result: Any = compact(model, (image().float(),), join=False)
    assert result.model.first.out_channels == 7
    assert (result.report.proof.dtype, result.report.proof.tolerance) == ("float32", 1e-4)


@pytest.mark.parametrize("align", [0, -8, 2.5, True, "8"])
def test_align_is_a_whole_number_of_at_least_one(align: Any) -> None:
    with pytest.raises(CompactError, match="align"):
        compact(Small(), (image().float(),), align=align)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("tolerance", -1.0),
        ("tolerance", float("nan")),
        ("tolerance", "1e-3"),
        ("tolerance", True),
        ("gather", "no"),
        ("join", None),
        ("table", "faces.json"),
    ],
)
def test_an_option_of_another_kind_is_named(option: str, value: Any) -> None:
    """Text would be true, and a tolerance that nothing is within would be said of the model."""
    with pytest.raises(CompactError, match=f"^{option}"):
        compact(Small(), (image().float(),), **{option: value})
