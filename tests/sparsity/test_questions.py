"""Values on a device are read a few times a step however many groups there are, and reading them so changes no bit."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from compactmtl.config.sparsity import ControllerConfig, SelectiveConfig
from compactmtl.errors import TrainingError
from compactmtl.graph.groups import GroupFamily, Member
from compactmtl.sparsity import (
    ChannelGroups,
    GroupLasso,
    GroupMCP,
    Penalty,
    ProximalStep,
    SelectiveShrinking,
    SparseGroupLasso,
    StrengthController,
    channel_groups,
    split_parameter_groups,
)
from compactmtl.sparsity.grouped_tensor import to_host, waves
from compactmtl.sparsity.questions import Asking, answered, answered_together
from tests.support.host_reads import HostReads

# A step reads the optimizer's step counts, then for all families at once: whether values are finite, where the first bound is
# none, each step of Newton's (2 to 6), and what has died.
MOST_READS = 12

PENALTIES: dict[str, Callable[[ChannelGroups], Penalty]] = {
    "lasso": lambda groups: GroupLasso(groups, 0.05),
    "sparse lasso": lambda groups: SparseGroupLasso(groups, 0.05, l1=0.3),
    "mcp": lambda groups: GroupMCP(groups, 0.05, knee=0.2),
}
OPTIMIZERS: dict[str, Callable[[list[dict[str, object]]], Optimizer]] = {
    "sgd": lambda p: SGD(p, lr=0.05, momentum=0.9),
    "adamw": lambda p: AdamW(p, lr=0.01, fused=True),
}


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Treat the CPU as a device that has to be waited for, from the call on."""
    return lambda: monkeypatch.setattr("compactmtl.sparsity.questions.on_host", lambda device: False)


def network(depth: int) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for index in range(depth):
        layers += [nn.Conv2d(3 if index == 0 else 6, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(6, 2, 1))


IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def learn(model: nn.Module, optimizer: Optimizer) -> None:
    optimizer.zero_grad()
    model(IMAGE).square().mean().backward()


def state(model: nn.Module, optimizer: Optimizer) -> list[Tensor]:
    moments = [v for one in optimizer.state.values() for v in one.values() if isinstance(v, Tensor)]
    return [*(value.detach().clone() for value in model.state_dict().values()), *moments]


def shrunk(penalty: str, optimizer: str, steps: int = 9) -> list[Tensor]:
    model = network(3)
    groups = channel_groups(model, (IMAGE,), scope="model")
    built = OPTIMIZERS[optimizer](split_parameter_groups(model, groups, 0.01))
    proximal = ProximalStep(built, PENALTIES[penalty](groups))
    proximal.exempt = [torch.arange(family.size) == 1 for family in groups]
    for step in range(steps):
        learn(model, built)
        built.step()
        if step == steps - 1:
            proximal.hold([torch.arange(family.size) == 0 for family in groups])
        else:
            proximal.step()
    return [*state(model, built), *proximal.dead, *proximal.distances()]


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("penalty", PENALTIES)
def test_families_together_are_bit_equal_to_one_by_one(
    penalty: str, optimizer: str, waits: Callable[[], None]
) -> None:
    expected = shrunk(penalty, optimizer)
    assert any(bool(dead.any()) for dead in expected if dead.dtype == torch.bool)  # or nothing was tried
    waits()
    for one, other in zip(shrunk(penalty, optimizer), expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.slow
@pytest.mark.parametrize("penalty", PENALTIES)
def test_reads_do_not_grow_with_the_groups(penalty: str, waits: Callable[[], None]) -> None:
    waits()
    most = {}
    for depth in (2, 16):
        model = network(depth)
        groups = channel_groups(model, (IMAGE,), scope="model")
        optimizer = OPTIMIZERS["adamw"](split_parameter_groups(model, groups, 0.01))
        proximal = ProximalStep(optimizer, PENALTIES[penalty](groups))
        assert len(groups) == depth
        counts = []
        for _ in range(4):
            learn(model, optimizer)
            optimizer.step()
            with HostReads() as reads:
                proximal.step()
            counts.append(reads.count)
        most[depth] = max(counts)
    assert max(most.values()) <= MOST_READS, most


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["controller", "selective"])
def test_controls_read_seldom_and_do_the_same(kind: str, waits: Callable[[], None]) -> None:
    def run(depth: int) -> tuple[list[Tensor], int]:
        model = network(depth)
        groups = channel_groups(model, (IMAGE,), scope="model")
        control: StrengthController | SelectiveShrinking
        if kind == "controller":
            config = ControllerConfig(mac_reduction=0.4, end=0.7, every=3, min_channels=2)
            control = StrengthController(GroupLasso(groups, 0.0), config, 20, 0.1)
        else:
            control = SelectiveShrinking(
                groups, SelectiveConfig(mac_reduction=0.4, start=0.1, end=0.8, every=3, min_channels=2), 20
            )
        optimizer = OPTIMIZERS["adamw"](split_parameter_groups(model, control.shrunk, 0.01))
        control.attach(optimizer)
        most = 0
        for _ in range(20):
            learn(model, optimizer)
            with HostReads() as reads:
                control.observe()
                optimizer.step()
                control.step()
            most = max(most, reads.count)
        assert control.reached
        assert control.removed() >= 0.4
        return state(model, optimizer), most

    expected, _ = run(3)
    waits()
    found, _ = run(3)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    # and where λ is set or channels are chosen the distances, the dead and the chosen, each at once
    assert run(12)[1] <= MOST_READS + 8


def test_a_tensor_of_two_families_is_shrunk_in_their_order(waits: Callable[[], None]) -> None:
    def groups_of(model: nn.Linear) -> ChannelGroups:
        families = [
            GroupFamily(f"dim{dim}", (Member("weight", dim, np.arange(n)[:, None], "producer"),), n, 1.0, 1.0)
            for dim, n in ((0, 5), (1, 7))
        ]
        return ChannelGroups(families, dict(model.named_parameters()))

    model = nn.Linear(7, 5, bias=False)
    assert waves(groups_of(model).bound) == [[0], [1]]
    assert waves([*groups_of(model).bound, *groups_of(copy.deepcopy(model)).bound]) == [[0, 2], [1, 3]]
    found = []
    for _ in range(2):
        torch.manual_seed(0)
        model = nn.Linear(7, 5, bias=False)
        optimizer = AdamW(model.parameters(), lr=0.01, weight_decay=0.0)
        model(torch.randn(4, 7)).square().mean().backward()
        optimizer.step()
        ProximalStep(optimizer, GroupLasso(groups_of(model), 0.3)).step()
        found.append(model.weight.detach().clone())
        waits()
    assert torch.equal(*found)


def test_a_penalty_that_overrides_its_step_alone_is_followed(waits: Callable[[], None]) -> None:
    class Halved(GroupLasso):
        def shrink_(self, family, rate, metric, exempt=None, scratch=None):  # type: ignore[no-untyped-def]
            for s in family.tensors:
                s.parameter.mul_(0.5)
            return family.zeros()

    waits()
    model = nn.Linear(3, 2, bias=False)
    groups = ChannelGroups(
        [GroupFamily("w", (Member("weight", 0, np.arange(2)[:, None], "producer"),), 2, 1.0, 1.0)],
        dict(model.named_parameters()),
    )
    before = model.weight.detach().clone()
    ProximalStep(SGD(model.parameters(), lr=0.1), Halved(groups, 1.0)).step()
    assert torch.equal(model.weight, before / 2)
    assert GroupLasso(groups, 1.0).asks
    assert not Halved(groups, 1.0).asks


def test_a_family_that_is_not_finite_is_named_among_many(waits: Callable[[], None]) -> None:
    waits()
    model = network(2)
    groups = channel_groups(model, (IMAGE,), scope="model")
    optimizer = SGD(model.parameters(), lr=0.1)
    proximal = ProximalStep(optimizer, GroupLasso(groups, 0.1))
    with torch.no_grad():
        model.get_parameter("3.weight")[1, 0, 0, 0] = float("nan")
    with pytest.raises(TrainingError, match=r"3\.weight"):
        proximal.step()


def counting(rounds: int) -> Asking[int]:
    for index in range(rounds):
        first, second = yield torch.tensor([index % 2 == 0, True])
        assert (first, second) == (index % 2 == 0, True)
    return rounds


def test_each_is_sent_its_own_answers_and_one_read_serves_a_round() -> None:
    assert answered(counting(3)) == 3
    with HostReads() as reads:
        assert answered_together([counting(n) for n in (0, 3, 1, 5)]) == [0, 3, 1, 5]
    assert reads.count == 5
    assert answered_together([]) == []


def test_vectors_come_to_the_host_in_one_read(waits: Callable[[], None]) -> None:
    vectors = [torch.arange(3.0), torch.arange(0.0), torch.arange(2.0)]
    expected = [vector.numpy().copy() for vector in vectors]
    waits()
    for one, other in zip(to_host(vectors), expected, strict=True):
        np.testing.assert_array_equal(one, other)
    assert to_host([]) == []


def test_zeroing_without_a_wait_is_the_same(waits: Callable[[], None]) -> None:
    model = network(2)
    (first, *_) = channel_groups(model, (IMAGE,), scope="model").bound
    flags = torch.arange(first.size) % 2 == 0
    values = [torch.randn_like(s.parameter) for s in first.tensors]
    expected = [value.clone() for value in values]
    for s, value in zip(first.tensors, expected, strict=True):
        s.zero_(value, flags)
    waits()
    with HostReads() as reads:
        for s, value in zip(first.tensors, values, strict=True):
            s.zero_(value, flags)
    assert reads.count == 0
    assert all(torch.equal(one, other) for one, other in zip(values, expected, strict=True))
