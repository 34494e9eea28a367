"""What a target allows, and the tolerances that follow from its precision."""

from __future__ import annotations

import math

import pytest
from pydantic import ValidationError

from compactmtl.config.target import OnnxConfig, ParityConfig, Target


@pytest.mark.parametrize(
    ("precision", "opset", "expected"), [("fp32", 18, 1e-4), ("fp16", 18, 1e-2), ("bf16", 22, 8e-2)]
)
def test_tolerance_follows_the_precision(precision: str, opset: int, expected: float) -> None:
    target = Target.model_validate({"backend": "openvino", "precision": precision, "onnx": {"opset": opset}})
    assert target.tolerance("any") == expected


def test_int8_values_are_no_gate_unless_asked() -> None:
    target = Target(backend="onnxruntime", precision="int8")
    assert math.isinf(target.tolerance("depth"))
    bounded = target.model_copy(update={"parity": ParityConfig(tolerance=0.2, tasks={"depth": 0.1})})
    assert (bounded.tolerance("depth"), bounded.tolerance("age")) == (0.1, 0.2)


def test_bf16_needs_the_opset_whose_convolution_takes_it() -> None:
    with pytest.raises(ValidationError, match=r"onnx\.opset >= 22, found 18"):
        Target(backend="onnxruntime", precision="bf16")
    assert Target(backend="onnxruntime", precision="bf16", onnx=OnnxConfig(opset=22)).precision == "bf16"
