"""Unknown labels of every kind: losses, gradients and metrics are those of the data without the unknown parts.

All in float64, where sums in another order differ by 1e-16 a term.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from compactmtl.config.recipe import TaskConfig
from compactmtl.errors import DataError
from compactmtl.tasks import TargetSpec, Task, build_task
from compactmtl.tasks.instance_targets import cell_targets
from compactmtl.tasks.registry import all_classes, task_kinds

IMAGES, SIDE, IGNORE = 6, 8, 255
CLASSES = ("floor", "wall", "lamp")
UNKNOWN: dict[str, float] = {  # what an unknown element holds, by the target's format
    "mask": IGNORE,
    "class": IGNORE,
    "depth": 0.0,
    "disparity": 0.0,
    "normals": 0.0,
    "scalar": math.nan,
    "multilabel": -1.0,
    "instances": -1,
}
# Every loss of every kind, with the options that change its arithmetic.
OPTIONS: dict[tuple[str, str], list[dict[str, Any]]] = {
    ("classification", "cross_entropy"): [{}, {"label_smoothing": 0.2}],
    ("segmentation", "cross_entropy"): [{}, {"label_smoothing": 0.2}],
    ("segmentation", "cross_entropy_dice"): [{}, {"label_smoothing": 0.2}],
    ("segmentation", "focal"): [{}, {"gamma": 1.5}],
    ("multilabel", "bce"): [{}, {"per_class": True}],
    ("multilabel", "focal"): [{}, {"gamma": 1.5, "alpha": 0.3}],
    ("depth", "l1"): [{}, {"max_depth": 3.0}],
    ("depth", "log_l1"): [{}, {"max_depth": 3.0}],
    ("disparity", "l1"): [{}, {"min_disparity": 1.0}],
    ("regression", "smooth_l1"): [{}, {"beta": 0.3}],
    ("binned_regression", "cross_entropy"): [{}, {"sigma": 3.0}],
    ("binned_regression", "cross_entropy_l1"): [{"expectation_weight": 0.5}, {"sigma": 3.0}],
    ("boundaries", "weighted_bce"): [{}, {"edge_weight": 0.9}, {"radius": 2, "tolerance": 0}],
    ("instances", "panoptic"): [{}, {"balance": 0.5, "small_area": 0.2}],
}
NEEDED = {"binned_regression": {"low": 0.0, "high": 10.0, "bins": 5}}


@dataclass(frozen=True)
class Case:
    """A kind of task with one of its losses, and options."""

    kind: str
    loss: str
    options: dict[str, Any]

    def task(self) -> Task:
        target = all_classes()[self.kind].target_kind
        named = target in ("mask", "class", "multilabel", "instances")
        spec = TargetSpec(
            target,
            classes=CLASSES if named else (),
            ignore_index=IGNORE if named else None,
            mean=5.0,
            std=2.0,
        )
        options = NEEDED.get(self.kind, {}) | self.options
        config = TaskConfig.model_validate({"kind": self.kind, "loss": self.loss, "options": options})
        return build_task("it", config, spec)


def cases() -> Iterator[Case]:
    for kind in task_kinds():
        for loss in all_classes()[kind].losses:
            for options in OPTIONS.get((kind, loss), [{}]):
                yield Case(kind, loss, options)


CASES = list(cases())
NAMES = ["-".join([c.kind, c.loss, *(f"{k}={v}" for k, v in c.options.items())]) for c in CASES]
every_case = pytest.mark.parametrize("case", CASES, ids=NAMES)
hypothesis = settings(max_examples=8, deadline=None)
rows = st.lists(st.booleans(), min_size=IMAGES, max_size=IMAGES).filter(any)


def batch(task: Task, seed: int, images: int = IMAGES) -> tuple[Tensor, Tensor]:
    """A raw output and a target of which all is known, in float64."""
    generator = torch.Generator().manual_seed(seed)
    cells = (SIDE // task.stride,) * 2 if task.dense else ()
    output = torch.randn(images, task.channels, *cells, generator=generator, dtype=torch.float64)
    if task.target_kind in ("depth", "disparity"):
        output = output.exp()
    target = TARGETS[task.target_kind](images, generator)
    if task.target_kind == "instances":  # noise finds none, and so makes no mistake
        output = found(target) + 0.3 * output
    return output, target


def found(target: Tensor) -> Tensor:
    """An output of the instances that a target has, float64."""
    cells = cell_targets(target, len(CLASSES), 0.0).to(torch.float64)
    center = torch.where(cells.center == 1, 2.0, -12.0)
    return torch.cat([(cells.classes + 1e-2).log(), center[:, None], cells.offset], 1)


def scattered(images: int, generator: torch.Generator) -> Tensor:
    """Instances in two rectangles an image, of which every class is one somewhere."""
    target = torch.zeros(images, 2, SIDE, SIDE, dtype=torch.int64)
    for image in range(images):
        labels = torch.randint(0, len(CLASSES), (2,), generator=generator).tolist()
        height, width = torch.randint(1, 4, (2,), generator=generator).tolist()
        for number, (label, corner) in enumerate(zip(labels, (0, 4), strict=True), 1):
            target[image, 0, corner : corner + height, corner : corner + width] = number
            target[image, 1, corner : corner + height, corner : corner + width] = label
    return target


TARGETS: dict[str, Callable[[int, torch.Generator], Tensor]] = {
    "mask": lambda n, g: (
        torch.randint(0, 3, (n, SIDE // 2, SIDE // 2), generator=g)
        .repeat_interleave(2, 1)
        .repeat_interleave(2, 2)
    ),
    "class": lambda n, g: torch.randint(0, 3, (n,), generator=g),
    "depth": lambda n, g: 0.2 + 4 * torch.rand(n, 1, SIDE, SIDE, generator=g, dtype=torch.float64),
    "disparity": lambda n, g: 0.2 + 4 * torch.rand(n, 1, SIDE, SIDE, generator=g, dtype=torch.float64),
    "normals": lambda n, g: torch.nn.functional.normalize(
        torch.randn(n, 3, SIDE, SIDE, generator=g, dtype=torch.float64), dim=1
    ),
    "scalar": lambda n, g: 12 * torch.rand(n, generator=g, dtype=torch.float64) - 1,
    "multilabel": lambda n, g: torch.randint(0, 2, (n, 3), generator=g).double(),
    "instances": scattered,
}


def hidden(task: Task, target: Tensor, known: Tensor) -> Tensor:
    """The target with what is not `known` marked as unknown; `known` broadcasts to it."""
    return torch.where(known, target, torch.full_like(target, UNKNOWN[task.target_kind]))


def by_image(known: list[bool], target: Tensor) -> Tensor:
    return torch.tensor(known).view(-1, *[1] * (target.ndim - 1))


def slope(task: Task, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Loss and gradient."""
    leaf = output.clone().requires_grad_()
    loss = task.loss(leaf, target)
    (gradient,) = torch.autograd.grad(loss, leaf)
    return loss.detach(), gradient


def same(one: Tensor, other: Tensor) -> None:
    assert one.dtype == other.dtype == torch.float64
    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@every_case
@hypothesis
@given(seed=st.integers(0, 10**6), known=rows)
def test_losses_and_gradients_are_those_without_the_unknown_images(
    case: Case, seed: int, known: list[bool]
) -> None:
    task = case.task()
    output, target = batch(task, seed)
    loss, gradient = slope(task, output, hidden(task, target, by_image(known, target)))
    expected, kept = slope(task, output[known], target[known])
    same(loss, expected)
    same(gradient[known], kept)
    assert not gradient[[not one for one in known]].any()


@every_case
@hypothesis
@given(seed=st.integers(0, 10**6), known=rows, cut=st.integers(1, IMAGES - 1))
def test_metrics_over_batches_are_those_without_the_unknown_images(
    case: Case, seed: int, known: list[bool], cut: int
) -> None:
    if case.kind == "instances":
        pytest.importorskip("pycocotools")
    task = case.task()
    known = [True, *known[1:]]
    output, target = batch(task, seed)
    if task.target_kind == "mask":
        target[0, :, :4], target[0, :, 4:] = 0, 1  # boundaries need one
    given_target = hidden(task, target, by_image(known, target))
    parts, whole = task.metrics(), task.metrics()
    for some in (slice(0, cut), slice(cut, IMAGES)):
        parts.update(output[some], given_target[some])
    parts.update(output, hidden(task, target, torch.tensor(False)))  # a batch of which nothing is known
    whole.update(output[known], target[known])
    # a share of the sum: the terms are added in another order
    assert parts.compute() == pytest.approx(whole.compute(), rel=1e-12, abs=1e-12)


@every_case
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e3])
def test_of_a_batch_of_unknown_labels_there_is_no_loss_no_gradient_and_no_metric(
    case: Case, scale: float
) -> None:
    if case.kind == "instances":
        pytest.importorskip("pycocotools")
    task = case.task()
    output, target = batch(task, 0)
    nothing = hidden(task, target, torch.tensor(False))
    loss, gradient = slope(task, scale * output, nothing)
    assert loss.item() == 0
    assert torch.equal(gradient, torch.zeros_like(output))
    assert not task.known(nothing).any()
    metrics = task.metrics()
    metrics.update(output, nothing)
    with pytest.raises(DataError, match="'it'"):
        metrics.compute()


# Kinds whose elements are scored one by one: an element can be taken out of a batch.
ONE_BY_ONE = [
    case for case in CASES if case.kind in ("segmentation", "depth", "disparity", "normals", "multilabel")
]


def element_known(task: Task, target: Tensor, seed: int, share: float) -> Tensor:
    """Which elements are known, of the target's shape or of one channel, and not none."""
    shape = list(target.shape)
    if task.target_kind in ("depth", "disparity", "normals"):
        shape[1] = 1
    known = torch.rand(shape, generator=torch.Generator().manual_seed(seed + 1)) < share
    known.view(-1)[0] = True
    return known


def picked(values: Tensor, known: Tensor, channels: int) -> Tensor:
    """The known places of maps (B, channels, H, W), or (B, H, W) of none, as one row of pixels."""
    if values.ndim == 3:
        return values[known].view(1, 1, -1)
    pixels = values.movedim(1, -1)[known.squeeze(1) if known.ndim == 4 else known]
    return pixels.T.reshape(1, channels, 1, -1)


@pytest.mark.parametrize("case", [case for case in ONE_BY_ONE if case.kind != "multilabel"], ids=str)
@hypothesis
@given(seed=st.integers(0, 10**6), share=st.floats(0, 1))
def test_losses_gradients_and_metrics_are_those_of_the_known_pixels(
    case: Case, seed: int, share: float
) -> None:
    task = case.task()
    output, target = batch(task, seed)
    known = element_known(task, target, seed, share)
    given_target = hidden(task, target, known)
    alone = (picked(output, known, task.channels), picked(target, known, target.shape[1]))
    loss, gradient = slope(task, output, given_target)
    expected, kept = slope(task, *alone)
    same(loss, expected)
    same(picked(gradient, known, task.channels), kept)
    unknown = ~(known if known.ndim == 4 else known[:, None])
    assert not gradient[unknown.expand_as(gradient)].any()
    if task.known(given_target).any():  # an option may take the rest away
        metrics, reference = task.metrics(), task.metrics()
        metrics.update(output[:1], given_target[:1])
        metrics.update(output[1:], given_target[1:])
        reference.update(*alone)
        assert metrics.compute() == pytest.approx(reference.compute(), rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("case", [case for case in CASES if case.kind == "multilabel"], ids=str)
@hypothesis
@given(seed=st.integers(0, 10**6), share=st.floats(0, 1))
def test_labels_of_an_image_are_unknown_one_by_one(case: Case, seed: int, share: float) -> None:
    task = case.task()
    one = build_task(
        "it",
        TaskConfig.model_validate({"kind": case.kind, "loss": case.loss, "options": case.options}),
        TargetSpec("multilabel", classes=CLASSES[:1]),
    )
    output, target = batch(task, seed)
    known = element_known(task, target, seed, share)
    known[0] = True  # a class of which nothing is known has no accuracy
    loss, gradient = slope(task, output, hidden(task, target, known))
    expected, kept = slope(one, output[known][:, None], target[known][:, None])
    same(loss, expected)
    same(gradient[known], kept[:, 0])
    assert not gradient[~known].any()
    metrics, by_class = task.metrics(), []
    for image in range(IMAGES):
        metrics.update(output[image : image + 1], hidden(task, target, known)[image : image + 1])
    for number in range(len(CLASSES)):
        single, here = one.metrics(), known[:, number]
        single.update(output[here, number : number + 1], target[here, number : number + 1])
        by_class.append(single.compute()["accuracy"])
    assert metrics.compute()["accuracy"] == pytest.approx(sum(by_class) / len(CLASSES), abs=1e-12)


@pytest.mark.parametrize("weight", [None, 0.9])
@hypothesis
@given(seed=st.integers(0, 10**6), share=st.floats(0, 1))
def test_boundaries_are_unknown_pixel_by_pixel(weight: float | None, seed: int, share: float) -> None:
    options = {} if weight is None else {"edge_weight": weight}
    task = Case("boundaries", "weighted_bce", options).task()
    output, target = batch(task, seed, images=2)
    valid = element_known(task, target, seed, share)
    total, count, places = torch.zeros((), dtype=torch.float64), 0, torch.zeros_like(output, dtype=torch.bool)
    leaf = output.clone().requires_grad_()
    for image in range(2):
        edges: dict[tuple[int, int], bool] = {}
        for row in range(SIDE):
            for column in range(SIDE):
                if not valid[image, row, column]:
                    continue
                near = (image, slice(max(row - 1, 0), row + 2), slice(max(column - 1, 0), column + 2))
                edge = bool((target[near][valid[near]] != target[image, row, column]).any())
                if edge or bool(valid[near].all()):
                    edges[row, column] = edge
        others = weight if weight is not None else 1 - sum(edges.values()) / max(len(edges), 1)
        for (row, column), edge in edges.items():
            chance = leaf[image, 0, row, column].sigmoid()
            total = total - (others * chance.log() if edge else (1 - others) * (1 - chance).log())
            places[image, 0, row, column] = True
        count += len(edges)
    loss, gradient = slope(task, output, hidden(task, target, valid))
    same(loss, total.detach() / max(count, 1))
    if count:
        same(gradient, torch.autograd.grad(total / count, leaf)[0])
    assert not gradient[~places].any()


@pytest.mark.parametrize("balance", [0.0, 0.5])
@hypothesis
@given(seed=st.integers(0, 10**6), rows_known=st.integers(1, 2), columns_known=st.integers(1, 2))
def test_instances_of_a_partly_unknown_image_are_those_of_the_rest(
    balance: float, seed: int, rows_known: int, columns_known: int
) -> None:
    """Instances lie in one cell each, so that cutting cells off cuts none of them."""
    task = Case("instances", "panoptic", {"balance": balance, "small": 1.0}).task()
    output, target = batch(task, seed)
    height, width = rows_known * task.stride, columns_known * task.stride
    known = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    known[:height, :width] = True
    loss, gradient = slope(task, output, hidden(task, target, known))
    expected, kept = slope(task, output[..., :rows_known, :columns_known], target[..., :height, :width])
    same(loss, expected)
    same(gradient[..., :rows_known, :columns_known], kept)
    assert gradient.count_nonzero() == kept.count_nonzero()


def test_a_few_known_pixels_of_instances_weigh_as_much_as_many() -> None:
    """The mean is over what is known, also where that is less than one cell."""
    task = Case("instances", "panoptic", {"centers": 0.0, "offsets": 0.0}).task()
    output, target = batch(task, 0, images=1)
    target.zero_()
    known = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    known[0, 0] = True
    loss, _ = slope(task, output, hidden(task, target, known))
    same(loss, -output[0, : len(CLASSES) + 1, 0, 0].log_softmax(0)[0])


def test_what_is_found_where_nothing_is_known_is_no_mistake() -> None:
    pytest.importorskip("pycocotools")
    task = Case("instances", "panoptic", {}).task()
    target = torch.zeros(1, 2, 32, 32, dtype=torch.int64)
    target[0, 0, 4:12, 4:12], target[0, 0, 20:28, 20:28] = 1, 2
    output = found(target)
    output[0, len(CLASSES) + 1, 4:] += 2  # the second is the surer one
    precision = []
    for numbers, labels in ((0, 0), (-1, -1)):  # nothing is there, nothing is known
        target[0, 0, 16:], target[0, 1, 16:] = numbers, labels
        metrics = task.metrics()
        metrics.update(output, target)
        precision.append(metrics.compute()["ap50"])
    assert precision == pytest.approx([0.5, 1.0], abs=0.01)


def test_a_normal_that_is_no_number_is_unknown() -> None:
    task = Case("normals", "cosine", {}).task()
    output, target = batch(task, 0)
    given_target = target.clone()
    given_target[:, 1, 0, 0] = math.nan
    known = torch.ones(SIDE, SIDE, dtype=torch.bool)
    known[0, 0] = False
    for found, expected in zip(
        slope(task, output, given_target), slope(task, output, hidden(task, target, known)), strict=True
    ):
        same(found, expected)
