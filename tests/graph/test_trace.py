"""Tracing: what the graph holds, in-place calls made readable, and a run that frees what it has used."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compactmtl.errors import SurgeryError
from compactmtl.graph.borrow import borrowed
from compactmtl.graph.trace import check_inputs, trace


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.register_buffer("table", torch.ones(3))

    def forward(self, given: dict[str, Tensor], times: int, rest: list[Tensor]) -> tuple[Tensor, int]:
        return self.linear(given["x"].float()) * times + rest[0] + self.table, times


INPUTS = ({"x": torch.ones(2, 3)}, 2, [torch.ones(2, 3)])


def test_run_gives_the_value_of_every_call() -> None:
    model = Nested().eval()
    traced = trace(model, INPUTS)
    values = dict(traced.run(INPUTS))
    (output,) = traced.outputs
    with torch.no_grad():
        assert torch.equal(values[output], model(*INPUTS)[0])
    assert {name for name, _ in traced.tensors.values()} == {"linear.weight", "linear.bias", "table"}


def test_checks_that_nothing_reads_are_dropped() -> None:
    traced = trace(Nested(), INPUTS)  # the cast asserts its input's type
    assert all(node.users for node in traced.calls)


class Writing(nn.Module):
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        x.mul_(2)
        return x + self.count


def test_run_writes_neither_into_buffers_nor_into_inputs() -> None:
    model, given = Writing(), torch.ones(2, 3)
    traced = trace(model, (given,))
    for _ in range(2):
        values = dict(traced.run((given,)))
        assert torch.equal(values[traced.outputs[-1]], torch.full((2, 3), 3.0))
    assert model.count.item() == 0 and torch.equal(given, torch.ones(2, 3))


def test_readers_of_an_overwritten_tensor_read_the_call_that_wrote() -> None:
    class InPlace(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x * 1
            y.relu_()
            return y + 1

    traced = trace(InPlace(), (torch.ones(2),))
    (output,) = traced.outputs
    assert "relu_" in str(output.args[0])
    assert not traced.hazards


def test_readers_read_the_last_of_several_writes() -> None:
    class Chain(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x * 1
            y.relu_()
            y.add_(1)
            return y * 2

    traced = trace(Chain(), (torch.ones(2),))
    values = dict(traced.run((-torch.ones(2),)))
    (output,) = traced.outputs
    assert "add_" in str(output.args[0])
    assert torch.equal(values[output], torch.full((2,), 2.0))


def test_result_written_elsewhere_is_read_there_and_its_source_as_it_was() -> None:
    class Out(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x * 1
            z = torch.empty_like(y)
            torch.mul(y, 2, out=z)
            return z - y

    given = torch.tensor([1.0, 3.0])
    traced = trace(Out(), (given,))
    assert torch.equal(dict(traced.run((given,)))[traced.outputs[0]], given)


def _without_autocast(x: Tensor) -> Tensor:
    with torch.autocast("cpu", enabled=False), torch.enable_grad():
        return x.relu() * 2


def test_blocks_that_change_nothing_are_part_of_the_graph() -> None:
    class Block(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return _without_autocast(x) + 1

    given = torch.tensor([-1.0, 3.0])
    traced = trace(Block(), (given,))
    assert all("wrap" not in str(node.target) for node in traced.calls)
    assert torch.equal(dict(traced.run((given,)))[traced.outputs[0]], torch.tensor([1.0, 7.0]))


def test_size_that_depends_on_values_is_a_clear_error() -> None:
    class Selecting(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[x > 0]

    with pytest.raises(SurgeryError, match="size depends on values"):
        trace(Selecting(), (torch.ones(3),))


def _fail_in_eval_mode(model: nn.Module) -> None:
    assert not model.training
    raise ZeroDivisionError


def test_modes_come_back_even_after_an_error() -> None:
    model = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2)).train()
    model[1].eval()
    with pytest.raises(ZeroDivisionError), borrowed(model):
        _fail_in_eval_mode(model)
    assert model.training and model[0].training and not model[1].training


@pytest.mark.parametrize("inputs", [torch.zeros(1), None, [], (1, "a"), {"input": 1}])
def test_inputs_have_to_be_a_list_with_a_tensor(inputs: object) -> None:
    with pytest.raises(SurgeryError, match="example inputs"):
        check_inputs(nn.ReLU(), inputs)


def test_script_modules_are_refused_with_what_to_pass() -> None:
    scripted = torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2))  # type: ignore[no-untyped-call]
    for model in (scripted, nn.Sequential(scripted)):
        with pytest.raises(SurgeryError, match=r"TorchScript[\s\S]*pass the Python module"):
            trace(model, (torch.ones(1, 2),))


def test_a_model_wrapped_for_several_processes_is_refused_with_what_to_pass(tmp_path: Path) -> None:
    store = f"file://{tmp_path / 'store'}"
    torch.distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    try:
        with pytest.raises(SurgeryError, match=r"several processes[\s\S]*model\.module"):
            trace(nn.parallel.DistributedDataParallel(nn.Linear(2, 2)), (torch.ones(1, 2),))
    finally:
        torch.distributed.destroy_process_group()


@dataclass
class Pair:
    one: Tensor
    other: Tensor


class Taking(nn.Module):
    def forward(self, x: Pair, weight: float = 1.0, names: dict[str, Tensor] | None = None) -> Pair:
        return Pair(x.one * weight, x.other + (0 if names is None else names["a"]))


def test_dataclasses_numbers_and_keywords_are_taken_and_given() -> None:
    pair = Pair(torch.ones(2), torch.ones(2))
    arguments = check_inputs(Taking(), {"x": pair, "names": {"a": torch.ones(2)}})
    assert arguments[:2] == (pair, 1.0)
    traced = trace(Taking(), arguments)
    values = dict(traced.run(arguments))
    assert [values[node].tolist() for node in traced.outputs] == [[1, 1], [2, 2]]


def test_keywords_that_a_forward_does_not_take_are_named() -> None:
    class ByKeyword(nn.Module):
        def forward(self, x: Tensor, *, scale: float = 1.0) -> Tensor:
            return x * scale

    with pytest.raises(SurgeryError, match="does not take these keyword arguments"):
        check_inputs(ByKeyword(), {"image": torch.ones(1)})
    with pytest.raises(SurgeryError, match="scale by keyword alone"):
        check_inputs(ByKeyword(), {"x": torch.ones(1), "scale": 2.0})


class Filling(nn.Module):
    """Fills an empty buffer, registers a new one and moves a state that was there, as detectors and trackers do."""

    grid: Tensor | None
    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("grid", None)
        self.register_buffer("mean", torch.zeros(8))
        self.conv = nn.Conv2d(3, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if self.grid is None:
            self.grid = torch.arange(y.shape[-1]).to(y)
        self.register_buffer("late", y.detach().amax((0, 2, 3)))
        self.mean = 0.9 * self.mean + 0.1 * y.mean((0, 2, 3))
        result: Tensor = y + self.grid + self.mean[:, None, None]
        return result


def test_buffers_that_a_forward_makes_are_written_into_no_other_tensor() -> None:
    torch.manual_seed(0)
    model, x = Filling(), torch.randn(2, 3, 5, 5)
    traced = trace(model, (x,))
    value = dict(traced.run((x,)))[traced.outputs[0]]
    assert {traced.tensors[node][0] for node in traced.hazards if node in traced.tensors} == {"mean"}
    assert not traced.hazards & set(traced.inputs)
    assert model.grid is None and set(model._buffers) == {"grid", "mean"}
    assert "register_buffer" not in vars(model)
    torch.testing.assert_close(value, model(x))


class Resized(nn.Module):
    """Bilinear resizing."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.interpolate(x, scale_factor=2, mode="bilinear")


@pytest.mark.parametrize("warn_only", [False, True])
def test_a_trace_is_of_the_operators_that_are_deployed(
    warn_only: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU, deterministic resizing is a graph of indexing, through which channels cannot be followed."""
    seen: list[bool] = []
    export = torch.export.export

    def noting(*args: Any, **kwargs: Any) -> Any:
        seen.append(torch.are_deterministic_algorithms_enabled())
        return export(*args, **kwargs)

    monkeypatch.setattr(torch.export, "export", noting)
    torch.use_deterministic_algorithms(True, warn_only=warn_only)
    try:
        traced = trace(Resized(), (torch.zeros(1, 2, 3, 3),))
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled() == warn_only
    finally:
        torch.use_deterministic_algorithms(False)
    assert seen == [False]
    assert any("upsample_bilinear2d" in str(node.target) for node in traced.module.graph.nodes)
