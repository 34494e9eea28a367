"""Whole branches as groups: what they promise, and that schedules choose them by it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW

from compactmtl.config.sparsity import ControllerConfig, SelectiveConfig, SparsityConfig
from compactmtl.errors import ConfigError
from compactmtl.sparsity import (
    ChannelGroups,
    GroupLasso,
    SelectiveShrinking,
    channel_groups,
    split_parameter_groups,
)
from compactmtl.sparsity.branches import lies_within
from compactmtl.sparsity.controller import StrengthController
from compactmtl.sparsity.record import importance_record
from compactmtl.sparsity.task_importance import TaskImportance
from compactmtl.surgery import compact
from tests.graph.test_branches import Layered, Network

IMAGE = torch.randn(1, 3, 12, 12, generator=torch.Generator().manual_seed(0))
TOKENS = torch.randn(1, 5, 8, generator=torch.Generator().manual_seed(0))


def network() -> nn.Module:
    torch.manual_seed(0)
    model = Network()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.2, 0.2)
    return model


def switched_off(groups: ChannelGroups, names: list[str]) -> list[Any]:
    """Which groups are left with these branches at zero, the parameters set."""
    for family in groups.bound:
        if family.family.name in names:
            with torch.no_grad():
                for part in family.tensors:
                    part.zero_(part.parameter, torch.ones(1, dtype=torch.bool))
    return groups.alive()


@pytest.mark.slow
@pytest.mark.parametrize("dead", [["blocks.0.bn2"], ["blocks.1.bn2"], ["blocks.0.bn2", "blocks.2.bn2"]])
def test_what_a_dead_branch_promises_is_what_surgery_takes_out(dead: list[str]) -> None:
    model = network()
    groups = channel_groups(model, IMAGE, branches=True)
    assert [family.name for family in groups if family.branch] == [
        f"blocks.{i}.bn2 (branch)" for i in range(3)
    ]
    alive = switched_off(groups, [f"{name} (branch)" for name in dead])
    assert sum(not flags.any() for flags in alive) == len(dead)
    report = compact(model.eval(), (IMAGE,)).report
    assert groups.cost("macs")(alive) == pytest.approx(report.macs_after)
    assert groups.cost("parameters")(alive) == report.parameters_after


@pytest.mark.slow
def test_a_branch_of_a_transformer_promises_what_goes() -> None:
    torch.manual_seed(0)
    model = Layered()
    groups = channel_groups(model, TOKENS, branches=True)
    alive = switched_off(groups, ["gamma (branch)", " (branch)"])
    gone = [family.name for family, flags in zip(groups, alive, strict=True) if not flags.any()]
    assert len(gone) == 1
    report = compact(model.eval(), (TOKENS,)).report
    assert groups.cost("macs")(alive) == pytest.approx(report.macs_after)


def test_groups_that_lie_in_one_layer_have_no_branches() -> None:
    with pytest.raises(ConfigError, match="branches"):
        channel_groups(network(), IMAGE, kind="filter", branches=True)
    with pytest.raises(ValueError, match=r"sparsity\.blocks"):
        SparsityConfig(blocks=True, strength=0.1)
    with pytest.raises(ValueError, match=r"sparsity\.blocks"):
        SparsityConfig(blocks=True, groups="filter", controller=ControllerConfig(mac_reduction=0.5))


def _useless(model: nn.Module) -> None:
    """One branch whose output hardly matters."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith("blocks.2.bn2"):
                parameter.mul_(1e-3)


def _trained(control: Any, model: nn.Module, steps: int) -> None:
    parameters = split_parameter_groups(model, control.shrunk, 0.0)
    optimizer = (
        SGD(parameters, lr=1e-3) if isinstance(control, StrengthController) else AdamW(parameters, lr=1e-4)
    )
    control.attach(optimizer)
    generator = torch.Generator().manual_seed(1)
    model.train()
    for _ in range(steps):
        x = torch.randn(4, 3, 12, 12, generator=generator)
        optimizer.zero_grad()
        model(x).square().mean().backward()
        control.observe()
        optimizer.step()
        control.step()


@pytest.mark.slow
def test_selective_lets_a_branch_die_that_is_worth_little_for_its_cost() -> None:
    model = network()
    _useless(model)
    groups = channel_groups(model, IMAGE, branches=True)
    config = SelectiveConfig(mac_reduction=0.3, start=0.1, end=0.8, every=2, min_channels=2)
    control = SelectiveShrinking(groups, config, 40)
    _trained(control, model, 40)
    names = [
        family.name
        for family, dead in zip(groups, control.held, strict=True)
        if family.branch and bool(dead.all())
    ]
    assert "blocks.2.bn2 (branch)" in names
    assert control.removed() >= 0.3
    report = compact(model.eval(), (IMAGE,)).report
    assert report.mac_reduction == pytest.approx(control.removed())


@pytest.mark.slow
def test_the_controller_reaches_its_target_with_branches() -> None:
    model = network()
    _useless(model)
    groups = channel_groups(model, IMAGE, branches=True)
    config = ControllerConfig(mac_reduction=0.4, end=0.8, every=2, min_channels=2)
    control = StrengthController(GroupLasso(groups, 1.0), config, 40)
    _trained(control, model, 40)
    assert control.removed() >= 0.4
    report = compact(model.eval(), (IMAGE,)).report
    assert report.mac_reduction == pytest.approx(control.removed())


@pytest.mark.slow
def test_a_task_values_a_branch_as_its_channels_one_by_one_and_its_layers_go_with_it() -> None:
    model = network().double()
    image = torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(1)).double()
    groups = channel_groups(model, IMAGE.double(), branches=True)
    tasks = TaskImportance([family.valued for family in groups.bound], [family.size for family in groups], 1)

    def losses() -> dict[str, torch.Tensor]:
        output = model(image)
        return {"a": output.square().mean(), "b": output.sum()}

    tasks.look(0, losses())
    losses()["a"].backward()  # type: ignore[no-untyped-call]
    place = [family.name for family in groups].index("blocks.1.bn2 (branch)")
    norm = model.get_submodule("blocks.1.bn2")
    assert isinstance(norm, nn.BatchNorm2d) and norm.weight.grad is not None and norm.bias.grad is not None
    by_channel = (norm.weight * norm.weight.grad + norm.bias * norm.bias.grad).abs()
    assert by_channel.numel() > 1
    torch.testing.assert_close(tasks.importance()[place][0], by_channel.sum()[None])

    assert groups.removal is not None
    within = lies_within(groups, groups.removal.branches)
    names = [family.name for family in groups]
    dead = [np.full(family.size, family.name == "blocks.1.bn2 (branch)") for family in groups]
    record = importance_record(tasks, names, dead, None, within, [place])
    gone = [layer["name"] for layer in record["layers"] if len(layer["removed"]) == layer["channels"]]
    assert gone == [names[n] for n, own in enumerate(within) if place in own] + ["blocks.1.bn2 (branch)"]
    assert gone[0].startswith("blocks.1.")
    assert [layer["name"] for layer in record["layers"] if layer.get("branch")] == ["blocks.1.bn2 (branch)"]


@pytest.mark.slow
def test_a_branch_that_begins_at_zero_is_learned() -> None:
    model = network()
    for name, parameter in model.named_parameters():
        if ".bn2." in name:
            nn.init.zeros_(parameter)  # as residual networks are initialized
    groups = channel_groups(model, IMAGE, branches=True)
    config = SelectiveConfig(mac_reduction=0.5, start=0.5, min_channels=1)
    control = SelectiveShrinking(groups, config, 20)
    assert (
        sum(
            bool(flags.any())
            for family, flags in zip(groups, control.foresee(), strict=True)
            if family.branch
        )
        < 3
    )
    _trained(control, model, 3)
    branches = [family for family in groups.bound if family.family.branch]
    assert len(branches) == 3 and not any(family.zeros().any() for family in branches)
    assert control.removed() == 0
