"""Two processes with a part of a batch each: losses, norms, penalties and metrics are those of the whole batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compactmtl.balancing import DummyGradientNorm
from compactmtl.balancing.penalties import input_gradient_penalty, weight_gradient_penalty
from compactmtl.distributed.agree import anyone, check_alike, digest, first_does, gathered, totals
from compactmtl.distributed.processes import OwnDraws, average, reached, sum_over
from compactmtl.distributed.sums import joined, mean, moments
from compactmtl.errors import DataError, MachineError, TrainingError
from compactmtl.overparam.repvgg import BranchNorm
from compactmtl.tasks import TargetSpec, Task
from compactmtl.tasks.registry import task_kinds
from compactmtl.train.distill import distillation_loss
from compactmtl.train.mimic import relative_error, turned
from compactmtl.verify.accuracy import evaluate
from tests.support.processes import in_processes
from tests.support.task_kinds import CLASSES, usual_task

PARTS = (slice(0, 5), slice(5, 8))  # of 8 images: uneven
SIZE = (12, 16)
LOSSES = {
    "segmentation": ("cross_entropy", "dice", "cross_entropy_dice", "focal"),
    "classification": ("cross_entropy", "dice"),
    "multilabel": ("bce", "focal"),
    "depth": ("l1", "log_l1"),
    "disparity": ("l1", "l1_std"),
    "regression": ("smooth_l1", "l1", "l2"),
    "binned_regression": ("cross_entropy", "cross_entropy_l1"),
}


def drawn(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def target_of(task: Task, count: int = 8, seed: int = 3) -> Tensor:
    """Labels of which some are unknown, and of image 6, in the second part, nearly all."""
    spec, draw = task.spec, drawn(seed)
    classes = len(CLASSES)
    if spec.kind in ("mask", "class"):
        shape = (count, *SIZE) if spec.kind == "mask" else (count,)
        labels = torch.randint(0, classes, shape, generator=draw)
        labels[6] = 255
        return labels.masked_fill(torch.rand(shape, generator=draw) < 0.2, 255)
    if spec.kind == "multilabel":
        return torch.randint(-1, 2, (count, classes), generator=draw).float()
    if spec.kind == "scalar":
        values = 20 + 5 * torch.randn(count, generator=draw)
        values[6] = float("nan")
        return values
    if spec.kind == "normals":
        vectors = F.normalize(torch.randn(count, 3, *SIZE, generator=draw), dim=1)
        vectors[6, :, 1:] = 0
        return vectors
    if spec.kind == "instances":
        maps = torch.zeros(count, 2, *SIZE, dtype=torch.int64)
        for image in range(count - 1):
            maps[image, 0, 2:8, image : image + 6] = 1
            maps[image, 1, 2:8, image : image + 6] = image % classes
        maps[6, :, :, 10:] = -1
        return maps
    maps = 1 + torch.rand(count, 1, *SIZE, generator=draw)
    maps[6, :, 1:] = 0
    return maps


def task_of(kind: str, loss: str | None = None) -> Task:
    task = usual_task(kind)
    spec = task.spec
    if spec.kind in ("mask", "class"):
        spec = TargetSpec(spec.kind, classes=spec.classes, ignore_index=255)
    return type(task)(task.name, kind, task.target, spec, 1.0, loss or task.loss_name, task.options)


def output_of(task: Task, count: int = 8) -> Tensor:
    cells = tuple(-(-side // task.stride) for side in SIZE) if task.dense else ()
    return torch.randn(count, task.channels, *cells, generator=drawn(1), dtype=torch.float64)


def with_slope(value: Callable[[Tensor], Tensor], whole: Tensor, rows: slice) -> list[Tensor]:
    """The value of some rows, and its gradient by them."""
    part = whole[rows].clone().requires_grad_()
    found = value(part)
    (slope,) = torch.autograd.grad(found, part)
    return [found.detach(), slope]


ALL = slice(0, 8)


def loss_of(task: Task, target: Tensor, output: Tensor) -> Tensor:
    return task.loss(output, target)


def lesson_of(task: Task, taught: Tensor, output: Tensor) -> Tensor:
    return distillation_loss(task, output, taught, 2.0)


def distance_of(distance: Callable[[Tensor, Tensor], Tensor], taught: Tensor, features: Tensor) -> Tensor:
    return distance(features, taught)


def losses(rows: slice) -> dict[str, list[Tensor]]:
    found = {}
    for kind in task_kinds():
        for name in LOSSES.get(kind, (None,)):
            task = task_of(kind, name)
            value = partial(loss_of, task, target_of(task)[rows])
            found[f"{kind}/{name}"] = with_slope(value, output_of(task), rows)
    for kind in ("segmentation", "multilabel", "regression"):
        task = task_of(kind)
        taught = torch.randn(output_of(task).shape, generator=drawn(5), dtype=torch.float64)[rows]
        found[f"distillation/{kind}"] = with_slope(partial(lesson_of, task, taught), output_of(task), rows)
    features = torch.randn(8, 4, 3, 3, generator=drawn(6), dtype=torch.float64)
    for distance in (relative_error, turned):
        value = partial(distance_of, distance, features[rows] + 1)
        found[distance.__name__] = with_slope(value, features.square(), rows)
    found["mean"] = with_slope(lambda part: mean(part.square()), features, rows)
    return found


def norms(rows: slice) -> dict[str, list[Tensor]]:
    """Outputs, running statistics and gradients of norms, through a loss of the whole batch and its slope."""
    found = {}
    x = 50 + torch.randn(8, 4, 3, 5, generator=drawn(2), dtype=torch.float64)
    like = torch.ones(4, 4, 1, 1, dtype=torch.float64)
    modules: dict[str, nn.Module] = {
        "norm": nn.BatchNorm2d(4).double(),
        "cumulative": nn.BatchNorm2d(4, momentum=None).double(),
        "plain": nn.BatchNorm2d(4, affine=False, track_running_stats=False).double(),
        "branch": BranchNorm(like, 0.7, shifted=True),
        "unshifted": BranchNorm(like, 0.7, shifted=False),
    }
    for name, module in modules.items():
        part = x[rows].clone().requires_grad_()
        output = module(part)
        loss = mean(output.pow(3) + output.exp().sqrt())
        (alone,) = torch.autograd.grad(loss, part, retain_graph=True)  # by torch's own kernels
        (slope,) = torch.autograd.grad(loss, part, create_graph=True)
        (second,) = torch.autograd.grad(mean(slope.square()), part)
        state = [value.double() for value in module.state_dict().values()]
        found[name] = [output.detach(), loss.detach(), slope.detach(), alone, *state]
        if name == "norm":
            found["twice"] = [second]
    average_, variance, _ = moments(x[rows], [0, 2, 3])
    found["moments"] = [average_, variance]
    return found


def penalties(rows: slice) -> dict[str, list[Tensor]]:
    """Penalties with the gradients that they leave in the weights: a head with a norm, a batch that is read through one."""
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 5)).double()
    heads = {
        "a": nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3)).double(),
        "b": nn.Linear(5, 3).double(),
    }
    x = torch.randn(8, 6, generator=drawn(3), dtype=torch.float64)[rows].requires_grad_()
    task = task_of("classification")
    target = target_of(task)[rows]
    found = {}
    for name in ("exact", "plain", "finite_difference", "input", "weight"):
        features = encoder(x)
        total = torch.stack([task.loss(head(features), target) for head in heads.values()]).sum()
        if name == "input":
            penalty = input_gradient_penalty(total, x)
        elif name == "weight":
            penalty = weight_gradient_penalty(total, encoder.parameters())
        else:
            dummy = DummyGradientNorm(
                heads,
                dict.fromkeys(heads, task.loss),
                mode="finite_difference" if name == "finite_difference" else "exact",
                norm="plain" if name == "plain" else "squared",
            )
            penalty = dummy(features, dict.fromkeys(heads, target))
        parameters = [p for module in (encoder, *heads.values()) for p in module.parameters()]
        slopes = torch.autograd.grad(total + penalty, parameters, allow_unused=True)
        gradients = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, slopes, strict=True)]
        average(gradients)
        found[name] = [penalty.detach(), *gradients]
    return found


def batches(rank: int, count: int) -> Iterator[dict[str, Any]]:
    """Five batches of two images: those of process `rank` of `count`."""
    for number in range(5):
        if number % count == rank:
            rows = slice(2 * number, 2 * number + 2)
            targets = {kind: target_of(task_of(kind), 10)[rows] for kind in task_kinds()}
            sources = ["far" if number == 3 else "near"] * 2
            image = torch.full((2, 3, *SIZE), float(number))
            yield {"image": image, "targets": targets, "sources": sources}


class Part:
    """A process's batches; classes are labelled by several data sets."""

    labeled_apart = frozenset({"classification"})

    def __init__(self, rank: int, count: int) -> None:
        self.place = (rank, count)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return batches(*self.place)


def metrics(rank: int, count: int, tell: Callable[[], None] | None) -> Mapping[str, Mapping[str, float]]:
    tasks = {}
    for kind in task_kinds():
        task = task_of(kind)
        tasks[kind] = type(task)(kind, kind, kind, task.spec, 1.0, task.loss_name, task.options)

    def run(image: Tensor) -> dict[str, Tensor]:
        number = int(image[0, 0, 0, 0])
        return {
            kind: output_of(task, 10)[2 * number : 2 * number + 2].float() for kind, task in tasks.items()
        }

    return evaluate(run, Part(rank, count), tasks, joined=tell)  # type: ignore[arg-type]


def failing() -> str:
    raise DataError("there is no such file")


def agreement(rank: int) -> dict[str, Any]:
    found: dict[str, Any] = {
        "totals": totals([rank + 1.0, 2.5]),
        "anyone": [anyone(rank == 1), anyone(False)],
        "gathered": gathered({"rank": rank, "long": "x" * (10 * rank)}),
        "first": first_does(lambda: {"value": rank + 7}),
    }
    try:
        first_does(failing)
    except (DataError, TrainingError) as error:
        found["failed"] = [type(error).__name__, error.message]
    check_alike({"the weights": 3, "the masks": 4}, "at the start")
    try:
        check_alike({"the weights": 3, "the masks": rank}, "after step 5")
    except TrainingError as error:
        found["differ"] = error.message
    torch.manual_seed(11)
    draws = OwnDraws(0)
    found["own"] = []
    for step in (4, 4, 5):
        with draws.at(step, device=torch.device("cpu")):
            found["own"].append(torch.rand(3))
    with OwnDraws(0).at(5, device=torch.device("cpu")):
        found["again"] = torch.rand(3)
    found["alike"] = torch.rand(3)
    one, other = torch.full((3, 2), rank + 1.0), torch.arange(4).to(torch.int64)
    strided = torch.ones(1, 2, 3, 3).contiguous(memory_format=torch.channels_last)
    sum_over([one, strided, other])
    found["summed"] = [one, strided, other]
    return found


def work(rank: int, folder: Path) -> dict[str, Any]:
    with joined():
        found: dict[str, Any] = {
            "losses": losses(PARTS[rank]),
            "norms": norms(PARTS[rank]),
            "penalties": penalties(PARTS[rank]),
        }
    asked: list[bool] = []
    found["metrics"] = metrics(rank, 2, lambda: asked.append(True))
    found["asked"] = asked
    found["agreement"] = agreement(rank)
    if rank == 0:
        found["left"] = left_alone()
    return found  # process 1 ends, while the other waits for it


def left_alone() -> str:
    try:
        totals([1.0])
    except MachineError as error:
        return error.message
    return "nothing happened"


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    return in_processes(work, 2, tmp_path_factory.mktemp("processes"))


def assert_slopes(found: list[Any], key: str, whole: Mapping[str, list[Tensor]]) -> None:
    """Values are the whole batch's; a process's slopes are twice its part of the batch's, whose loss both differentiate."""
    for name, (value, slope) in whole.items():
        for one, rows in zip(found, PARTS, strict=True):
            torch.testing.assert_close(one[key][name][0], value, rtol=1e-12, atol=1e-12, msg=name)
            torch.testing.assert_close(one[key][name][1], 2 * slope[rows], rtol=1e-10, atol=1e-12, msg=name)


@pytest.mark.slow
def test_losses_are_of_what_is_known_of_the_whole_batch(found: list[Any]) -> None:
    assert_slopes(found, "losses", losses(ALL))


@pytest.mark.slow
def test_batch_norm_is_by_the_whole_batch(found: list[Any]) -> None:
    for name, whole in norms(ALL).items():
        for one, rows in zip(found, PARTS, strict=True):
            expected = list(whole)
            if name == "twice":
                expected = [
                    8 * whole[0][rows]
                ]  # twice for each of both differentiate, of the square of what is twice as large
            elif name != "moments":
                expected[0] = expected[0][rows]
                expected[2:4] = [2 * slope[rows] for slope in expected[2:4]]
            for mine, all_ in zip(one["norms"][name], expected, strict=True):
                torch.testing.assert_close(mine, all_, rtol=1e-9, atol=1e-11, msg=name)


@pytest.mark.slow
def test_penalties_are_of_the_whole_batch_with_their_gradients(found: list[Any]) -> None:
    for name, whole in penalties(ALL).items():
        for one in found:
            for mine, all_ in zip(one["penalties"][name], whole, strict=True):
                tolerance = 1e-6 if name == "finite_difference" else 1e-10  # it divides rounding by its step
                torch.testing.assert_close(mine, all_, rtol=tolerance, atol=1e-2 * tolerance, msg=name)


@pytest.mark.slow
def test_metrics_of_parts_make_up_the_splits(found: list[Any]) -> None:
    whole = metrics(0, 1, None)
    assert "classification@far" in whole
    for one in found:
        assert one["asked"] == [True]
        assert list(one["metrics"]) == list(whole)
        for name, values in whole.items():
            assert one["metrics"][name] == pytest.approx(values, rel=1e-12, abs=0, nan_ok=True), name


@pytest.mark.slow
def test_processes_agree(found: list[Any]) -> None:
    first, second = (one["agreement"] for one in found)
    for one in (first, second):
        assert one["totals"] == [3.0, 5.0]
        assert one["anyone"] == [True, False]
        assert one["gathered"] == [{"rank": 0, "long": ""}, {"rank": 1, "long": "x" * 10}]
        assert one["first"] == {"value": 7}
        assert "after step 5 the masks differ between process 0 and process 1" in one["differ"]
        assert [value.flatten().tolist() for value in one["summed"]] == [[3.0] * 6, [2.0] * 18, [0, 2, 4, 6]]
        assert one["summed"][1].is_contiguous(memory_format=torch.channels_last)
    assert first["failed"] == ["DataError", "there is no such file"]
    assert second["failed"] == ["TrainingError", "process 1 stops with the first one: there is no such file"]
    torch.manual_seed(11)
    alike = torch.rand(3)
    drawn_by_all = [*first["own"], *second["own"]]
    assert len({tuple(one.tolist()) for one in drawn_by_all}) == 6
    for one in (first, second):
        assert torch.equal(one["alike"], alike)  # as if nothing had been drawn
        assert torch.equal(one["again"], one["own"][2])  # as after a resume


@pytest.mark.slow
def test_a_process_that_has_ended_is_said(found: list[Any]) -> None:
    assert found[0]["left"].startswith("process 0 of 2 stops: another one has ended")


def test_what_gloo_adds_for_its_developers_is_left_out() -> None:
    said = "[/w/gloo/transport/tcp/pair.cc:545] Read error [127.0.0.1]:13507: Connection reset by peer. This is typically a bug"
    with (
        pytest.raises(
            MachineError, match=r"answers \(Read error \[127.0.0.1\]:13507: Connection reset by peer\)"
        ),
        reached(),
    ):
        raise RuntimeError(said)
    with pytest.raises(MachineError, match=r"\(RuntimeError\)"), reached():
        raise RuntimeError("\n")


def test_alone_nothing_changes() -> None:
    values = torch.randn(4, 3)
    with joined(), OwnDraws(0).at(1, device=torch.device("cpu")):
        assert F.batch_norm.__module__ == "torch.nn.functional"
        assert torch.equal(mean(values), values.mean())
    assert totals([2.0]) == [2.0] and gathered(3) == [3] and first_does(lambda: 5) == 5
    check_alike({"a": 1}, "now")


def test_a_digest_knows_every_bit_and_its_place() -> None:
    one = torch.arange(12.0).view(3, 4)
    other = one.clone()
    assert digest([one]) == digest([other])
    other[1, 2] = torch.nextafter(other[1, 2], torch.tensor(100.0))
    assert digest([one]) != digest([other])
    assert digest([one]) != digest([one.flip(0)])
    assert digest([torch.tensor([True, False, False])]) != digest([torch.tensor([False, True, False])])
