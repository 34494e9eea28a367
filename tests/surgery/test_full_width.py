"""Norms that go on at their original width: trained, exported, copied, compiled, rebuilt from the plan."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from compactmtl.errors import ArtifactError
from compactmtl.export import export_onnx
from compactmtl.surgery import CompactResult, apply_plan, compact
from compactmtl.surgery.plan import Plan
from tests.support.masking import TOLERANCE, assert_close, compacted, kill

DEAD = [0, 3, 4]


class Stream(nn.Module):
    """A residual stream of 8 channels with a class token and embeddings of positions, read through norms."""

    def __init__(self, shared: bool = False) -> None:
        super().__init__()
        self.shared = shared
        self.stem, self.up, self.down = nn.Linear(5, 8), nn.Linear(8, 6), nn.Linear(6, 8)
        self.token, self.position = nn.Parameter(torch.randn(1, 1, 8)), nn.Parameter(torch.randn(1, 4, 8))
        self.norm, self.last, self.head = nn.LayerNorm(8), nn.LayerNorm(8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(len(x), -1, -1), self.stem(x)], 1) + self.position
        x = x + self.down(torch.relu(self.up(self.norm(x))))
        x = self.norm(x) if self.shared else self.last(x)
        y: Tensor = self.head(x[:, 0])
        return y


def _masked() -> tuple[Any, Tensor]:
    torch.manual_seed(0)
    net = Stream().double().eval()
    with torch.no_grad():
        for norm in (net.norm, net.last):
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.normal_()
            norm.weight[DEAD] = 0
            norm.bias[DEAD] = 0
        net.token[..., DEAD] = 0
        net.position[..., DEAD] = 0
    kill(net.stem, zero=DEAD)
    kill(net.down, zero=DEAD)
    return net, torch.randn(3, 3, 5, dtype=torch.float64)


def _compacted() -> tuple[Any, Tensor, CompactResult]:
    net, x = _masked()
    return net, x, compact(net, (x,), tolerance=1e-12)


def test_the_stream_shrinks_and_the_norm_keeps_its_count() -> None:
    net, x, result = _compacted()
    small: Any = result.model
    assert small.stem.out_features == small.up.in_features == small.down.out_features == 5
    assert small.token.shape == (1, 1, 5) and small.position.shape == (1, 4, 5)
    assert {(edit.module, edit.size, edit.kept) for edit in result.plan.full_width} == {
        ("norm", 8, 5),
        ("last", 8, 5),
    }
    assert small.norm.normalized_shape == (8,) and set(small.state_dict()) == set(net.state_dict())
    assert_close(net(x), small(x), 1e-12)
    assert_close(net(x), copy.deepcopy(small)(x), 1e-12)


@pytest.mark.slow
def test_it_is_compiled() -> None:
    net, x, result = _compacted()
    assert_close(net(x), torch.compile(result.model, backend="eager")(x), 1e-12)


@pytest.mark.slow
def test_a_norm_that_loses_nothing_stays_what_it_was() -> None:
    torch.manual_seed(0)
    net, x = Stream().double().eval(), torch.randn(3, 3, 5, dtype=torch.float64)
    kill(net.up, zero=[1])
    result = compact(net, (x,), tolerance=TOLERANCE)
    assert not result.plan.empty and not result.plan.full_width
    assert not result.model.get_submodule("norm")._forward_hooks


@pytest.mark.parametrize("entry", ["token", "position", "stem.bias", "norm.weight"])
def test_one_entry_that_is_not_zero_keeps_its_channel(entry: str) -> None:
    net, x = _masked()
    with torch.no_grad():
        net.get_parameter(entry).view(-1, 8)[-1, 3] += 0.1  # of the positions, the last alone
    result = compact(net, (x,), tolerance=TOLERANCE)
    assert result.model.get_submodule("stem").out_features == 6
    assert_close(net(x), result.model(x))


def test_the_plan_rebuilds_it() -> None:
    net, x, result = _compacted()
    rebuilt = apply_plan(Stream().double(), Plan.from_json(result.plan.to_json()))
    rebuilt.load_state_dict(result.model.state_dict())
    assert_close(net(x), rebuilt.eval()(x), 1e-12)


def test_a_plan_of_an_earlier_version_has_its_key_and_its_attribute() -> None:
    _, _, result = _compacted()
    text = result.plan.to_json()
    assert text.count('"full_width"') == 1
    assert text.count('"version": 2') == 1
    earlier = Plan.from_json(
        text.replace('"version": 2', '"version": 1').replace('"full_width"', '"widened"')
    )
    assert earlier == result.plan
    with pytest.warns(DeprecationWarning, match="full_width"):
        assert earlier.widened == earlier.full_width


def test_a_plan_for_other_norms_is_refused() -> None:
    net, _, result = _compacted()
    edit = result.plan.full_width[0]
    for damaged in (edit.model_copy(update={"module": "nothing"}), edit.model_copy(update={"size": 9})):
        with pytest.raises(ArtifactError, match=damaged.module):
            apply_plan(net, result.plan.model_copy(update={"full_width": (damaged,)}))
    text = result.plan.to_json().replace(f'"kept": {edit.kept}', f'"kept": {edit.size}')
    with pytest.raises(ArtifactError, match="not a plan"):
        Plan.from_json(text)


@pytest.mark.slow
def test_it_is_exported_with_plain_operators(tmp_path: Path) -> None:
    net, x, result = _compacted()
    path = export_onnx(result.model.float(), (x.float(),), tmp_path / "stream.onnx")
    graph = onnx.load(path)
    assert {node.domain for node in graph.graph.node} == {""}
    assert [node.op_type for node in graph.graph.node].count("LayerNormalization") == 2
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    output = session.run(None, {session.get_inputs()[0].name: x.float().numpy()})[0]
    assert_close(net(x).float(), torch.from_numpy(output), 1e-5)


def test_a_step_of_training_is_that_of_the_masked_model() -> None:
    net, x, result = _compacted()
    small: Any = result.model.train()
    net.train()
    for model in (net, small):
        model(x).square().sum().backward()
    alive = [channel for channel in range(8) if channel not in DEAD]
    assert_close(net.down.weight.grad[alive], small.down.weight.grad)
    assert_close(net.norm.weight.grad[alive], small.norm.weight.grad[: len(alive)])
    assert not small.norm.weight.grad[len(alive) :].any()


def test_what_was_compacted_is_compacted_again() -> None:
    _, x, result = _compacted()
    kill(result.model.get_submodule("up"), zero=[1])
    again = compact(result.model, (x,), tolerance=TOLERANCE)
    assert again.model.get_submodule("up").out_features == 5
    assert_close(result.model(x), again.model(x))


class Counting(nn.Module):
    """Attention that takes the width of its input for that of its values."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.query, self.both = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 16)
        self.project, self.head = nn.Linear(8, 7), nn.Linear(7, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        batch, tokens, width = x.shape
        query = self.query(x).reshape(batch, tokens, 2, -1).transpose(1, 2)
        key, value = self.both(x).reshape(batch, tokens, 2, 2, width // 2).permute(2, 0, 3, 1, 4).unbind(0)
        x = (query @ key.transpose(-2, -1) * 0.5).softmax(-1) @ value
        y: Tensor = self.head(self.project(x.transpose(1, 2).reshape(batch, tokens, width)))
        return y


def test_a_width_that_several_tensors_are_given_stays_common_to_them() -> None:
    torch.manual_seed(0)
    net, x = Counting(), torch.randn(3, 4, 5, dtype=torch.float64)
    kill(net.stem, zero=[0, 3, 4])
    kill(net.query, zero=[1, 6])
    kill(net.both, zero=[2, 7, 10, 14, 15])
    small = compacted(net, x).model
    assert small.get_submodule("stem").out_features == small.get_submodule("project").in_features == 6
    assert small.get_submodule("both").out_features == 12


def test_a_norm_that_is_called_twice_goes_on_at_its_width() -> None:
    net, x = _masked()
    net.shared = True  # its last norm is not read then
    result = compact(net, (x,), tolerance=TOLERANCE, unreached="report")
    assert result.model.get_submodule("stem").out_features == 5
    assert_close(net(x), result.model(x))


class Grouped(nn.Module):
    """A norm of groups of channels without parameters of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = (
            nn.Conv2d(3, 8, 1),
            nn.GroupNorm(2, 8, affine=False),
            nn.Conv2d(8, 2, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.norm(self.first(x)))
        return y


def _grouped() -> Grouped:
    torch.manual_seed(0)
    net = Grouped()
    kill(net.first, zero=[2, 5])
    kill(net.last, unread=[2, 5])
    return net


def test_places_lie_where_the_model_is() -> None:
    plan = compacted(_grouped(), torch.randn(2, 3, 4, 4, dtype=torch.float64)).plan
    assert plan.full_width[0].places == (0, 1, 3, 4, 6, 7)
    small = apply_plan(Grouped().to("meta"), plan)
    assert {value.device.type for value in small.buffers()} == {"meta"}


def test_what_was_compacted_by_places_is_compacted_again() -> None:
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    first: Any = compacted(_grouped(), x).model
    kill(first.first, zero=[0])
    kill(first.last, unread=[0])
    compacted(first, x)
