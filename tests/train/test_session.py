"""Parameter groups, devices and bad recipes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from compactmtl.backends.torch.device import find_device
from compactmtl.balancing import balancer
from compactmtl.config import Resolved
from compactmtl.errors import ConfigError, MissingDependencyError
from compactmtl.overparam import overparameterize
from compactmtl.train.build import build_session
from compactmtl.train.machine import torch_settings
from compactmtl.train.optimizers import parameter_groups
from compactmtl.train.session import total_steps
from tests.support.host_reads import HostReads

Make = Callable[..., Resolved]


def test_every_parameter_is_in_one_group_and_decay_is_where_it_belongs() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    weighing = balancer("uncertainty", ["a", "b"])
    groups = parameter_groups(model, weighing, frozenset({"0.weight"}))
    decayed = [p for group in groups if "weight_decay" not in group for p in group["params"]]
    free = [p for group in groups if group.get("weight_decay") == 0 for p in group["params"]]
    linear = model[3]
    assert isinstance(linear, nn.Linear)
    assert [id(p) for p in decayed] == [id(linear.weight)]
    everything = [*model.parameters(), *weighing.parameters()]
    assert sorted(id(p) for p in decayed + free) == sorted(id(p) for p in everything)


def test_factors_have_a_rate_and_diagonals_no_decay() -> None:
    model = overparameterize(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    weighing = balancer("equal", ["a", "b"])
    names = {id(parameter): name for name, parameter in model.named_parameters()}

    def found(**options: Any) -> list[tuple[set[str], Any, Any]]:
        groups = parameter_groups(model, weighing, frozenset({"0.U"}), **options)
        return [({names[id(p)] for p in g["params"]}, g.get("lr"), g.get("weight_decay")) for g in groups]

    assert found(factor_lr=0.5) == [
        ({"0.V"}, 0.5, None),
        ({"0.U", "0.M"}, 0.5, 0.0),  # the prox shrinks U
        ({"0.bias", "1.weight", "1.bias"}, None, 0.0),
    ]
    assert found(factor_lr=0.5, diagonals=False)[1] == ({"0.U"}, 0.5, 0.0)


@pytest.mark.slow
def test_every_parameter_of_a_session_is_in_the_optimizer(tiny: Make, everything: str) -> None:
    session = build_session(tiny(more=everything).recipe)
    held = {id(p) for group in session.optimizer.param_groups for p in group["params"]}
    assert {id(p) for p in [*session.model.parameters(), *session.balancer.parameters()]} == held


def test_max_steps_bounds_the_steps(tiny: Make) -> None:
    assert total_steps(tiny().recipe, 10) == 30
    assert total_steps(tiny("train.max_steps=7").recipe, 10) == 7
    assert total_steps(tiny("train.max_steps=70").recipe, 10) == 30


def test_a_device_that_is_none_or_not_there() -> None:
    assert find_device("cpu") == torch.device("cpu")
    with pytest.raises(ConfigError, match="'gpu' is not a torch device"):
        find_device("gpu")
    missing = f"cuda:{torch.cuda.device_count()}"
    with pytest.raises(MissingDependencyError, match=missing) as caught:
        find_device(missing)
    assert caught.value.exit_code == 3


@pytest.mark.slow
def test_a_target_out_of_reach_is_an_error_before_training(tiny: Make) -> None:
    with pytest.raises(ConfigError, match="cannot be reached"):
        build_session(tiny(more="\nsparsity: {selective: {mac_reduction: 0.99}}\n").recipe)


def test_settings_of_torch_are_put_back(tiny: Make) -> None:
    threads, deterministic = torch.get_num_threads(), torch.backends.cudnn.deterministic
    with torch_settings(tiny(f"train.threads={threads + 1}").recipe):
        assert torch.get_num_threads() == threads + 1
        assert torch.backends.cudnn.deterministic
    assert torch.get_num_threads() == threads
    assert torch.backends.cudnn.deterministic == deterministic


def test_features_of_each_task_cannot_be_compared(tiny: Make) -> None:
    with pytest.raises(ConfigError, match="per_task gives each task its own"):
        tiny("balancing={name: mgda, at: features}", more="\noverparam: {per_task: true}\n")


@pytest.mark.slow
def test_a_sparse_step_seldom_reads_a_value(tiny: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU each read waits for all that is queued: neither the forward pass nor the balancer nor clipping needs one."""
    recipe = tiny("train.clip=1.0", more="\nsparsity: {strength: 0.05, warmup: 0.0}\n").recipe
    session = build_session(recipe)
    monkeypatch.setattr("compactmtl.sparsity.questions.on_host", lambda device: False)
    session.model.train()
    for batch in session.train_loader:
        with HostReads() as reads:
            _, total = session.forward(batch)
        assert reads.places == []
        with HostReads() as reads:
            session.update(total)
        # step counts, and what the proximal step asks of all families at once (tests/sparsity/test_questions.py)
        assert 0 < reads.count <= 12, reads.places
