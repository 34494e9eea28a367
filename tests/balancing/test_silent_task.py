"""A batch without a label of some task: no balancer makes a number that is not finite, or it says so plainly."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torchjd import scalarization

from compactmtl.balancing import NAMES, Balancer, balancer
from compactmtl.errors import TrainingError
from tests.support.small_net import TASKS, Net, small_net

ROOT = Path(__file__).parents[2]


def refusal_of(net: Net, method: Balancer, step: int) -> TrainingError | None:
    try:
        net.follow(method, step)
    except TrainingError as error:
        return error
    return None


def hide(monkeypatch: pytest.MonkeyPatch, net: Net, first: int, silent: Collection[str]) -> None:
    """Let batch `first` know nothing of some tasks."""
    every = net.losses

    def losses(features: Tensor, step: int) -> dict[str, Tensor]:
        # float32, as losses are in training; zero with a graph, as a loss of nothing known is
        return {
            task: loss.float() * (0 if step == first and task in silent else 1)
            for task, loss in every(features, step).items()
        }

    monkeypatch.setattr(net, "losses", losses)


# What each method does with a batch that knows nothing of a task, as docs/balancing.md says.
NEEDS_ALL = {
    *("famo", "geometric_mean", "db_mtl"),  # the logarithm of each loss
    *("gradnorm", "gradvac", "excess_mtl", "pcd"),  # a history of each task
    *("krum", "trimmed_mean"),  # a number of tasks
}
# The other tasks' gradients do not depend on a task whose loss is 0.
AS_IF_NOT_THERE = {"equal", "uncertainty", "imtl_l", "dwa"}


@pytest.mark.parametrize("name", NAMES)
def test_methods_that_need_all_tasks_say_so_and_no_others(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net, method = small_net(), balancer(name, TASKS)
    hide(monkeypatch, net, 0, ("c",))
    refusal = refusal_of(net, method, 0)
    assert (refusal is not None) == (name in NEEDS_ALL)
    assert refusal is None or "'c'" in refusal.message
    line = next(
        line for line in (ROOT / "docs/balancing.md").read_text().splitlines() if "needs every task" in line
    )
    assert (f"`{name}`" in line) == (name in NEEDS_ALL)


@pytest.mark.parametrize("name", NAMES)
def test_what_a_method_learns_of_a_task_stays_where_a_batch_knows_nothing_of_it(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name in NEEDS_ALL:
        return
    net, method = small_net(), balancer(name, TASKS)
    hide(monkeypatch, net, 0, ("c",))
    net.follow(method)
    for parameter in method.parameters():
        assert parameter.grad is not None and parameter.grad[:2].all() and parameter.grad[2] == 0
    if name in AS_IF_NOT_THERE:
        gradient, two = net.gradient(), balancer("equal", TASKS)
        net.follow(two)
        torch.testing.assert_close(gradient, net.gradient())


def test_gradient_methods_combine_the_other_tasks_as_if_there_were_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    net = small_net()
    hide(monkeypatch, net, 0, ("c",))
    for name in (
        "upgrad",
        "mgda",
        "pcgrad",
        "cagrad",
        "imtl_g",
        "nash_mtl",
        "aligned_mtl",
        "config",
        "fairgrad",
    ):
        net.follow(balancer(name, TASKS))
        found = net.gradient()
        heads, net.heads = net.heads, {task: net.heads[task] for task in TASKS[:2]}
        scales, net.scales = net.scales, net.scales[:2]
        net.follow(balancer(name, TASKS[:2]))
        net.heads, net.scales = heads, scales
        torch.testing.assert_close(found, net.gradient(), msg=name)


def test_means_of_dwa_are_over_the_batches_that_know_the_task() -> None:
    sparse, full = balancer("dwa", ["a", "b"]), balancer("dwa", ["a", "b"])
    zero = torch.zeros(())
    for epoch in ([1.0, 3.0], [0.5, 0.7], [0.4, 0.2]):
        for value in epoch:
            full.combine({"a": torch.tensor(value), "b": torch.tensor(2.0)})
            sparse.combine({"a": torch.tensor(value), "b": torch.tensor(2.0)})
            sparse.combine({"a": zero, "b": torch.tensor(2.0)})
        full.end_epoch()
        sparse.end_epoch()
    batch = {"a": torch.tensor(3.0), "b": torch.tensor(7.0)}
    assert float(sparse.combine(batch)) == pytest.approx(float(full.combine(batch)), rel=1e-6)
    assert float(full.combine(batch)) != pytest.approx(10)


def test_dwa_goes_on_from_a_checkpoint_of_an_earlier_version() -> None:
    method, before = balancer("dwa", ["a", "b"]), scalarization.DWA(2.0)
    for values in ([1.0, 4.0], [0.5, 4.0], [0.2, 3.0]):
        batch = {"a": torch.tensor(values[0]), "b": torch.tensor(values[1])}
        other = balancer("dwa", ["a", "b"])
        state = {
            "._loss_sum": before._loss_sum,
            "._n_batches": before._n_batches,
            "._previous_averages": before._previous_averages,
        }
        other.load_state_dict({"_extra_state": state})
        for one in (method, other):
            assert float(one.combine(batch)) == pytest.approx(float(before(torch.tensor(values))), rel=1e-6)
        before._loss_sum, before._n_batches = torch.tensor(values), 1
        method.end_epoch()
        before.step()


def test_dwa_gives_a_task_that_no_epoch_knew_a_rate_of_one() -> None:
    method = balancer("dwa", ["a", "b"])
    for value in (1.0, 0.5, 0.25):
        method.combine({"a": torch.tensor(value), "b": torch.zeros(())})
        method.end_epoch()
    expected = 2 * torch.tensor([0.5, 1.0]).div(2).softmax(0)
    method.combine({"a": torch.tensor(1.0), "b": torch.tensor(1.0)})
    assert list(method.log().values()) == pytest.approx(expected.tolist())


@pytest.mark.parametrize("silent", [("c",), TASKS], ids=["one task", "all tasks"])
@pytest.mark.parametrize("first", [0, 2], ids=["first batch", "third batch"])
@pytest.mark.parametrize("name", NAMES)
def test_a_task_without_a_label_gets_no_gradient_and_nothing_becomes_nan(
    name: str, first: int, silent: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    net, method = small_net(), balancer(name, TASKS)
    hide(monkeypatch, net, first, silent)
    for step in range(4):
        if (refusal := refusal_of(net, method, step)) is not None:
            assert step == first
            assert refusal.hint
            return
        own = [parameter.grad for parameter in method.parameters() if parameter.grad is not None]
        state = [value for value in method.state_dict().values() if isinstance(value, Tensor)]
        assert all(
            value.isfinite().all() for value in [net.gradient(), *own, *state] if value.is_floating_point()
        )
        if step == first:
            heads = [p.grad for task in silent for p in net.heads[task].parameters()]
            assert all(grad is None or not grad.any() for grad in heads)
        if method.relooks:
            with torch.no_grad():
                method.after_step(net.losses(net.features(step), step))
