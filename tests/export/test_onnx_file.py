"""An ONNX file from elsewhere as a verified bundle: held against itself in float32."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from compactmtl.backends import get_backend, load_target
from compactmtl.backends.base import TensorInfo
from compactmtl.config.target import LatencyConfig, OnnxConfig, ParityConfig, Target
from compactmtl.data.base import Preprocessing
from compactmtl.errors import ArtifactError, CompactError, ConfigError, DataError
from compactmtl.export import Bundle, export_bundle
from compactmtl.export.calibration_files import batches_in
from compactmtl.export.onnx_file import OnnxModel, write_file
from tests.support.onnx_files import TwoHeads, write_onnx

INT8 = Target(
    backend="onnxruntime",
    precision="int8",
    latency=LatencyConfig(warmup=1, repeats=3, settle=0),
    parity=ParityConfig(tolerance=0.2),
)
IMAGE = TensorInfo("image", (None, 3, 8, 12), "float32")
GRAY = Preprocessing(size=(8, 12), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write_onnx(tmp_path / "small.onnx", TwoHeads())


def old_file(path: Path, opset: int) -> Path:
    """A convolution of 3 to 4 channels on pictures of 8 x 8, a batch of 2, in an opset of old."""
    generator = np.random.default_rng(0)
    weight = generator.standard_normal((4, 3, 3, 3)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x.1", "w"], ["y"], pads=[1, 1, 1, 1], name="conv")],
        "old",
        [helper.make_tensor_value_info("x.1", TensorProto.FLOAT, [2, 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 4, 8, 8])],
        [onnx.numpy_helper.from_array(weight, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=6), path)
    return path


@pytest.mark.slow  # exports
def test_int8_of_a_file_is_held_against_its_float_form(file: Path, tmp_path: Path) -> None:
    model = OnnxModel(file)
    data = torch.randn(24, 6)

    def evaluate(predict: Any) -> dict[str, Any]:
        return {"alpha.mean": float(predict(data)["alpha"].mean()) + 10}

    bundle = export_bundle(file, data[:4], tmp_path / "b", target=INT8, evaluate=evaluate, calibration=[data])
    assert bundle.doubt == "" and bundle.info.run == "small"
    assert bundle.info.precision is not None and bundle.info.precision.samples == 24
    assert bundle.info.inputs[0].shape[0] == "batch"  # as it was
    assert bundle.info.weights_sha256 == model.sha256
    found = bundle.verification
    assert found is not None and set(found.latency.stats) == {"model", "model fp32"}
    assert set(found.accuracy.by_batch) == {1, 3}


@pytest.mark.slow  # exports
def test_a_file_of_an_old_opset_and_a_fixed_batch(tmp_path: Path) -> None:
    file = old_file(tmp_path / "old.onnx", opset=11)
    said: list[str] = []
    data = [torch.randn(2, 3, 8, 8) for _ in range(3)]
    bundle = export_bundle(file, data[0], tmp_path / "b", target=INT8, calibration=data, progress=said.append)
    assert bundle.doubt == ""
    assert "converting from opset 11 to 18, which int8 needs" in said
    assert bundle.info.target.latency.batch == 2  # the file decides
    assert "latency is of batch 2, which the file is fixed to, not of the target's 1" in said
    assert Bundle.open(tmp_path / "b").info.inputs[0].name == "x.1"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"latency": LatencyConfig(batch=8)}, "latency.batch 8, and .* takes 2 samples at a time"),
        ({"onnx": OnnxConfig(dynamic_batch=True)}, "onnx.dynamic_batch, and .* takes 2 samples"),
    ],
)
def test_a_batch_that_the_file_cannot_have(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    model = OnnxModel(old_file(tmp_path / "old.onnx", opset=11))
    with pytest.raises(ConfigError, match=says):
        model.fitted(INT8.model_copy(update=changes))


def wide_file(path: Path) -> Path:
    """A matrix of 64 x 64, which is large enough to lie beside the file."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "wide",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 64])],
        [onnx.numpy_helper.from_array(np.eye(64, dtype=np.float32), "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


@pytest.mark.parametrize(("where", "beside"), [("always", True), ("auto", False), ("never", False)])
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_weights_lie_where_the_target_says(tmp_path: Path, where: Any, beside: bool, precision: Any) -> None:
    model = OnnxModel(wide_file(tmp_path / "wide.onnx"))
    target = INT8.model_copy(update={"precision": precision, "onnx": OnnxConfig(external_data=where)})
    feeds = [{"x": np.random.default_rng(0).standard_normal((8, 64)).astype(np.float32)}]
    file = tmp_path / "out" / "model.onnx"
    write_file(model, file, target, feeds)
    assert (tmp_path / "out" / "model.onnx.data").exists() is beside
    assert len(OnnxModel(file).infos) == 1 if precision == "fp32" else file.exists()


def test_weights_that_do_not_fit_into_a_file_which_they_must(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("compactmtl.export.precision.files.LARGEST", 1000)
    model = OnnxModel(wide_file(tmp_path / "wide.onnx"))
    target = INT8.model_copy(update={"precision": "fp32", "onnx": OnnxConfig(external_data="never")})
    with pytest.raises(ConfigError, match=r"onnx\.external_data is never"):
        write_file(model, tmp_path / "model.onnx", target, [])


def test_files_that_are_no_use(file: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no such file"):
        OnnxModel(tmp_path / "none.onnx")
    half = onnx.load(file)
    one = half.graph.initializer[1]  # a bias, which is no input's type
    kept = onnx.numpy_helper.to_array(one).astype(np.float16)
    one.CopyFrom(onnx.numpy_helper.from_array(kept, "half"))
    half.graph.node.insert(0, helper.make_node("Cast", ["half"], ["zeta.bias"], to=TensorProto.FLOAT))
    onnx.save(half, tmp_path / "half.onnx")
    with pytest.raises(ConfigError, match="is a model in fp16"):
        OnnxModel(tmp_path / "half.onnx")
    fine = OnnxModel(file)
    with pytest.raises(ArtifactError, match="takes 1 inputs, image; 2 given"):
        fine(torch.zeros(1, 6), torch.zeros(1, 6))
    with pytest.raises(ConfigError, match=r"onnx\.preprocess, and .* is taken as it is"):
        fine.fitted(INT8.model_copy(update={"onnx": OnnxConfig(preprocess=True)}))


def test_a_name_that_is_no_text_is_damage(file: Path, tmp_path: Path) -> None:
    """The runtimes quote it in their message, which Python then cannot read. Found by fuzzing."""
    data, damaged = file.read_bytes(), tmp_path / "damaged.onnx"
    places = [found.start() for found in re.finditer(b"image", data)]
    assert len(places) >= 2  # the graph's input and the node that reads it
    for place in places:
        damaged.write_bytes(data[:place] + b"imag\x89" + data[place + 5 :])
        for target in (load_target("onnxruntime-cpu"), load_target("openvino")):
            with pytest.raises(CompactError):
                get_backend(target.backend).open(damaged, target)
        with pytest.raises(CompactError):
            OnnxModel(damaged)


def test_arrays_in_files(tmp_path: Path) -> None:
    array = np.arange(2 * 6, dtype=np.float32).reshape(2, 6)
    info = TensorInfo("x", (None, 6), "float32")
    np.savez(tmp_path / "a.npz", x=array, label=[1, 2])
    np.save(tmp_path / "b.npy", array[0])  # one sample
    both = [one for (one,) in batches_in(tmp_path, [info], None, 128)]
    assert [tuple(one.shape) for one in both] == [(2, 6), (1, 6)]
    assert torch.equal(both[1][0], both[0][0])
    np.save(tmp_path / "big.npy", array.astype(">f4"))  # of another machine
    ((big,),) = batches_in(tmp_path / "big.npy", [info], None, 128)
    assert torch.equal(big, both[0])
    (tmp_path / "big.npy").unlink()
    with pytest.raises(DataError, match="holds x, label, and not y"):
        next(batches_in(tmp_path / "a.npz", [TensorInfo("y", (None, 6), "float32")], None, 128))
    (tmp_path / "c.npy").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"c\.npy can't be read"):
        list(batches_in(tmp_path, [info], None, 128))


def test_an_array_of_no_sample_is_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros((0, 6), np.float32))
    with pytest.raises(DataError, match=r"a\.npz: x has the shape \(0, 6\) and no value"):
        next(batches_in(tmp_path / "a.npz", [TensorInfo("x", (None, 6), "float32")], None, 128))


def test_pictures_in_a_folder_are_spread_evenly_and_prepared(tmp_path: Path) -> None:
    from PIL import Image

    for level in range(10):
        Image.new("RGB", (20, 10), (level, level, level)).save(tmp_path / f"{level}.png")
    found = [one for (one,) in batches_in(tmp_path, [IMAGE], GRAY, 5)]
    assert {tuple(one.shape) for one in found} == {(1, 3, 8, 12)}
    levels = [round(float(one.mean() * 0.5 + 0.5) * 255) for one in found]
    assert levels == [0, 2, 4, 6, 8]
    with pytest.raises(DataError, match="nobody said how they become the input"):
        next(batches_in(tmp_path, [IMAGE], None, 5))
    np.save(tmp_path / "a.npy", np.zeros((1, 3, 8, 12), np.float32))
    with pytest.raises(DataError, match="holds arrays"):
        next(batches_in(tmp_path, [IMAGE], GRAY, 5))


def test_nothing_to_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        next(batches_in(tmp_path / "none", [IMAGE], GRAY, 5))
    with pytest.raises(DataError, match="holds neither pictures nor"):
        next(batches_in(tmp_path, [IMAGE], GRAY, 5))
