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
