"""Index gather, where no order of channels serves: exact in every combination, only where it pays, and kept by the plan."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from compactmtl.errors import ArtifactError
from compactmtl.export import export_onnx
from compactmtl.surgery import apply_plan, compact, thin
from compactmtl.surgery.plan import Plan
from tests.support.masking import TOLERANCE, assert_close, kill


@pytest.fixture(autouse=True)
def _in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where channels may not change places: `test_spans.py` has what an order does."""
    monkeypatch.setattr(thin, "find_runs", lambda graph, alive: [])


class Residual(nn.Module):
    """A residual sum whose two writers and two readers need different channels of it."""

    def __init__(self, width: int = 32, padding: int = 1) -> None:
        super().__init__()
        size = 2 * padding + 1
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.one = nn.Conv2d(width, width, size, padding=padding)
        self.two = nn.Conv2d(width, width, size, padding=padding, bias=False)
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + torch.relu(self.one(x))
        x = x + torch.relu(self.two(x))
        y: Tensor = self.head(x.mean((2, 3)))
        return y


def _masked(width: int = 32, padding: int = 1) -> Any:
    torch.manual_seed(0)
    net, eighth = Residual(width, padding), width // 8
    kill(net.stem, constant=range(7 * eighth, width))
    kill(
        net.one, zero=range(eighth), constant=range(eighth, 2 * eighth), unread=range(3 * eighth, 6 * eighth)
    )
    kill(net.two, zero=range(2 * eighth, 6 * eighth), unread=range(4 * eighth))
    return net.double().eval()


# A padded 3x3 convolution keeps constant inputs, a 1x1 convolution folds them into its bias.
@pytest.mark.slow
@pytest.mark.parametrize(("width", "padding"), [(32, 1), (192, 0)])
def test_layers_read_and_write_only_what_they_need(width: int, padding: int) -> None:
    net, image = _masked(width, padding), torch.randn(1, 3, 32, 32, dtype=torch.float64)
    plain = compact(net, (image,), tolerance=TOLERANCE)
    result = compact(net, (image,), tolerance=TOLERANCE, gather=True)
    small: Any = result.model
    assert not plain.plan.gathers and result.plan.gathers
    assert small.two.weight.shape[0] == width // 2 and small.two.weight.shape[1] <= width // 2
    assert result.report.macs_after < plain.report.macs_after
    for shape in ((2, 3, 32, 32), (1, 3, 40, 24)):
        fresh = torch.randn(shape, dtype=torch.float64)
        assert_close(net(fresh), small(fresh))


def test_what_does_not_pay_is_left_alone() -> None:
    net = _masked(16)
    # One pixel a channel: moving it takes longer than the few products that are saved.
    net.one, net.two = nn.Conv2d(16, 16, 1).double(), nn.Conv2d(16, 16, 1, bias=False).double()
    kill(net.two, unread=[0])
    result = compact(net, (torch.randn(1, 3, 8, 8, dtype=torch.float64),), tolerance=TOLERANCE, gather=True)
    assert not result.plan.gathers


@pytest.mark.slow  # seconds
def test_the_plan_rebuilds_the_gathering_model_and_names_stay(tmp_path: Path) -> None:
    net, image = _masked(), torch.randn(1, 3, 32, 32, dtype=torch.float64)
    result = compact(net, (image,), tolerance=TOLERANCE, gather=True)
    plan = Plan.from_json(result.plan.to_json())
    rebuilt = apply_plan(Residual().double(), plan)
    rebuilt.load_state_dict(result.model.state_dict())
    assert_close(result.model(image), rebuilt.eval()(image))
    assert set(result.model.state_dict()) <= set(net.state_dict()) | {"two.bias"}
    assert_close(net(image), copy.deepcopy(result.model)(image))
    single = result.model.float()
    path = export_onnx(single, (image.float(),), tmp_path / "gather.onnx")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    output = session.run(None, {session.get_inputs()[0].name: image.float().numpy()})[0]
    assert_close(single(image.float()), torch.from_numpy(output), 1e-5)


def test_a_gathering_model_trains_and_is_compacted_again() -> None:
    net, image = _masked(), torch.randn(2, 3, 32, 32, dtype=torch.float64)
    small = compact(net, (image,), tolerance=TOLERANCE, gather=True).model.train()
    small(image).square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in small.parameters())
    again = compact(small, (image,), tolerance=TOLERANCE)
    assert_close(net(image), again.model(image))


def test_align_keeps_spare_channels() -> None:
    net, image = _masked(), torch.randn(1, 3, 32, 32, dtype=torch.float64)
    small: Any = compact(net, (image,), align=4, tolerance=TOLERANCE, gather=True).model
    assert all(count % 4 == 0 for layer in (small.one, small.two) for count in layer.weight.shape[:2])
    assert_close(net(image), small(image))


def test_a_damaged_gather_is_refused() -> None:
    net, image = _masked(), torch.randn(1, 3, 32, 32, dtype=torch.float64)
    plan = compact(net, (image,), tolerance=TOLERANCE, gather=True).plan
    gather = next(gather for gather in plan.gathers if gather.outputs is not None)
    assert gather.outputs is not None
    damaged = gather.model_copy(update={"outputs": (99, *gather.outputs[1:])})
    with pytest.raises(ArtifactError, match=gather.module):
        apply_plan(net, plan.model_copy(update={"gathers": (damaged,)}))


def test_a_layer_behind_a_barrier_gathers_too() -> None:
    """Its input keeps all channels, and has nothing constant to fold."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 64), nn.LayerNorm(64), nn.Linear(64, 64), nn.LayerNorm(64)).double()
    kill(net[2], unread=[index for index in range(64) if index % 4])
    x = torch.randn(2, 200, 64, dtype=torch.float64)  # on so many that it pays
    result = compact(net, (x,), tolerance=TOLERANCE, gather=True)
    small: Any = result.model
    assert result.plan.gathers and small[2].in_features == 16
    assert {layer.name: layer.after for layer in result.report.layers}["2"] == (64, 16)
    assert result.report.macs_after == sum(layer.macs_after for layer in result.report.layers)
    assert_close(net.eval()(x), small(x))
