"""A batch in parts trains what the whole batch trains, within the memory of a part."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from compactmtl.config import Resolved
from compactmtl.data.base import Batch
from compactmtl.data.inputs import count, given
from compactmtl.errors import ConfigError, TrainingError
from compactmtl.train.accumulate import number_of_parts, split
from compactmtl.train.build import build_session
from compactmtl.train.dry_run import dry_run
from compactmtl.train.norms import train_mode
from compactmtl.train.session import Session
from compactmtl.train.together import check_parts, prepare
from tests.support.same_runs import assert_same
from tests.support.training_together import (
    CASES,
    LASSO,
    SELECTIVE,
    STEPS,
    asked_to_stop,
    failure_of,
    float64,
    trained,
)

Make = Callable[..., Resolved]

# Batch norm of a part is by the part's own statistics: here by those of the weights, and heads have none.
SAME_NORMS = ("train.batch_norm=frozen", "tasks.segmentation.head.depth=0", "tasks.depth.head.depth=0")
RUNS = {
    "plain": CASES["plain"],
    "momentum": ("train.optimizer={name: sgd, lr: 0.01}", "train.clip=0.5"),
    "alternating": CASES["alternating"],
    "one task at a time": ("overparam={kind: svd, training: alternating, alternating: {tasks: one}}",),
    "lasso": (f"sparsity={{warmup: 0, shrink_every: 1, {LASSO[:-1]}, tasks_every: 2}}}}",),
    "selective": (f"sparsity={{shrink_every: 1, {SELECTIVE[:-1]}, tasks_every: 2}}}}", "train.epochs=3"),
    "dgr": CASES["dgr"],
    "dgr by difference": ("regularization={dgr: {strength: 0.1, dummies: 2, mode: finite_difference}}",),
    "sam": CASES["sam"],
    "pseudo": CASES["pseudo"],
    "upgrad": CASES["upgrad"],
    "pcgrad": CASES["pcgrad"],
    "gradnorm and dgr": ("balancing={name: gradnorm}", *CASES["dgr"]),
    "uncertainty": CASES["uncertainty"],
    "dwa": CASES["dwa"],
    "famo": CASES["famo"],
    "random": ("balancing={name: random}",),
    "distillation": CASES["distillation"],
    "computed again": CASES["computed again"],
}


@pytest.mark.slow
@pytest.mark.parametrize("case", RUNS)
def test_parts_train_what_the_whole_batch_trains(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To 1e-10 in float64, with a last batch of an epoch that has fewer images."""
    monkeypatch.setitem(CASES, case, (*RUNS[case], *SAME_NORMS, "data.options.train=11"))
    with float64():
        whole = trained(case, tmp_path / "whole")
        parts = trained(case, tmp_path / "parts", "train.accumulate=2")
    assert_same(parts.path, whole.path)


@pytest.mark.slow
def test_resumed_in_the_middle_it_is_the_same_to_the_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With dropout, and statistics of each part."""
    more = ("train.accumulate=2", "tasks.segmentation.head.dropout=0.2", "train.ema={decay: 0.9}")
    monkeypatch.setitem(CASES, "dropout", more)
    whole = trained("dropout", tmp_path / "whole")
    with asked_to_stop(STEPS, True):
        assert failure_of(lambda: trained("dropout", tmp_path / "parts"))[1] == 130
    resumed = trained("dropout", tmp_path / "parts", resume=True)
    for name, value in whole.load_model("last").state_dict().items():
        assert torch.equal(resumed.load_model("last").state_dict()[name], value), name


def session_of(tiny: Make, *overrides: str) -> Session:
    session = build_session(tiny(*overrides).recipe)
    train_mode(session.model, session.recipe)
    return session


def step(session: Session, batch: Batch) -> None:
    _, total = session.forward(batch)
    session.update(total)


@pytest.mark.slow
def test_statistics_learn_from_each_part_once(tiny: Make) -> None:
    session = session_of(tiny, "train.accumulate=2", "regularization={dgr: {strength: 0.1}}")
    before = {name: one.clone() for name, one in session.model.named_buffers()}
    step(session, next(iter(session.train_loader)))
    norms = [one for one in session.model.modules() if isinstance(one, _BatchNorm)]
    assert norms and all(int(one.num_batches_tracked) == 2 for one in norms)  # type: ignore[arg-type]
    changed = [name for name, one in session.model.named_buffers() if not torch.equal(one, before[name])]
    assert any(name.endswith("running_mean") for name in changed)


@pytest.mark.slow
def test_dropout_draws_the_same_when_a_part_passes_again(tiny: Make) -> None:
    """Else the check of the first step would tell; and the draws go on as after one pass."""
    session = session_of(tiny, "train.accumulate=2", "tasks.segmentation.head.dropout=0.5")
    batch = next(iter(session.train_loader))
    torch.manual_seed(1)
    current = session.forward_pass(batch)
    after = torch.get_rng_state()
    gradients = [
        torch.autograd.grad(
            current.losses["segmentation"],
            list(session.model.heads["segmentation"].parameters())[-2:],
            retain_graph=True,
        )
        for _ in range(2)
    ]
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))
    assert torch.equal(torch.get_rng_state(), after)


@pytest.mark.slow
def test_a_network_that_gives_something_else_the_second_time_is_an_error(tiny: Make) -> None:
    session = session_of(tiny, "train.accumulate=2")
    own = torch.Generator().manual_seed(0)

    def noisy(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        return output * (1 + torch.rand((), generator=own))

    session.model.heads["depth"].register_forward_hook(noisy)
    with pytest.raises(
        TrainingError, match=r"train\.accumulate: a part of the batch that passes the network again"
    ):
        step(session, next(iter(session.train_loader)))


@pytest.mark.slow
def test_a_loss_that_is_no_mean_over_the_batch_is_refused(
    tiny: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = session_of(tiny, "train.accumulate=2")
    check_parts(session)
    task = session.tasks["depth"]
    monkeypatch.setattr(task, "loss", lambda output, target: output.square().mean())
    with pytest.raises(
        ConfigError, match=r"tasks\.depth: the loss of kind depth .* so 2 parts would train another"
    ):
        check_parts(session)


@pytest.mark.slow
def test_dummy_gradient_norms_of_a_loss_that_is_no_mean_are_refused(tiny: Make) -> None:
    """But for the finite difference, which differentiates once."""
    dice, dgr = "tasks.segmentation.loss=dice", "regularization={dgr: {strength: 0.1}}"
    check_parts(session_of(tiny, "train.accumulate=2", dgr))
    check_parts(session_of(tiny, "train.accumulate=2", dice))
    check_parts(
        session_of(
            tiny, "train.accumulate=2", dice, "regularization={dgr: {strength: 0.1, mode: finite_difference}}"
        )
    )
    with pytest.raises(
        ConfigError, match=r"regularization\.dgr: in parts of a batch .* tasks\.segmentation, whose loss"
    ):
        check_parts(session_of(tiny, "train.accumulate=2", dice, dgr))


@pytest.mark.slow
def test_no_more_than_one_part_is_held(tiny: Make) -> None:
    """What autograd keeps, and at no time of two parts together."""
    whole = dry_run(tiny("data.batch_size=8").recipe)
    parts = dry_run(tiny("data.batch_size=8", "train.accumulate=4").recipe)
    # a quarter, and the images and labels of the batch, of which the parts are views
    assert parts.activation_bytes < 0.35 * whole.activation_bytes
    assert (parts.steps_per_epoch, parts.total_steps) == (whole.steps_per_epoch, whole.total_steps)
    session = session_of(tiny, "data.batch_size=8", "train.accumulate=4")
    held: dict[int, int] = {}
    most = 0

    class Kept:
        """A tensor that autograd keeps, counted for as long as it does."""

        def __init__(self, tensor: Tensor) -> None:
            nonlocal most
            self.tensor = tensor
            weight = tensor.untyped_storage().data_ptr() in weights
            held[id(self)] = 0 if weight else tensor.numel() * tensor.element_size()
            most = max(most, sum(held.values()))

        def __del__(self) -> None:
            del held[id(self)]

    weights: set[int] = set()

    def peak(of: Session) -> int:
        nonlocal most
        most = 0
        weights.update(one.untyped_storage().data_ptr() for one in of.model.state_dict().values())
        with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
            step(of, next(iter(of.train_loader)))
        return most

    in_parts, at_once = peak(session), peak(session_of(tiny, "data.batch_size=8"))
    assert 0 < in_parts < 0.3 * at_once  # a quarter, and what does not depend on the batch


@pytest.mark.parametrize(
    ("images", "most", "processes", "parts"),
    [(8, 4, 1, 2), (5, 4, 1, 2), (4, 4, 1, 1), (1, 4, 1, 1), (6, 1, 4, 1), (8, 1, 2, 4)],
)
def test_number_of_parts(images: int, most: int, processes: int, parts: int) -> None:
    assert number_of_parts(images, most, processes) == parts


def test_the_parts_that_are_told_are_those_of_a_batch(tiny: Make) -> None:
    """Four images in three parts are two parts of two."""
    for asked in (2, 3):
        assert prepare(session_of(tiny, f"train.accumulate={asked}")) == (
            "each batch passes in 2 parts of at most 2 images",
        )


def test_a_batch_is_split_with_all_that_belongs_to_its_images() -> None:
    image, depth, numbers = torch.randn(5, 3, 4, 4), torch.randn(5, 1, 4, 4), torch.randn(5, 2)
    sources = list("aabba")
    batch: Batch = {
        "image": image,
        "inputs": (image, numbers),
        "targets": {"depth": depth},
        "sources": sources,
    }
    parts = split(batch, 2)
    assert [count(given(part)) for part in parts] == [2, 3]
    assert torch.equal(torch.cat([part["inputs"][1] for part in parts]), numbers)
    assert torch.equal(torch.cat([part["targets"]["depth"] for part in parts]), depth)
    assert [one for part in parts for one in part["sources"]] == sources
    assert split(batch, 1) == [batch]
