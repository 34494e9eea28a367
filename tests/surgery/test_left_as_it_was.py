"""Whatever of the public interface runs a model leaves it as it was, also one that keeps what it makes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compactmtl.backends.torch.runner import TorchRunner
from compactmtl.export import export_onnx
from compactmtl.graph import ChannelGraph, cost
from compactmtl.sparsity import channel_groups
from compactmtl.surgery import compact, prove
from compactmtl.verify import check_parity, measure_latency


class Keeping(nn.Module):
    """A detector in small: anchors for the size that it saw last, a list of features, a counter."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, 2, 1)
        self.norm = nn.BatchNorm2d(8)
        self.last = nn.Conv2d(8, 2, 1)
        self.drop = nn.Dropout2d()
        self.size: tuple[int, ...] | None = None
        self.anchors = torch.empty(0)
        self.features: list[Tensor] = []
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm(self.first(x)))
        if self.size != tuple(y.shape[2:]):
            self.size = tuple(y.shape[2:])
            self.anchors = torch.arange(float(self.size[1])) + 1
        self.features.append(y)
        self.seen = y
        self.calls += 1
        result: Tensor = self.drop(self.last(y)) * self.anchors
        return result


def _parity(model: nn.Module, x: Tensor, folder: Path) -> object:
    return check_parity(model, export_onnx(model, x, folder / "model.onnx"), x)


def _runner(model: nn.Module, x: Tensor, folder: Path) -> object:
    with TorchRunner(model, ["x"]) as runner:
        return runner.run({"x": np.asarray(x)})


RUNS: dict[str, Callable[[nn.Module, Tensor, Path], object]] = {
    "trace": lambda model, x, folder: ChannelGraph.trace(model, (x,)),
    "cost": lambda model, x, folder: cost(model, (x,)),
    "compact": lambda model, x, folder: compact(model, (x,)),
    "prove": lambda model, x, folder: prove(model, model, (x,)),
    "channel groups": lambda model, x, folder: channel_groups(model, (x,)),
    "input channel groups": lambda model, x, folder: channel_groups(model, (x,), kind="input_channel"),
    "export": lambda model, x, folder: export_onnx(model, x, folder / "model.onnx"),
    "export of any batch": lambda model, x, folder: export_onnx(
        model, x, folder / "m.onnx", dynamic_batch=True
    ),
    "parity": _parity,
    "latency": lambda model, x, folder: measure_latency({"model": model}, x, warmup=1, repeats=2),
    "runner": _runner,
}


QUICK = ("trace", "compact", "latency", "channel groups")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "caller"), [*((name, "inference") for name in RUNS), *((name, "plain") for name in QUICK)]
)
def test_the_model_is_as_it_was_and_trains(name: str, caller: str, tmp_path: Path) -> None:
    model = Keeping().train()
    model.norm.eval()
    model.first.bias.requires_grad_(False)  # type: ignore[union-attr]
    x = torch.randn(2, 3, 16, 16)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    attributes, anchors = list(vars(model)), model.anchors
    random = torch.get_rng_state()
    if caller == "inference":
        with torch.inference_mode():
            RUNS[name](model, x, tmp_path)
    else:
        RUNS[name](model, x, tmp_path)
    assert list(vars(model)) == attributes and model.anchors is anchors
    assert (model.size, model.features, model.calls) == (None, [], 0)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == [True, True, False, True, True]
    assert [p.requires_grad for p in model.parameters()] == [True, False, True, True, True, True]
    assert torch.equal(torch.get_rng_state(), random) and torch.is_grad_enabled()
    model(x).sum().backward()
    assert model.first.weight.grad is not None


@pytest.mark.slow
def test_a_model_that_has_trained_is_exported_and_made_small(tmp_path: Path) -> None:
    model = Keeping()
    x = torch.randn(2, 3, 16, 16)
    model(x).sum().backward()  # what it keeps now belongs to a graph, which no deep copy takes
    export_onnx(model, x, tmp_path / "model.onnx")
    assert compact(model, (x,)).report.proof.passed


def test_no_part_of_the_package_runs_a_module_in_inference_mode() -> None:
    import compactmtl

    root = Path(str(compactmtl.__file__)).parent
    changes: list[Any] = [
        path.name for path in root.rglob("*.py") if "inference_mode()" in path.read_text(encoding="utf-8")
    ]
    assert not changes
