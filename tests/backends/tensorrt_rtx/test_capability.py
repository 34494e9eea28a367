"""What is known of compute capabilities is what the real builder says, for every type, operator and capability."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from onnx import helper

from compactmtl.backends.tensorrt.api import log_of
from compactmtl.backends.tensorrt.network import check_network, network_layers
from compactmtl.backends.tensorrt.parse import EngineBuildError, parse
from compactmtl.backends.tensorrt.types import PrecisionMismatchError
from compactmtl.config.target import OnnxConfig, Target
from compactmtl.errors import ConfigError
from compactmtl.export.precision import apply_precision
from tests.support.rtx import (
    ALL,
    PRODUCTS,
    WIDTH,
    build,
    build_unasked,
    rtx,
    save,
    target,
    weight,
    write_product,
)

KINDS = ("fp32", "fp16", "bf16", "int8", "fp8")
# Not multiplied with a weight of 8 bits by our exports, nor by anybody's.
PLAIN_ONLY = ("einsum",)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("what", PRODUCTS)
def test_the_builder_refuses_exactly_what_is_refused_before(tmp_path: Path, what: str, kind: str) -> None:
    if what in PLAIN_ONLY and kind in ("int8", "fp8"):
        kind = "fp32"
    model = write_product(tmp_path / "m.onnx", what, kind)
    ours, theirs = set(), set()
    for capability in ALL:
        chosen = target("fp32", capability)
        try:
            build(model, chosen)
        except ConfigError:
            ours.add(capability)
        try:
            build_unasked(model, chosen)
        except EngineBuildError:
            theirs.add(capability)
    assert ours == theirs


@pytest.mark.parametrize(
    ("what", "kind", "capability", "message", "hint"),
    [
        ("convolution", "bf16", 7.5, r"7\.5 has no bfloat16 .* at cast, product", "leave 7.5 out of .*fp16"),
        ("gemm", "fp32", 7.5, r"7\.5 has no float32 matrix products.* at product", "keep no matrix product"),
        ("gemm", "int8", 7.5, r"7\.5 has no float32 matrix products, quantized ones", "leave 7.5 out"),
        ("convolution", "fp8", 8.6, r"8\.6 has no 8-bit floating point", "choose int8"),
        (
            "transposed convolution",
            "bf16",
            8.9,
            r"has no transposed convolutions in bfloat16",
            "export again",
        ),
    ],
)
def test_what_a_capability_lacks_is_said_before_the_build(
    tmp_path: Path, what: str, kind: str, capability: float, message: str, hint: str
) -> None:
    model = write_product(tmp_path / "m.onnx", what, kind)
    with pytest.raises(ConfigError, match=message) as caught:
        build(model, target("fp32", capability))
    assert re.search(hint, caught.value.hint)


def test_all_capabilities_that_the_builder_knows_are_offered_and_no_others(tmp_path: Path) -> None:
    model = write_product(tmp_path / "m.onnx", "convolution", "fp16")
    members = rtx().library.load().ComputeCapability.__members__
    known = {f"{name[2:-1]}.{name[-1]}" for name in members if name.startswith("SM")}
    assert {f"{one:.1f}" for one in ALL} <= known
    facts = build(model, target("fp16", *map(float, known))).facts
    assert set(facts.compute) == known
    with pytest.raises(ConfigError, match=r"builds for 7\.5, 8\.0, .*not for 5\.0"):
        build(model, target("fp16", 5.0))


@pytest.mark.parametrize("operator", ["HardSwish", "Mish", "ConvTranspose"])
def test_operators_that_are_taken_in_no_bfloat16_stay_in_float32(tmp_path: Path, operator: str) -> None:
    """The real library refuses the one that a target of another backend would export, and builds our own."""
    second = ["w"] if operator == "ConvTranspose" else []
    weights = [weight("w", (WIDTH, WIDTH, 2, 2))] if second else []
    relu = helper.make_node("Relu", ["x"], ["r"], name="relu")
    nodes = [relu, helper.make_node(operator, ["r", *second], ["y"], name="node")]
    kept = []
    for backend in ("openvino", "tensorrt-rtx"):
        model = save(tmp_path / f"{backend}.onnx", nodes, [1, WIDTH, 8, 8], *weights)
        bf16 = Target(backend=backend, precision="bf16", onnx=OnnxConfig(opset=22))
        record = apply_precision(model, bf16)
        assert record is not None
        kept.append([one.name for one in record.kept])
    assert kept == [[], ["node"]]
    assert build(tmp_path / "tensorrt-rtx.onnx", target("bf16")).data
    with pytest.raises((EngineBuildError, ConfigError), match="node"):
        build(tmp_path / "openvino.onnx", target("bf16"))


@pytest.mark.slow
def test_layers_have_the_types_of_their_nodes(tmp_path: Path) -> None:
    """Of each kind of product in each type, as the real parser makes it."""
    for what in PRODUCTS:
        for kind in ("fp32", "fp16", "int8"):
            if what in PLAIN_ONLY:
                continue
            model = write_product(tmp_path / "m.onnx", what, kind)
            found = build(model, target("fp32")).facts
            assert found.parsed_types.startswith("1 of 1"), (what, kind)


def test_a_node_in_another_type_than_the_graph_says_is_found(tmp_path: Path) -> None:
    model = write_product(tmp_path / "m.onnx", "convolution", "fp16")
    api = rtx().library.load()
    log = log_of(api)
    with log.listen() as said:
        builder = api.Builder(log.logger)
        network, parser = parse(api, "TensorRT-RTX", builder, log.logger, said, model)
        layers = network_layers(network)
        del network, parser
    assert check_network({"product": "float16"}, layers).startswith("1 of 1")
    with pytest.raises(PrecisionMismatchError, match="product is float32 in the graph and float16"):
        check_network({"product": "float32"}, layers)
    with pytest.raises(PrecisionMismatchError, match="no convolution or matrix product for node other"):
        check_network({"other": "float32"}, layers)
