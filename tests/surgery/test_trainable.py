"""The compact model is an ordinary module: it trains, copies, exports and compiles."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from compactmtl.export import export_onnx
from compactmtl.surgery import CompactResult, apply_plan, compact
from tests.support.masking import assert_close, image, kill


class Net(nn.Module):
    """A residual block with dropout and batch norm, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.one, self.norm = nn.Conv2d(8, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.two, self.drop = nn.Conv2d(12, 8, 1), nn.Dropout(0.5)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = x + self.two(self.drop(torch.relu(self.norm(self.one(x)))))
        y: Tensor = self.head(x.mean((2, 3)))
        return y


DEAD = [0, 3, 7]


def _masked() -> Any:
    torch.manual_seed(0)
    net = Net().double()
    kill(net.one, zero=DEAD)
    with torch.no_grad():
        net.norm.weight.uniform_(0.5, 1.5)
        net.norm.weight[DEAD] = 0
        net.norm.bias[DEAD] = 0
    return net.eval()


@pytest.fixture
def net() -> Any:
    return _masked()


@pytest.fixture
def result(net: Any) -> CompactResult:
    return compact(net, (image(),))


def _kept(result: CompactResult) -> dict[str, list[tuple[int, list[int]]]]:
    """By tensor, the kept indices of its sliced dimensions."""
    kept: dict[str, list[tuple[int, list[int]]]] = {}
    for cut in result.plan.slices:
        kept.setdefault(cut.tensor, []).append((cut.dim, list(cut.keep)))
    return kept


def _sliced(value: Tensor, kept: list[tuple[int, list[int]]]) -> Tensor:
    for dim, keep in kept:
        value = value.index_select(dim, torch.tensor(keep))
    return value


def _hold_dead(net: Any) -> None:
    """Gradients of what is masked are not applied."""
    net.one.weight.grad[DEAD] = 0
    net.norm.weight.grad[DEAD] = 0
    net.norm.bias.grad[DEAD] = 0
    net.two.weight.grad[:, DEAD] = 0


def _steps(model: nn.Module, hold: Callable[[Any], None] | None) -> list[float]:
    """Three steps in training mode (dropout off, so that both models see the same network)."""
    model.train()
    model.get_submodule("drop").eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    losses = []
    for step in range(3):
        optimizer.zero_grad()
        loss = (model(image()) - step).square().mean()
        loss.backward()
        if hold is not None:
            hold(model)
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def test_fine_tuning_is_that_of_the_masked_model_with_dead_parameters_held(
    net: Any, result: CompactResult
) -> None:
    kept, small = _kept(result), copy.deepcopy(result.model)
    assert not result.plan.biases and not result.plan.merges
    assert _steps(net, _hold_dead) == pytest.approx(_steps(small, None), rel=1e-10)  # float64
    masked = net.state_dict()
    for name, value in small.state_dict().items():
        assert_close(_sliced(masked[name], kept.get(name, [])), value)


def test_modes_and_gradients_are_the_models_own(net: Any) -> None:
    net.stem.requires_grad_(False)
    net.train()
    net.norm.eval()
    result = compact(net, (image(),))
    assert net.training and not net.norm.training
    assert not result.model.training
    frozen = {name for name, parameter in result.model.named_parameters() if not parameter.requires_grad}
    assert frozen == {"stem.weight", "stem.bias"}
    small: Any = result.model.train()
    assert small.drop.training and small.norm.training
    small(image()).sum().backward()
    assert all((p.grad is not None) == p.requires_grad for p in small.parameters())


def test_nothing_is_shared_with_the_argument(net: Any, result: CompactResult) -> None:
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with torch.no_grad():
        for value in result.model.state_dict().values():
            value.add_(1)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_names_are_unchanged_but_for_biases_that_the_plan_lists() -> None:
    net = _masked()
    with torch.no_grad():
        net.norm.bias[DEAD] = 0.4  # constants into `two`, which has a bias
    assert set(compact(net, (image(),)).model.state_dict()) == set(net.state_dict())
    net.two = nn.Conv2d(12, 8, 1, bias=False).double()
    result = compact(net, (image(),))
    new = {shift.bias for shift in result.plan.biases if shift.new}
    assert new == {"two.bias"}
    assert set(result.model.state_dict()) == {*net.state_dict(), *new}


def test_hooks_stay_where_they_were(net: Any) -> None:
    calls: list[str] = []
    net.head.register_forward_hook(lambda module, args, output: calls.append("head"))
    small = compact(net, (image(),)).model
    assert len(net.head._forward_hooks) == 1
    calls.clear()
    small(image())
    assert calls == ["head"]


@pytest.mark.slow
def test_copies_compiles_and_is_rebuilt(net: Any, result: CompactResult) -> None:
    small, expected = result.model, result.model(image())
    rebuilt = apply_plan(Net().double(), result.plan).eval()
    rebuilt.load_state_dict(small.state_dict())
    # Without inductor: the graph is what surgery could break.
    compiled = torch.compile(small, backend="eager")
    for other in (copy.deepcopy(small), rebuilt, compiled):
        assert_close(expected, other(image()))


@pytest.mark.slow
def test_exports_to_onnx(result: CompactResult, tmp_path: Path) -> None:
    small, given = copy.deepcopy(result.model).float(), image().float()
    path = export_onnx(small, (given,), tmp_path / "small.onnx", input_names=["x"], output_names=["y"])
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {"x": given.numpy()})
    assert_close(small(given).detach(), torch.from_numpy(output), tolerance=1e-5)  # float32
