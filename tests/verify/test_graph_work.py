"""What a model file computes, by layer, and what the steps of runtimes are, on files of several exporters."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from compactmtl.backends import get_backend, load_target
from compactmtl.backends.base import LayerTime
from compactmtl.errors import ArtifactError
from compactmtl.export import export_onnx
from compactmtl.graph import cost
from compactmtl.verify.call import call_time
from compactmtl.verify.graph_work import graph_work
from compactmtl.verify.steps import kind_of, places
from tests.support.conv_onnx import images, write_conv


def step(name: str, operator: str, ms: float = 1.0) -> LayerTime:
    return LayerTime(name=name, operator=operator, milliseconds=ms)


class Odd(nn.Module):
    """Layers of every kind, with an output of its own size."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, stride=2)
        self.each = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.some = nn.Conv2d(12, 8, 3, groups=2)
        self.up = nn.ConvTranspose2d(8, 5, 2, stride=2)
        self.head = nn.Linear(5, 7)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.up(self.some(self.each(self.stem(image).relu())))
        result: torch.Tensor = self.head(x.mean((2, 3)))
        return result


@pytest.mark.slow
def test_macs_are_those_of_the_torch_model(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, inputs = Odd().eval(), (torch.zeros(2, 3, 16, 16),)
    path = export_onnx(model, inputs, tmp_path / "odd.onnx", input_names=["image"])
    work = graph_work(path, {"image": inputs[0].numpy()}, [], "fp32", 16)
    assert sum(layer.macs for layer in work.layers) == cost(model, inputs).macs
    counts = {layer.name: (layer.outputs, layer.inputs) for layer in work.layers}
    expected = {"stem": (12, 3), "each": (12, None), "some": (8, 12), "up": (5, 8), "head": (7, 5)}
    assert counts == expected


def test_a_free_batch_is_that_of_the_input(tmp_path: Path) -> None:
    path = write_conv(tmp_path / "conv.onnx", width=4)
    one, three = (graph_work(path, {"image": images(count)}, [], "fp32", 16).layers for count in (1, 3))
    assert [3 * layer.macs for layer in one] == [layer.macs for layer in three]


def test_a_shape_that_is_not_known_is_an_error_that_names_the_layer(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Reshape", ["image", "shape"], ["x"]),
        helper.make_node("MatMul", ["x", "x"], ["y"], name="product"),
    ]
    inputs = [
        helper.make_tensor_value_info("image", TensorProto.FLOAT, [4]),
        helper.make_tensor_value_info("shape", TensorProto.INT64, [2]),
    ]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["a", "b"])]
    model = helper.make_model(
        helper.make_graph(nodes, "g", inputs, outputs), opset_imports=[helper.make_opsetid("", 18)]
    )
    onnx.save(model, str(tmp_path / "free.onnx"))
    with pytest.raises(ArtifactError, match="at layer product"):
        graph_work(tmp_path / "free.onnx", {}, [], "fp32", 16)


def test_another_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no ONNX file"):
        graph_work(tmp_path / "model.engine", {}, [], "fp32", 16)


@pytest.mark.parametrize(
    ("operator", "name", "kind"),
    [
        ("QLinearConv", "conv1_token_1", "kernel"),
        ("FullyConnectedQuantizedLegacy", "fc/WithoutBiases", "kernel"),
        ("ReorderInput", "ReorderInput", "layout"),
        ("Reorder", "image_abcd_acdb_conv1", "layout"),
        ("QuantizeLinear", "image_QuantizeLinear", "precision"),
        ("Subgraph", "image_QuantizeLinear", "precision"),
        ("Convert", "cast", "precision"),
        ("Resize", "resize", "resize"),
        ("Interpolate", "resize", "resize"),
        ("QLinearAdd", "add", "work"),
        ("Subgraph", "act.Relu", "work"),
    ],
)
def test_what_a_step_does_is_told_by_its_operator(operator: str, name: str, kind: str) -> None:
    assert kind_of(step(name, operator)) == kind


def test_steps_find_the_layers_that_they_are_named_after_or_come_from(tmp_path: Path) -> None:
    graph = onnx.load(str(write_conv(tmp_path / "conv.onnx"))).graph
    times = [
        step("Cast", "Cast"),
        step("shift_of_image", "Sub"),
        step("stem.act_nchwc", "Conv"),  # named after what the fused activation writes
        step("body", "Conv"),
        step("ReorderOutput", "ReorderOutput"),
        step("pool", "GlobalAveragePool"),
        step("output of 12", "FullyConnected"),  # named after nothing in the graph
        step("logits", "Softmax"),
    ]
    assert places(times, graph) == (
        ("precision", ""),
        ("before", ""),
        ("kernel", "stem"),
        ("kernel", "body"),
        ("layout", "body"),
        ("work", "body"),
        ("kernel", "head"),
        ("work", "head"),
    )


@pytest.mark.slow
@pytest.mark.parametrize("target_name", ["onnxruntime-cpu", "openvino"])
def test_every_layer_of_a_real_profile_is_found(tmp_path: Path, target_name: str) -> None:
    torch.manual_seed(0)
    target = load_target(target_name)
    inputs = torch.zeros(1, 3, 16, 16)
    path = export_onnx(Odd().eval(), (inputs,), tmp_path / "odd.onnx", input_names=["image"])
    arrays = {"image": inputs.numpy()}
    with get_backend(target.backend).open(path, target) as runner:
        times = runner.layer_times(arrays, 3)
        assert call_time(runner, arrays, target) > 0
    work = graph_work(path, arrays, times, "fp32", 16)
    assert {layer for kind, layer in work.places if kind == "kernel"} == {layer.name for layer in work.layers}
