"""The table that the tool measures is one that a latency target can read."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from compactmtl.backends import load_target
from compactmtl.errors import ConfigError
from compactmtl.sparsity import LatencyTable, channel_groups
from tools.latency_table import layer_file, main, measurable, measure, narrowed, widths


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
    assert table.layers["first"].outputs == (1, 4, 32) and table.layers["first"].inputs == (1, 3)
    assert table.layers["each"].inputs is None
    groups = channel_groups(model, image)
    milliseconds = groups.cost("latency", LatencyTable.load(tmp_path / "table.json"))
    assert milliseconds(groups.whole()) > 0


def test_widths_are_those_that_surgery_leaves_from_the_least_on() -> None:
    assert widths(64, 4, 16) == [16, 32, 48, 64]
    assert widths(512, 2, 16) == [16, 64, 512]
    assert widths(5, 3, 8) == [5]


def test_a_cut_network_keeps_its_share_of_what_starts_at_zero() -> None:
    model, image = Net().eval(), torch.randn(1, 3, 16, 16)
    torch.nn.init.zeros_(model.each.weight)  # as the last norm of a residual block
    cut = narrowed(model, (image,), 0.5, align=1)
    assert dict(cut.named_parameters())["first.weight"].shape == (16, 3, 3, 3)
    assert model.first.weight.shape == (32, 3, 3, 3) and not model.each.weight.any()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["scenes/nonesuch"], "nonesuch"),
        (["scenes/dense", "modle.x=1"], "modle"),
        (["scenes/dense", "--target", "onnxruntime-cpu-int8"], "runs in int8"),
    ],
)
def test_a_mistake_exits_2_with_a_message(
    words: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["latency_table.py", *words])
    assert main() == 2
    assert message in capsys.readouterr().err


def test_a_layer_that_cannot_be_timed_is_named_before_any_is() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=2))
    with pytest.raises(ConfigError, match="1 is a grouped Conv2d"):
        measurable(model, {"0": (8, 3), "1": (8, 8)})


def test_a_further_copy_of_a_layer_brings_weights_of_its_own(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    layer, shape = nn.Conv2d(4, 6, 3, stride=2, padding=1), torch.Size((1, 4, 8, 8))
    found = []
    for copies in (1, 3):
        path = tmp_path / f"{copies}.onnx"
        image = layer_file(layer, 6, 4, shape, path, copies)
        (output,) = onnxruntime.InferenceSession(path).run(None, {"x": image})
        assert output.shape == (1, 6, 4, 4)
        weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}
        expected = sum(
            torch.conv2d(torch.from_numpy(image), torch.from_numpy(weight.copy()), stride=2, padding=1)
            for weight in weights.values()
        )
        torch.testing.assert_close(torch.from_numpy(output), expected, rtol=1e-4, atol=1e-4)
        found.append(len(weights))
    assert found == [1, 3]
