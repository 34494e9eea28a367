"""Precision passes on a small graph: what they lower, what they keep and why, and what comes out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto

from compactmtl.backends import get_backend, open_graph
from compactmtl.backends.precision import PrecisionError
from compactmtl.config.precision import Fp16Config, HalfConfig, Int8Config
from compactmtl.config.target import OnnxConfig, Target
from compactmtl.errors import ArtifactError, ConfigError
from compactmtl.export.precision import PrecisionRecord, apply_precision
from compactmtl.verify.result import GateResult
from tests.support.conv_onnx import OUTPUTS, images, write_conv

FEEDS = [{"image": images(2, seed)} for seed in range(3)]
CPU = Target(backend="onnxruntime")


def lowered(path: Path, target: Target) -> PrecisionRecord:
    record = apply_precision(path, target, FEEDS)
    assert record is not None
    return record


def outputs(path: Path, target: Target = CPU) -> dict[str, np.ndarray]:
    with get_backend(target.backend).open(path, target) as runner:
        return runner.run({"image": images()})


def difference(path: Path, other: Path, target: Target = CPU) -> float:
    """Largest difference as a share of the range, over both outputs."""
    one, two = outputs(path), outputs(other, target)
    return max(float(np.abs(one[name] - two[name]).max() / np.ptp(one[name])) for name in OUTPUTS)


def loss_as_written(path: Path, other: Path) -> float:
    """The same of two graphs whose every node runs as it is written, in float between its Q and DQ.

    What a fused int8 kernel makes of it is the processor's: without VNNI, sums of two products saturate at 16 bits.
    """
    found = []
    for file in (path, other):
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        found.append(dict(zip(OUTPUTS, session.run(list(OUTPUTS), {"image": images()}), strict=True)))
    one, two = found
    return max(float(np.abs(one[name] - two[name]).max() / np.ptp(one[name])) for name in OUTPUTS)


def copy(path: Path) -> Path:
    other = path.with_name("other.onnx")
    other.write_bytes(path.read_bytes())
    return other


def test_float32_needs_no_pass(tmp_path: Path) -> None:
    path = write_conv(tmp_path / "model.onnx")
    before = path.read_bytes()
    assert apply_precision(path, CPU) is None
    assert path.read_bytes() == before


def test_fp16_graph_computes_the_same_with_float32_at_its_borders(tmp_path: Path) -> None:
    path = write_conv(tmp_path / "model.onnx")
    other = copy(path)
    record = lowered(other, Target(backend="onnxruntime", precision="fp16"))
    assert (record.lowered, record.kept, record.samples) == (8, (), 6)
    graph = onnx.load(other).graph
    assert {value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)} == {
        TensorProto.FLOAT
    }
    assert [value.name for value in graph.output] == list(OUTPUTS)
    assert {tensor.data_type for tensor in graph.initializer} == {TensorProto.FLOAT16}
    # one cast of the input, one of each output
    assert sum(node.op_type == "Cast" for node in graph.node) == 3
    assert 0 < difference(path, other) < 5e-3  # float16 has 11 bits


def test_what_float16_cannot_hold_stays_float32_with_its_reason(tmp_path: Path) -> None:
    path = write_conv(tmp_path / "model.onnx", scale=3e4)
    other = copy(path)
    record = lowered(other, Target(backend="onnxruntime", precision="fp16", fp16=Fp16Config(headroom=2.0)))
    kept = {node.name: node.reason for node in record.kept}
    assert {"stem", "relu", "body", "residual"} <= set(kept)
    assert "holds values up to" in kept["stem"]
    assert np.isfinite(outputs(other)["map"]).all()
    assert difference(path, other) < 5e-3
    assert np.abs(outputs(path)["map"]).max() > 65504  # without it, the map would be infinite


def test_a_number_that_would_vanish_keeps_its_node(tmp_path: Path) -> None:
    path = write_conv(tmp_path / "model.onnx", epsilon=1e-9)
    record = lowered(path, Target(backend="onnxruntime", precision="fp16"))
    assert [(node.name, node.reason) for node in record.kept] == [
        ("shift", "constant epsilon is 1e-09, which becomes 0")
    ]


def test_operators_and_nodes_can_be_kept_by_name(tmp_path: Path) -> None:
    path = write_conv(tmp_path / "model.onnx")
    config = Fp16Config(keep_ops=("Gemm",), keep_nodes=("stem",))
    record = lowered(path, Target(backend="onnxruntime", precision="fp16", fp16=config))
    assert [node.name for node in record.kept] == ["stem", "head"]
    types = {tensor.name: tensor.data_type for tensor in onnx.load(path).graph.initializer}
    assert types["stem.weight"] == types["head.weight"] == TensorProto.FLOAT
    assert types["body.weight_half"] == TensorProto.FLOAT16


@pytest.mark.parametrize(
    "changes",
    [
        {"precision": "fp16", "fp16": Fp16Config(keep_ops=("Softmax",))},
        {"precision": "fp16", "fp16": Fp16Config(keep_nodes=("stemm",))},
        {"precision": "int8", "int8": Int8Config(exclude=("stemm",))},
    ],
)
def test_a_name_that_the_graph_lacks_is_refused(tmp_path: Path, changes: dict[str, object]) -> None:
    path = write_conv(tmp_path / "model.onnx")
    with pytest.raises(ConfigError, match="which the graph doesn't have"):
        apply_precision(path, CPU.model_copy(update=changes), FEEDS)


def test_calibration_needs_images(tmp_path: Path) -> None:
    path = write_conv(tmp_path / "model.onnx")
    with pytest.raises(ArtifactError, match="calibrated on training images"):
        apply_precision(path, Target(backend="onnxruntime", precision="int8"))


def test_bf16_graph_runs_where_bf16_does(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    path = write_conv(tmp_path / "model.onnx", opset=22)
    other = copy(path)
    onnx_config = OnnxConfig(opset=22)
    target = Target(
        backend="openvino", precision="bf16", onnx=onnx_config, bf16=HalfConfig(keep_ops=("Gemm",))
    )
    if not get_backend("openvino").availability(target).available:
        pytest.skip("this processor has no bf16")
    record = lowered(other, target)
    assert [node.name for node in record.kept] == ["head"]
    assert 0 < difference(path, other, target) < 0.05  # bfloat16 has 8 bits


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "bound"),
    [
        (Int8Config(), 0.1),
        (Int8Config(method="percentile", symmetric=True), 0.1),
        (Int8Config(method="entropy", per_channel=False), 0.4),  # cuts outliers off, of few values here
        (Int8Config(scheme="s8s8", symmetric=True), 0.1),
    ],
)
def test_int8_graph_is_near_and_the_same_each_time(tmp_path: Path, config: Int8Config, bound: float) -> None:
    path = write_conv(tmp_path / "model.onnx")
    other, again = copy(path), tmp_path / "again.onnx"
    again.write_bytes(path.read_bytes())
    target = Target(backend="onnxruntime", precision="int8", int8=config)
    record = lowered(other, target)
    lowered(again, target)
    assert other.read_bytes() == again.read_bytes()
    assert (record.lowered, record.samples, record.held) == (3, 6, None)
    assert 0 < loss_as_written(path, other) < bound  # 8 bits over a range of a few standard deviations


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_int8_weights_of_a_cpu_cannot_overflow_sixteen_bits(tmp_path: Path, backend: str) -> None:
    """Without VNNI two products are added in 16 bits: 2 · 255 · 127 overflows, 2 · 255 · 64 does not."""
    path = write_conv(tmp_path / "model.onnx")
    target = Target.model_validate({"backend": backend, "precision": "int8"})
    record = lowered(path, target)
    weights = [
        onnx.numpy_helper.to_array(tensor).astype(int)
        for tensor in onnx.load(path).graph.initializer
        if tensor.data_type == TensorProto.INT8 and len(tensor.dims) > 1
    ]
    assert record.reduced_range
    assert len(weights) == 3
    assert max(abs(array).max() for array in weights) <= 64


def test_int8_weights_of_a_gpu_have_all_their_bits(tmp_path: Path) -> None:
    path = write_conv(tmp_path / "model.onnx")
    record = lowered(path, Target(backend="onnxruntime", provider="CUDAExecutionProvider", precision="int8"))
    assert not record.reduced_range
    arrays = [onnx.numpy_helper.to_array(one) for one in onnx.load(path).graph.initializer]
    assert max(abs(one.astype(int)).max() for one in arrays if one.dtype == np.int8) == 127


def test_a_graph_of_another_device_is_computed_exactly_on_any_cpu(tmp_path: Path) -> None:
    """8-bit weights that a GPU multiplies exactly: a CPU without VNNI must not judge them by its own overflow."""
    path = write_conv(tmp_path / "model.onnx")
    other = copy(path)
    lowered(other, Target(backend="onnxruntime", precision="int8", int8=Int8Config(reduce_range=False)))
    with open_graph(path, CPU) as plain, open_graph(other, CPU) as runner:
        one, two = plain.run({"image": images()}), runner.run({"image": images()})
    # 8 bits over a range of a few standard deviations; an overflow makes it 0.15
    assert max(float(np.abs(one[name] - two[name]).max() / np.ptp(one[name])) for name in OUTPUTS) < 0.05


def test_tensorrt_layout_has_symmetric_pairs_and_float_biases(tmp_path: Path) -> None:
    path = write_conv(tmp_path / "model.onnx")
    other = copy(path)
    config = Int8Config(scheme="s8s8", symmetric=True, layout="inputs")
    target = Target(backend="onnxruntime", precision="int8", int8=config)
    lowered(path, target)
    assert 0 < loss_as_written(other, path) < 0.1
    with pytest.raises(PrecisionError, match="runs 3 layers in fp32"):
        outputs(path, target)  # ONNX Runtime needs pairs behind a layer, too: it would multiply in float
    graph = onnx.load(path).graph
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    assert types["head.bias"] == types["stem.bias"] == TensorProto.FLOAT
    assert set(types.values()) <= {TensorProto.FLOAT, TensorProto.INT8}
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    pairs = [node for node in graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert pairs
    assert all(not arrays[node.input[2]].any() for node in pairs)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_weights_in_a_file_of_their_own_stay_in_one(tmp_path: Path, precision: str) -> None:
    path = write_conv(tmp_path / "model.onnx", width=24)  # what is below 1 KB stays in the model file
    plain = copy(path)
    model = onnx.load(path)
    onnx.save_model(model, path, save_as_external_data=True, location="model.onnx.data", size_threshold=0)
    target = CPU.model_copy(update={"precision": precision})
    lowered(path, target)
    lowered(plain, target)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data", "other.onnx"]
    ran = target if precision == "int8" else CPU
    for name, array in outputs(path, ran).items():
        np.testing.assert_array_equal(array, outputs(plain, ran)[name])


def test_excluded_layer_stays_float(tmp_path: Path) -> None:
    path = write_conv(tmp_path / "model.onnx")
    config = Int8Config(exclude=("Gemm",))
    record = lowered(path, Target(backend="onnxruntime", precision="int8", int8=config))
    assert ([node.name for node in record.kept], record.lowered) == (["head"], 2)


def test_search_leaves_the_layers_that_cost_accuracy(tmp_path: Path) -> None:
    """The check stands for a gate on the logits: it holds once the difference is small."""
    path = write_conv(tmp_path / "model.onnx")
    reference = copy(path)
    target = Target(backend="onnxruntime", precision="int8", int8=Int8Config(max_float=0.7, search=6))
    one = outputs(reference)["logits"]

    def check(candidate: Path) -> list[GateResult]:
        error = float(np.abs(one - outputs(candidate, target)["logits"]).max() / np.ptp(one))
        gate = GateResult(
            gate="accuracy",
            subject="logits",
            bound=0.01,
            value=error,
            passed=error <= 0.01,
            message=f"{error}",
        )
        return [] if gate.passed else [gate]

    record = apply_precision(path, target, FEEDS, check=check)
    assert record is not None
    assert record.held is True
    assert record.search[0].left == ()
    assert record.search[0].failed
    left = [node.name for node in record.kept]
    assert 0 < len(left) <= 4
    assert not check(path)
