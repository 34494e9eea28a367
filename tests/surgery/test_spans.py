"""Spans: consumers of one tensor that need different channels of it read them in one piece, and producers write them so."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from compactmtl.export import export_onnx
from compactmtl.surgery import Plan, apply_plan, compact, order, search, thin
from compactmtl.surgery.gather import install_span
from tests.support.masking import TOLERANCE, assert_close, kill


@pytest.fixture(autouse=True)
def _free(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing costs anything but MACs: small networks show what large ones do."""
    for name in ("MACS_PER_MOVE", "MACS_PER_COPY", "MACS_PER_CALL"):
        monkeypatch.setattr(thin, name, 0.0)


class Consumers(nn.Module):
    """One tensor, written by a convolution with a norm, and read by several convolutions."""

    def __init__(self, count: int, width: int = 12) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.slope = nn.PReLU(width)
        self.reads = nn.ModuleList(nn.Conv2d(width, 5, 3, padding=1) for _ in range(count))

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.slope(self.norm(self.stem(x)))
        return [read(x) for read in self.reads]


def _settled(model: nn.Module) -> Any:
    """In eval mode, in float64, with norms and slopes that tell channels apart."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None and module.running_var is not None
                for value in (module.running_mean, module.bias):
                    value.uniform_(-0.5, 0.5)
                for value in (module.running_var, module.weight):
                    value.uniform_(0.5, 1.5)
            elif isinstance(module, nn.PReLU):
                module.weight.uniform_(0.1, 0.9)
    return model.double().eval()


def _compacted(model: nn.Module, image: Tensor, **options: Any) -> Any:
    """The result of surgery, held to the model on an input that surgery has not seen."""
    result = compact(model, (image,), tolerance=TOLERANCE, **options)
    assert not [reason for reason in result.report.not_pruned.values() if "rolled back" in reason]
    fresh = torch.randn(3, *image.shape[1:], dtype=torch.float64)
    with torch.no_grad():
        expected, found = model(fresh), result.model(fresh)
    for one, other in zip(_listed(expected), _listed(found), strict=True):
        assert_close(one, other)
    return result


def _listed(output: Any) -> list[Tensor]:
    return list(output) if isinstance(output, (list, tuple)) else [output]


def _image(side: int = 8) -> Tensor:
    return torch.randn(2, 3, side, side, dtype=torch.float64)


@pytest.mark.slow  # seconds
@settings(max_examples=12, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 10**6), count=st.integers(2, 3), align=st.sampled_from([1, 1, 4]))
def test_consumers_read_what_they_need_and_little_more(seed: int, count: int, align: int) -> None:
    generator = np.random.default_rng(seed)
    torch.manual_seed(seed)
    model = _settled(Consumers(count))
    needs = generator.random((count, 12)) < generator.uniform(0.2, 0.9)
    for read, own in zip(model.reads, needs, strict=True):
        kill(read, unread=np.flatnonzero(~own).tolist())
    result = _compacted(model, _image(), align=align)
    assert not result.plan.gathers
    union = max(int(needs.any(0).sum()), 1)
    for read, own in zip(result.model.reads, needs, strict=True):
        width = read.weight.shape[1]
        assert max(int(own.sum()), 1) <= width <= -(-union // align) * align
        if count == 2 and align == 1:  # two sets lie in one piece in some order, whatever they are
            assert width == max(int(own.sum()), 1)


def _triangle() -> Any:
    """Three consumers of which each two share a third of the channels: no order has all three in one piece."""
    torch.manual_seed(0)
    model = _settled(Consumers(3))
    for index, read in enumerate(model.reads):
        kill(read, unread=range(4 * index, 4 * index + 4))
    return model


def test_an_index_serves_only_what_no_order_serves() -> None:
    model, image = _triangle(), _image()
    plain, picked = _compacted(model, image), _compacted(model, image, gather=True)
    assert sorted(read.weight.shape[1] for read in plain.model.reads) == [8, 8, 12]
    assert len(plain.plan.spans) == 2 and not plain.plan.gathers
    assert [read.weight.shape[1] for read in picked.model.reads] == [8, 8, 8]
    assert len(picked.plan.spans) == 2 and len(picked.plan.gathers) == 1
    assert plain.report.spans == tuple(span.module for span in plain.plan.spans)


class Residual(nn.Module):
    """A stream that every block adds to, through a norm, and reads."""

    def __init__(self, blocks: int, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.reads = nn.ModuleList(nn.Conv2d(width, 8, 1) for _ in range(blocks))
        self.writes = nn.ModuleList(nn.Conv2d(8, width, 3, padding=1, bias=False) for _ in range(blocks))
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(blocks))
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for read, write, norm in zip(self.reads, self.writes, self.norms, strict=True):
            x = x + norm(write(torch.relu(read(x))))
        y: Tensor = self.head(x.mean((2, 3)))
        return y


def _residual() -> Any:
    torch.manual_seed(0)
    model = _settled(Residual(2))
    with torch.no_grad():
        kill(model.stem, zero=range(0, 16, 2))
        for norm, write, rows in zip(
            model.norms, model.writes, (range(1, 16, 2), [0, 1, 2, 3, 9, 12]), strict=True
        ):
            kill(write, zero=rows)
            norm.weight[list(rows)] = 0
            norm.bias[list(rows)] = 0
    return model


def test_a_stream_is_read_and_written_in_part_and_the_norm_goes_with_its_layer() -> None:
    model = _residual()
    result = _compacted(model, _image())
    small = result.model
    assert not result.plan.gathers
    assert small.stem.weight.shape[0] == 8 and small.reads[0].weight.shape[1] == 8
    assert small.writes[0].weight.shape[0] == len(small.norms[0].weight) == 8
    assert small.norms[0].num_features == 8
    assert small.writes[1].weight.shape[0] < 16
    assert {span.module for span in result.plan.spans if span.outputs} >= {"norms.0"}
    assert result.report.macs_after == sum(layer.macs_after for layer in result.report.layers)


def test_what_a_norm_makes_of_a_dead_filter_stands_where_the_layer_no_longer_writes() -> None:
    """Patterns with the norm's bias left: constants, which later layers read at the border too."""
    model = _residual()
    with torch.no_grad():
        model.norms[0].weight.fill_(0.8)
        model.norms[0].bias.fill_(0.3)
    result = _compacted(model, _image())
    spans = {span.module: span for span in result.plan.spans}
    assert any(spans["norms.0"].constants)


def test_constants_are_of_the_type_that_the_layer_gives() -> None:
    """Under autocast that is a narrower one than its own."""
    layer = nn.Conv2d(3, 2, 1)
    install_span(layer, None, (1, 3), 4, (1.0, 0.0, 0.0, 2.0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(torch.randn(1, 3, 4, 4)).dtype == torch.bfloat16
    assert layer(torch.randn(1, 3, 4, 4)).dtype == torch.float32


def test_the_plan_rebuilds_the_model_and_weights_fit(tmp_path: Path) -> None:
    model, image = _residual(), _image()
    result = compact(model, (image,), tolerance=TOLERANCE)
    plan = Plan.from_json(result.plan.to_json())
    assert plan == result.plan and plan.spans
    again = apply_plan(model, plan)
    for name, value in result.model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    fresh = apply_plan(Residual(2).double(), plan)
    fresh.load_state_dict(result.model.state_dict())
    assert_close(result.model(image), fresh.eval()(image))
    assert set(result.model.state_dict()) <= set(model.state_dict()) | {
        f"{name}.bias" for name in ("writes.0", "writes.1")
    }
    assert_close(result.model(image), copy.deepcopy(result.model)(image))


@pytest.mark.slow  # seconds
def test_onnx_gets_slices_and_no_gather(tmp_path: Path) -> None:
    model, image = _settled(Consumers(2)), _image()
    for read, rows in zip(model.reads, (range(0, 12, 2), range(5)), strict=True):
        kill(read, unread=rows)
    small = compact(model, (image,), tolerance=TOLERANCE).model.float()
    path = export_onnx(small, (image.float(),), tmp_path / "spans.onnx")
    kinds = [node.op_type for node in onnx.load(path).graph.node]
    assert "Slice" in kinds and "Gather" not in kinds
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    outputs = session.run(None, {session.get_inputs()[0].name: image.float().numpy()})
    for one, other in zip(small(image.float()), outputs, strict=True):
        assert_close(one, torch.from_numpy(other), 1e-5)


def test_it_trains_and_is_compacted_again() -> None:
    model, image = _residual(), _image()
    small = compact(model, (image,), tolerance=TOLERANCE).model.train()
    small(image).square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in small.parameters())
    small.eval()
    again = compact(small, (image,), tolerance=TOLERANCE)
    assert_close(small(image), again.model(image))


def test_of_a_tensor_that_is_read_in_spans_channels_go_later() -> None:
    model, image = _settled(Consumers(2)), _image()
    for read, rows in zip(model.reads, (range(0, 12, 2), range(5)), strict=True):
        kill(read, unread=rows)
    small: Any = compact(model, (image,), tolerance=TOLERANCE).model
    kept = small.stem.weight.shape[0]
    with torch.no_grad():
        for value in (small.stem.weight, small.norm.weight, small.norm.bias):
            value[[1, kept - 2]] = 0
    again = _compacted(small, image)
    assert again.model.stem.weight.shape[0] == kept - 2
    assert any("read_span" in values for values in again.plan.attributes.values())


class Order(nn.Module):
    """Its outputs are a stream that two layers read, and half of another, so that neither may change its order."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 1)
        self.reads = nn.ModuleList(nn.Conv2d(8, 2, 1) for _ in range(4))

    def forward(self, x: Tensor) -> list[Tensor]:
        one, two = self.one(x), self.two(x)
        reads = [read(value) for read, value in zip(self.reads, (one, one, two, two), strict=True)]
        return [one, two[:, :4], *reads]


def _ordered() -> Any:
    torch.manual_seed(0)
    model = _settled(Order())
    for read, rows in zip(model.reads, ([0, 2, 4], [1, 3, 5], [0, 4, 6], [1, 5, 7]), strict=True):
        kill(read, unread=rows)
    return model


def test_outputs_and_what_is_split_off_keep_their_order() -> None:
    result = _compacted(_ordered(), _image())
    kept = {(cut.tensor, cut.dim): cut.keep for cut in result.plan.slices}
    assert ("one.weight", 0) not in kept
    moved = kept.get(("two.weight", 0), tuple(range(8)))
    assert moved[:4] == (0, 1, 2, 3)  # it is returned
    widths = [read.weight.shape[1] for read in result.model.reads]
    assert widths[:2] == [7, 8]  # from the first that is needed to the last, as they lie: 1 to 7, 0 to 7


def test_a_wrong_order_is_found_by_the_proof_and_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if a rule said of the network's output that its channels may change places."""
    monkeypatch.setattr(order, "_blocked", lambda graph: np.zeros(graph.classes, dtype=bool))
    model, image = _ordered(), _image()
    result = compact(model, (image,), tolerance=TOLERANCE)
    assert [name for name in result.report.not_pruned if "its order" in name]
    for one, other in zip(model(image), result.model(image), strict=True):
        assert_close(one, other)


def test_halves_find_all_that_fails_on_its_own() -> None:
    accepted: list[int] = []
    failing = search.accept(range(9), accepted, lambda some: not {2, 5, 6} & set(some))
    assert failing == [2, 5, 6] and accepted == [0, 1, 3, 4, 7, 8]


class Auxiliary(Consumers):
    """A head that the forward does not reach reads the same tensor."""

    def __init__(self) -> None:
        super().__init__(2)
        self.other = nn.Conv2d(12, 2, 1)

    def other_task(self, x: Tensor) -> Tensor:
        y: Tensor = self.other(self.slope(self.norm(self.stem(x))))
        return y


def test_a_head_that_is_not_reached_reads_the_channels_that_it_read() -> None:
    torch.manual_seed(0)
    model, image = _settled(Auxiliary()), _image()
    for read, rows in zip(model.reads, (range(0, 12, 2), range(1, 12, 2)), strict=True):
        kill(read, unread=rows)
    small: Any = compact(model, (image,), tolerance=TOLERANCE, unreached="report").model
    assert small.stem.weight.shape[0] == 12  # of which it reads all
    assert_close(model.other_task(image), small.other_task(image))


class Transformer(nn.Module):
    """A stream with a norm over its channels in front of each layer that reads it."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.embed = nn.Linear(3, width)
        self.place = nn.Parameter(torch.randn(1, 16, width))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.up = nn.ModuleList(nn.Linear(width, 20) for _ in range(2))
        self.down = nn.ModuleList(nn.Linear(20, width) for _ in range(2))
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.embed(x.flatten(2).transpose(1, 2)) + self.place
        for norm, up, down in zip(self.norms, self.up, self.down, strict=True):
            y = y + down(torch.nn.functional.gelu(up(norm(y))))
        out: Tensor = self.head(y)
        return out


def test_a_stream_with_norms_over_its_channels_changes_its_order() -> None:
    torch.manual_seed(0)
    model = _settled(Transformer())
    with torch.no_grad():
        for norm in model.norms:
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.uniform_(-0.5, 0.5)
    kill(model.up[0], unread=range(0, 12, 2))
    kill(model.up[1], unread=range(0, 12, 3))
    result = _compacted(model, torch.randn(2, 3, 4, 4, dtype=torch.float64))
    small = result.model
    assert [layer.weight.shape[1] for layer in small.up] == [6, 8]
    assert ("norms.0.weight", 0) in {(cut.tensor, cut.dim) for cut in result.plan.slices}
