"""Channel groups of a network: what they hold, where they lie on factorized layers, and what they cost."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compactmtl.errors import ConfigError
from compactmtl.overparam import contract, overparameterize
from compactmtl.sparsity import ChannelGroups, channel_groups, split_parameter_groups, zero_share


class Block(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, inner, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.bn1(self.conv1(x)).relu()
        output: Tensor = (x + self.bn2(self.conv2(inner))).relu()
        return output


class Encoder(nn.Module):
    """A residual network with a normalized input, a plain convolution with bias, and a depthwise one."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.block = Block(8, 6)
        self.down = nn.Conv2d(8, 10, 3, stride=2)
        self.depthwise = nn.Conv2d(10, 10, 3, groups=10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block(self.bn(self.stem(self.norm(x))).relu())
        output: Tensor = self.depthwise(self.down(x).relu())
        return output


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = Encoder()
        self.heads = nn.ModuleDict({"age": nn.Sequential(nn.Conv2d(10, 7, 1), nn.ReLU(), nn.Conv2d(7, 2, 1))})

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.heads["age"](self.encoder(x))
        return output


IMAGE = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    net = Net()
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.uniform_(-1, 1)
    return net


def names(groups: ChannelGroups) -> list[set[str]]:
    return [{m.parameter.removeprefix("encoder.") for m in family.members} for family in groups]


def kill(groups: ChannelGroups, family: int, group: int) -> None:
    with torch.no_grad():
        for s in groups.bound[family].tensors:
            s.zero_(s.parameter, torch.arange(groups[family].size) == group)


def test_coupled_groups_join_all_that_writes_a_channel(net: Net) -> None:
    groups = channel_groups(net, IMAGE)
    assert names(groups) == [
        {"stem.weight", "bn.weight", "bn.bias", "block.conv2.weight", "block.bn2.weight", "block.bn2.bias"},
        {"block.conv1.weight", "block.bn1.weight", "block.bn1.bias"},
        {"down.weight", "down.bias", "depthwise.weight", "depthwise.bias"},
    ]
    assert [family.size for family in groups] == [8, 6, 10]
    assert groups.total == 24


@pytest.mark.parametrize(
    "prepare",
    [
        lambda net: net,
        overparameterize,
        lambda net: overparameterize(net, "cp", depthwise=True),
        lambda net: overparameterize(net, "tucker"),
        lambda net: overparameterize(net, "expandnet_cl", 2.0),
    ],
)
@pytest.mark.parametrize("family", [0, 1, 2])
def test_a_zero_coupled_group_frees_its_readers(net: Net, prepare: Callable[[Net], Net], family: int) -> None:
    model = prepare(net).eval()
    groups = channel_groups(model, IMAGE)
    kill(groups, family, 2)
    with torch.no_grad():  # where gradients are asked for, factors may be convolved in sequence
        before = model(IMAGE)
    plain = contract(model)
    readers = {0: ["encoder.block.conv1", "encoder.down"], 1: ["encoder.block.conv2"], 2: ["heads.age.0"]}[
        family
    ]
    with torch.no_grad():
        for reader in readers:
            plain.get_parameter(f"{reader}.weight")[:, 2] = 1e6  # what no longer matters may be anything
    assert torch.equal(plain(IMAGE), before)


@pytest.mark.slow
def test_groups_of_a_factorized_model_lie_on_its_factors(net: Net) -> None:
    model = overparameterize(net)
    groups = channel_groups(model, IMAGE)
    assert names(groups)[1] == {"block.conv1.U", "block.bn1.weight", "block.bn1.bias"}
    assert names(groups)[2] == {"down.U", "down.bias", "depthwise.weight", "depthwise.bias"}
    columns = channel_groups(model, IMAGE, kind="input_channel")
    assert names(columns) == [{"block.conv1.V"}, {"block.conv2.V"}, {"down.V"}]


def test_macs_left_are_exact(net: Net) -> None:
    groups = channel_groups(net, IMAGE)
    assert groups.macs is not None

    def by_hand(stem: int, inner: int, down: int) -> float:
        at_full, at_half, at_last = 12 * 12, 5 * 5, 3 * 3
        encoder = at_full * 9 * (3 * stem + 2 * stem * inner) + at_half * 9 * stem * down + at_last * 9 * down
        return 2 * (encoder + at_last * (down * 7 + 7 * 2))

    full = [np.ones(family.size, dtype=bool) for family in groups]
    assert groups.macs(full) == by_hand(8, 6, 10)
    half = [np.arange(family.size) < family.size // 2 for family in groups]
    assert groups.macs(half) == by_hand(4, 3, 5)


def test_heads_are_left_out_unless_asked_for(net: Net) -> None:
    assert not any("heads" in m.parameter for family in channel_groups(net, IMAGE) for m in family.members)
    everywhere = channel_groups(net, IMAGE, scope="model")
    assert any(m.parameter == "heads.age.0.weight" for family in everywhere for m in family.members)


def test_input_channel_groups_are_the_papers_but_never_the_image(net: Net) -> None:
    groups = channel_groups(net, (IMAGE,), kind="input_channel")
    assert names(groups) == [{"block.conv1.weight"}, {"block.conv2.weight"}, {"down.weight"}]
    assert [family.size for family in groups] == [8, 6, 8]
    assert groups[0].macs_per_channel == 2 * 144 * 6 * 9
    assert groups[0].parameters_per_channel == 6 * 9


def test_finding_groups_leaves_the_model_as_it_was(net: Net) -> None:
    net.train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    net.encoder.stem.weight.requires_grad_(False)
    for kind in ("coupled", "input_channel"):
        channel_groups(net, IMAGE, kind=kind)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert [n for n, p in net.named_parameters() if not p.requires_grad] == ["encoder.stem.weight"]
    assert all(m.training for m in net.modules())
    assert not any(m._forward_hooks for m in net.modules())


def test_zero_share_counts_whole_groups(net: Net) -> None:
    groups = channel_groups(net, IMAGE)
    assert zero_share(groups) == 0
    kill(groups, 0, 1)
    kill(groups, 2, 9)
    with torch.no_grad():
        net.encoder.block.bn1.weight[3] = 0  # a part of a group is not the group
    assert zero_share(groups) == 2 / 24


def test_grouped_tensors_get_no_weight_decay(net: Net) -> None:
    groups = channel_groups(net, IMAGE)
    rest, shrunk = split_parameter_groups(net, groups, 0.05)
    assert (rest["weight_decay"], shrunk["weight_decay"]) == (0.05, 0.0)
    ids = {id(p): name for name, p in net.named_parameters()}
    assert {ids[id(p)] for p in shrunk["params"]} == groups.parameter_names
    assert len(rest["params"]) + len(shrunk["params"]) == len(ids)
    _, named = split_parameter_groups(net, ["encoder.bn.weight"], 0.05)
    assert [ids[id(p)] for p in named["params"]] == ["encoder.bn.weight"]
    with pytest.raises(ConfigError, match=r"encoder\.bn\.gain"):
        split_parameter_groups(net, ["encoder.bn.gain"], 0.05)


def test_groups_over_another_model(net: Net) -> None:
    import copy

    groups = channel_groups(net, IMAGE)
    other = copy.deepcopy(net)
    kill(groups.in_model(other), 0, 0)
    assert zero_share(groups) == 0
    assert zero_share(groups.in_model(other)) == 1 / 24


def test_unknown_kind_gives_the_nearest(net: Net) -> None:
    with pytest.raises(ConfigError, match="unknown group kind") as caught:
        channel_groups(net, IMAGE, kind="coupld")  # type: ignore[arg-type]
    assert "coupled" in caught.value.hint


@pytest.mark.parametrize("kind", ["coupled", "input_channel"])
def test_a_model_without_shared_convolutions(kind: str) -> None:
    with pytest.raises(ConfigError, match=r"no \w+ channel groups"):
        channel_groups(nn.Sequential(nn.Flatten(), nn.Linear(432, 4)), IMAGE, kind=kind)  # type: ignore[arg-type]
