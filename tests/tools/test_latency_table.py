"""The table that the tool measures is one that a latency target can read."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from compactmtl.config import load_target
from compactmtl.sparsity import LatencyTable, channel_groups
from tools.latency_table import measure


class Net(nn.Module):
    """A convolution, a depthwise one and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 32, 3, padding=1)
        self.each = nn.Conv2d(32, 32, 3, padding=1, groups=32)
        self.last = nn.Linear(32, 4)

    def forward(self, image: Tensor) -> Tensor:
        output: Tensor = self.last(self.each(self.first(image).relu()).mean((2, 3)))
        return output


@pytest.mark.slow
def test_every_layer_is_measured_at_every_width(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    image = torch.randn(1, 3, 64, 64)
    model = Net().eval()
    table = measure(model, (image,), "onnxruntime-cpu", load_target("onnxruntime-cpu"), points=2, repeats=3)
    table.save(tmp_path / "table.json")
    assert set(table.layers) == {"first", "each", "last"}
    assert table.layers["first"].outputs == (4, 32) and table.layers["first"].inputs == (1, 3)
    assert table.layers["each"].inputs is None
    groups = channel_groups(model, image)
    milliseconds = groups.cost("latency", LatencyTable.load(tmp_path / "table.json"))
    assert milliseconds(groups.whole()) > 0
