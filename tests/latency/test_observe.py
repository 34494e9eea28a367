"""Which layer each step of a runtime's profile belongs to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import nn

from compactmtl.backends import get_backend, load_target
from compactmtl.backends.base import LayerTime
from compactmtl.latency.observe import attribute, file_owners, opened
from compactmtl.verify.steps import layer_of


@pytest.mark.parametrize(
    ("step", "layer"),
    [
        ("layer1.0.conv1+Relu_nchwc", "layer1.0.conv1"),
        ("layer1.0.conv1_quant", "layer1.0.conv1"),
        ("layer1.0.conv10", "layer1.0.conv10"),
        ("layer1.0.conv100", ""),
        ("fc.Add", "fc"),
        ("ReorderInput_token_9", ""),
    ],
)
def test_a_runtime_s_step_belongs_to_the_layer_it_is_named_after(step: str, layer: str) -> None:
    assert layer_of(step, ["layer1.0.conv1", "layer1.0.conv10", "fc"]) == layer


STEPS = [("Reorder", 1.0), ("a_nchwc", 2.0), ("Add_7", 3.0), ("b", 4.0), ("Resize", 5.0)]


@pytest.mark.parametrize(
    ("wall", "layers", "rest"),
    [
        (15.0, {"a": 5.0, "b": 9.0}, 1.0),
        (17.5, {"a": 5.0, "b": 9.0}, 3.5),  # what no step shows is no layer's
        (12.5, {"a": 4.0, "b": 8.0}, 0.5),  # the profiler added half a millisecond to each step
        (0.75, {}, 0.0),  # and more than the shortest steps take
    ],
)
def test_steps_without_a_name_belong_to_the_layer_before_and_all_add_up_to_the_network(
    wall: float, layers: dict[str, float], rest: float
) -> None:
    times: Sequence[LayerTime] = [LayerTime(name=n, operator="", milliseconds=ms) for n, ms in STEPS]
    found, others = attribute(times, ["a", "b"], wall, {})
    assert sum(found.values()) + others == pytest.approx(wall)
    if wall > 1:
        assert found == pytest.approx(layers) and others == pytest.approx(rest)


def test_a_fused_step_belongs_to_the_layer_that_it_is_named_after_or_behind() -> None:
    """Runtimes name it after its last node, or after what that writes, such as the network's output."""
    steps = [("a", 1.0), ("act.Clip_nchwc", 2.0), ("output", 4.0), ("Reorder", 8.0)]
    times = [LayerTime(name=name, operator="", milliseconds=ms) for name, ms in steps]
    found, others = attribute(times, ["a", "b", "c"], 15.0, {"act.Clip": "b", "output": "c"})
    assert found == {"a": 1.0, "b": 2.0, "c": 12.0} and others == 0.0


def test_rounding_leaves_no_less_than_nothing() -> None:
    times = [LayerTime(name="a", operator="", milliseconds=ms) for ms in (0.1, 0.2, 0.3)]
    for wall in (0.1 + 0.2 + 0.3, 0.6, 0.6 - 1e-9):
        assert attribute(times, ["a"], wall, {})[1] >= 0.0


class Bounded(nn.Module):
    """Activations that runtimes fuse, of one input and of three; the last layer writes the output."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 32, 3), nn.Conv2d(32, 32, 3, groups=32)
        self.third, self.last = nn.Conv2d(32, 32, 1), nn.Linear(32, 5)
        self.six, self.leaky = nn.ReLU6(), nn.LeakyReLU(0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.six(self.second(self.six(self.first(x))))
        found: torch.Tensor = self.last(self.leaky(self.third(x) + x).mean((2, 3)))
        return found


@pytest.mark.slow  # exports
@pytest.mark.parametrize(
    "name", ["onnxruntime-cpu", "onnxruntime-cpu-int8", "openvino", "openvino-int8", "torch-cpu"]
)
def test_every_layer_has_its_own_steps_on_every_runtime(name: str, tmp_path: Path) -> None:
    """None is at zero because a runtime named its step after an activation, or after the network's output."""
    target = load_target(name)
    if not get_backend(target.backend).availability(target).available:
        pytest.skip(f"{name} cannot run here")
    image, names, path = (
        torch.randn(1, 3, 24, 24),
        ["first", "second", "third", "last"],
        tmp_path / "model.onnx",
    )
    with opened(Bounded().eval(), (image,), target, path) as runner:
        times = runner.layer_times({runner.input_names[0]: image.numpy()}, 3)
    steps = [LayerTime(name=one.name, operator=one.operator, milliseconds=1.0) for one in times]
    layers, _ = attribute(steps, names, float(len(steps)), file_owners(path, names) if path.exists() else {})
    assert all(count >= 1 for count in layers.values()), (layers, [one.name for one in times])
