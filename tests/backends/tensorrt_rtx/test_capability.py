"""What is known of compute capabilities is what the real builder says, for every type, operator and capability."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from onnx import TensorProto, helper

from compactmtl.backends import load_target
from compactmtl.backends.tensorrt.api import log_of
from compactmtl.backends.tensorrt.network import check_network, network_layers
from compactmtl.backends.tensorrt.parse import EngineBuildError, parse
from compactmtl.backends.tensorrt.types import PrecisionMismatchError
from compactmtl.errors import ConfigError
from tests.support.rtx import ALL, PRODUCTS, WIDTH, build, build_unasked, rtx, save, target, write_product

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
        ("transposed convolution", "bf16", 8.9, r"has no transposed convolutions in bfloat16", "keep_ops"),
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


@pytest.mark.parametrize("operator", ["HardSwish", "Mish"])
def test_operators_that_the_parser_takes_in_no_bfloat16_are_kept_in_float32_by_the_targets(
    tmp_path: Path, operator: str
) -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["half"], to=TensorProto.BFLOAT16),
        helper.make_node(operator, ["half"], ["activated"], name="activation"),
        helper.make_node("Cast", ["activated"], ["y"], to=TensorProto.FLOAT),
    ]
    model = save(tmp_path / "m.onnx", nodes, [1, WIDTH, 8, 8])
    with pytest.raises(EngineBuildError, match="activation") as caught:
        build(model, target("bf16"))
    assert "bf16.keep_ops" in caught.value.hint
    for name in ("tensorrt-bf16", "tensorrt-rtx-bf16"):
        assert operator in load_target(name).bf16.keep_ops


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
