"""A small torch module and, written by hand, its ONNX file: sound, or with one chosen fault."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

WIDTH = 6


class TwoHeads(nn.Module):
    """(B, 6) to {"zeta": (B, 3), "alpha": (B, 3)}: same shapes, so that only values tell them apart."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.zeta = nn.Linear(WIDTH, 3)
        self.alpha = nn.Linear(WIDTH, 3)
        self.dropout = nn.Dropout(0.5)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        image = self.dropout(image)
        return {"zeta": self.zeta(image), "alpha": self.alpha(image)}


def write_onnx(
    path: Path,
    module: TwoHeads,
    *,
    names: Sequence[str] = ("zeta", "alpha"),
    order: Sequence[str] = ("zeta", "alpha"),
    offset: float = 0.0,
    keep: int = 3,
    dtype: int = TensorProto.FLOAT,
    batch: int | None = None,
) -> Path:
    """`order` chooses which head stands behind each of `names`; `offset` is added to every bias; `keep` cuts outputs."""
    nodes: list[Any] = []
    weights: list[Any] = []
    outputs: list[Any] = []
    for name, head in zip(names, order, strict=True):
        layer: nn.Linear = getattr(module, head)
        weight = layer.weight.detach().numpy()[:keep]
        bias = (layer.bias.detach().numpy()[:keep] + np.float32(offset)).astype(np.float32)
        weights += [
            numpy_helper.from_array(weight, f"{name}.weight"),
            numpy_helper.from_array(bias, f"{name}.bias"),
        ]
        nodes.append(
            helper.make_node(
                "Gemm", ["image", f"{name}.weight", f"{name}.bias"], [f"{name}.float"], name=name, transB=1
            )
        )
        nodes.append(helper.make_node("Cast", [f"{name}.float"], [name], to=dtype))
        outputs.append(helper.make_tensor_value_info(name, dtype, [batch or "batch", keep]))
    inputs = [helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch or "batch", WIDTH])]
    graph = helper.make_graph(nodes, "two heads", inputs, outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, path)
    return path
