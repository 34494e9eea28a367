"""What is logged of competing tasks: cosines of their gradients by layer, and the spread of their diagonals."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from compactmtl.config import Resolved
from compactmtl.data.base import Batch
from compactmtl.overparam import factorized_layers
from compactmtl.train.build import build_session
from compactmtl.train.competition import competition, diagonal_spread, gradient_cosines, summary
from compactmtl.train.session import Session

Make = Callable[..., Resolved]


def batch_of(session: Session) -> Batch:
    session.train_loader.sampler.set_epoch(1)
    return next(iter(session.train_loader))


def test_cosines_are_those_of_each_loss_alone(tiny: Make) -> None:
    session = build_session(tiny().recipe)
    for module in session.model.modules():
        if isinstance(module, nn.Dropout | nn.Dropout2d):
            module.p = 0.0  # it would draw anew for each loss
    batch = batch_of(session)
    found = gradient_cosines(session, [batch])
    gradients: dict[str, dict[str, Tensor]] = {}
    for task in session.tasks:
        session.model.train().zero_grad()
        session.task_losses(session.model, batch)[task].backward()  # type: ignore[no-untyped-call]
        gradients[task] = {
            name.removesuffix(".weight"): parameter.grad.flatten()
            for name, parameter in session.model.encoder.named_parameters()
            if parameter.ndim > 1 and parameter.grad is not None
        }
    assert found.keys() == gradients["depth"].keys()
    for name, pairs in found.items():
        one, other = gradients["segmentation"][name], gradients["depth"][name]
        expected = float(nn.functional.cosine_similarity(one.double(), other.double(), 0))
        assert pairs == {"segmentation|depth": pytest.approx(expected, abs=1e-4)}  # float32 gradients


def test_measuring_leaves_no_trace(tiny: Make) -> None:
    session = build_session(tiny("train.competition=1").recipe)
    state = {name: value.clone() for name, value in session.model.state_dict().items()}
    session.model.train()
    before = torch.get_rng_state()
    first, second = competition(session), competition(session)
    assert first == second and first is not None and first["cosines"]
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(value, state[name]) for name, value in session.model.state_dict().items())
    assert all(parameter.grad is None for parameter in session.model.parameters())


def test_plain_and_factorized_networks_are_measured_alike(tiny: Make) -> None:
    """At the start they are one function, so their contracted weights have one gradient."""
    plain = build_session(tiny("train.competition=1").recipe)
    ours = build_session(tiny("train.competition=1", more="\noverparam: {}\n").recipe)
    ours.model.heads.load_state_dict(plain.model.heads.state_dict())
    batch = batch_of(plain)
    one, other = gradient_cosines(plain, [batch]), gradient_cosines(ours, [batch])
    assert one.keys() == other.keys()
    for name in one:
        # float32 through ten layers, whose weights agree to 1e-6
        assert other[name]["segmentation|depth"] == pytest.approx(one[name]["segmentation|depth"], abs=0.02)


def test_one_task_alone_competes_with_none(tiny: Make) -> None:
    assert competition(build_session(tiny("train.competition=1").recipe)) is not None
    alone = tiny("train.competition=1")
    recipe = alone.recipe.model_copy(update={"tasks": {"depth": alone.recipe.tasks["depth"]}})
    assert competition(build_session(recipe)) is None


def test_the_spread_is_the_deviation_of_a_diagonals_entries() -> None:
    from compactmtl.overparam import overparameterize

    model = overparameterize(nn.Sequential(nn.Linear(4, 4)), tasks=("a", "b"))
    (layer,) = factorized_layers(model).values()
    assert layer.diagonals is not None
    with torch.no_grad():
        layer.diagonals.copy_(torch.tensor([[1.0, 1.0, 1.0, 1.0], [0.0, 2.0, 0.0, 2.0]]))
    (values,) = diagonal_spread(model, ["a", "b"]).values()
    assert values == {"a": 0.0, "b": 1.0, "between": pytest.approx(0.5)}
    joint = overparameterize(nn.Sequential(nn.Linear(4, 4)))
    assert diagonal_spread(joint, ["a", "b"]) == {"0": {"shared": 0.0}}


def test_a_summary_is_the_mean_over_layers() -> None:
    found = {"cosines": {"one": {"a|b": 0.5}, "two": {"a|b": -0.25}}, "spread": {}}
    assert summary(found) == {"a|b": 0.125}
    assert summary(None) == {}
    assert not math.isnan(sum(summary(found).values()))
