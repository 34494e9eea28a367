"""The channel graph: which channels go together, what they cost, and where it stops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compactmtl.errors import SurgeryError
from compactmtl.graph import ChannelGraph, cost


class Residual(nn.Module):
    """Stem, one residual block, pooled linear head: the smallest net with a stream and an interior."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn0 = nn.BatchNorm2d(8)
        self.conv1 = nn.Conv2d(8, 12, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(12)
        self.conv2 = nn.Conv2d(12, 8, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = torch.relu(self.bn0(self.stem(x)))
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        x = torch.relu_(x + y)
        return {"out": self.head(x.mean((2, 3)))}


IMAGE = (torch.zeros(1, 3, 16, 16),)


def _families(model: nn.Module) -> dict[str, tuple[int, set[tuple[str, int, str]]]]:
    groups = ChannelGraph.trace(model, IMAGE).groups()
    return {f.name: (f.size, {(m.parameter, m.dim, m.role) for m in f.members}) for f in groups}


def test_residual_stream_couples_its_producers() -> None:
    families = _families(Residual())
    assert set(families) == {"stem", "conv1"}
    size, members = families["stem"]
    assert size == 8
    assert members == {
        ("stem.weight", 0, "producer"),
        ("conv2.weight", 0, "producer"),
        ("bn0.weight", 0, "affine"),
        ("bn0.bias", 0, "affine"),
        ("bn2.weight", 0, "affine"),
        ("bn2.bias", 0, "affine"),
        ("conv1.weight", 1, "consumer"),
        ("head.weight", 1, "consumer"),
    }
    assert families["conv1"][0] == 12


def test_groups_own_disjoint_slices() -> None:
    for family in ChannelGraph.trace(Residual(), IMAGE).groups():
        for member in family.members:
            flat = member.indices.ravel()
            assert member.indices.shape[0] == family.size
            assert len(np.unique(flat)) == len(flat)


def test_macs_agree_with_the_flop_counter_and_fall_with_channels() -> None:
    model = Residual()
    graph = ChannelGraph.trace(model, IMAGE)
    families = graph.groups()
    everything = [np.ones(f.size, dtype=bool) for f in families]
    assert graph.macs(everything) == cost(model, IMAGE).macs
    interior = next(i for i, f in enumerate(families) if f.name == "conv1")
    everything[interior][:3] = False
    assert cost(model, IMAGE).macs - graph.macs(everything) == 3 * families[interior].macs_per_channel


def test_parameters_per_channel_is_what_goes() -> None:
    families = {f.name: f for f in ChannelGraph.trace(Residual(), IMAGE).groups()}
    # conv1's row 8*9, bn1's two, conv2's column 8*9.
    assert families["conv1"].parameters_per_channel == 8 * 9 + 2 + 8 * 9


class Depthwise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Conv2d(3, 10, 1)
        self.depth = nn.Conv2d(10, 10, 3, padding=1, groups=10)
        self.gate = nn.Linear(10, 10)
        self.project = nn.Conv2d(10, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.hardswish(self.depth(self.expand(x)))
        gate = torch.sigmoid(self.gate(x.mean((2, 3))))
        out: Tensor = self.project(x * gate[:, :, None, None])
        return out


def test_depthwise_and_gate_go_with_their_channel() -> None:
    ((size, members),) = _families(Depthwise()).values()
    assert size == 10
    assert {
        ("expand.weight", 0, "producer"),
        ("depth.weight", 0, "producer"),
        ("gate.weight", 0, "producer"),
    } <= members
    assert {("gate.weight", 1, "consumer"), ("project.weight", 1, "consumer")} <= members


class Concat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(3, 4, 1)
        self.right = nn.Conv2d(3, 6, 1)
        self.join = nn.Conv2d(10, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.join(torch.cat([self.left(x), self.right(x)], 1))
        return out


def test_concat_keeps_its_parts_apart() -> None:
    groups = {f.name: f for f in ChannelGraph.trace(Concat(), IMAGE).groups()}
    assert {name: f.size for name, f in groups.items()} == {"left": 4, "right": 6}
    consumer = next(m for m in groups["right"].members if m.role == "consumer")
    assert consumer.indices.ravel().tolist() == [4, 5, 6, 7, 8, 9]


class Flattened(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=4)
        self.head = nn.Linear(4 * 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.conv(x).flatten(1))
        return out


def test_flattened_channel_owns_all_its_pixels() -> None:
    (family,) = ChannelGraph.trace(Flattened(), IMAGE).groups()
    consumer = next(m for m in family.members if m.role == "consumer")
    assert consumer.indices.tolist() == np.arange(64).reshape(4, 16).tolist()


class Barrier(nn.Module):
    """Softmax over the channel mixes all of it."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(16, 8)
        self.norm = nn.Softmax(-1)
        self.two = nn.Linear(8, 6)
        self.three = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.three(torch.relu(self.two(self.norm(self.one(x.flatten(2))[..., :8]))))
        return out


def test_unknown_operator_is_a_barrier_and_says_so() -> None:
    graph = ChannelGraph.trace(Barrier(), (torch.zeros(2, 3, 4, 4),))
    assert [f.name for f in graph.groups()] == ["two"]
    assert any("softmax" in str(node.target) for node in graph.barriers)


class Stream(nn.Module):
    """What a transformer adds up: a class token, embeddings of positions and the outputs of its blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.up, self.down = nn.Linear(5, 8), nn.Linear(8, 6), nn.Linear(6, 8)
        self.token, self.position = nn.Parameter(torch.randn(1, 1, 8)), nn.Parameter(torch.randn(1, 4, 8))
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(len(x), -1, -1), self.stem(x)], 1) + self.position
        x = x + self.down(torch.relu(self.up(self.norm(x))))
        y: Tensor = self.head(self.norm(x)[:, 0])
        return y


def test_norms_and_parameters_of_no_layer_belong_to_the_groups_of_their_stream() -> None:
    model, x = Stream().eval(), torch.randn(2, 3, 5)
    graph = ChannelGraph.trace(model, (x,))
    stream = {family.name: family for family in graph.groups()}["stem"]
    roles = {(m.parameter, m.dim): m.role for m in stream.members}
    assert roles.pop(("token", 2)) == roles.pop(("position", 2)) == "producer"
    assert roles.pop(("norm.weight", 0)) == roles.pop(("norm.bias", 0)) == "affine"
    assert {key for key, role in roles.items() if role == "consumer"} == {
        ("up.weight", 1),
        ("head.weight", 1),
    }
    # The norm keeps its width: its own entries are not among the parameters that go.
    assert stream.parameters_per_channel == (5 + 1) + (6 + 1) + 6 + 2 + 1 + 4
    assert stream.macs_per_channel == 2 * (3 * 5 + 4 * 6 * 2 + 2)


def test_trace_leaves_modes_and_weights_alone() -> None:
    model = Residual().train()
    model.bn1.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    ChannelGraph.trace(model, IMAGE)
    assert model.training and not model.bn1.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_not_finite_weights_are_named() -> None:
    model = Residual()
    with torch.no_grad():
        model.conv1.weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(SurgeryError, match=r"conv1\.weight"):
        ChannelGraph.trace(model, IMAGE)


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.sum() > 0 else x


def test_untraceable_model_is_a_clear_error() -> None:
    with pytest.raises(SurgeryError, match="could not be traced"):
        ChannelGraph.trace(Branching(), IMAGE)


class InPlaceThroughView(nn.Module):
    """The written view's base is read later: nothing may be assumed of it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.last = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        y[:, :2].add_(1.0)
        out: Tensor = self.last(y)
        return out


def test_write_through_a_view_pins_its_channels() -> None:
    assert ChannelGraph.trace(InPlaceThroughView(), IMAGE).groups() == []
