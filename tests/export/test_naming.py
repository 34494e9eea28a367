"""Nodes of an exported file are named after the modules they come from, each once."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

from compactmtl.export import export_onnx


class Net(nn.Module):
    """A convolution with its norm and activation, one module called twice, two layers of equal weights."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.act = nn.ReLU()
        self.again = nn.Conv2d(4, 4, 1)
        self.one, self.two = nn.LayerNorm(5), nn.LayerNorm(5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm(self.conv(x)))
        x = self.again(self.again(x))
        found: Tensor = self.two(self.one(x) * 2)
        return found


@pytest.mark.slow
def test_nodes_are_named_after_their_modules(tmp_path: Path) -> None:
    path = export_onnx(Net(), torch.zeros(1, 3, 5, 5), tmp_path / "model.onnx")
    graph = onnx.load(path).graph
    names = [node.name for node in graph.node]
    assert len(set(names)) == len(names)
    assert names[:2] == ["conv", "act.Relu"]
    # a runtime that fuses both names the step after its last value
    assert [list(node.output) for node in graph.node[:2]] == [["conv"], ["conv+Relu"]]
    # shared weights tell no module: the scope that the node was traced in does
    assert sum(name.startswith("again.Conv") for name in names) == 2
    assert {"one.LayerNormalization", "two.LayerNormalization"} <= set(names)
    assert [value.name for value in (*graph.input, *graph.output)] == ["x", "output"]


@pytest.mark.slow
def test_what_follows_a_layer_with_constants_alone_has_its_name_too(tmp_path: Path) -> None:
    """As a clamp, whose bounds are inputs in ONNX; a layer after a layer has its own."""
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.ReLU6(), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3), nn.Hardtanh(-2, 3)
    )
    graph = onnx.load(export_onnx(model, torch.zeros(1, 3, 5, 5), tmp_path / "model.onnx")).graph
    assert [(node.op_type, *node.output) for node in graph.node] == [
        ("Conv", "0"),
        ("Clip", "0+Clip"),
        ("Conv", "2"),
        ("Conv", "3"),
        ("Clip", "output"),
    ]
