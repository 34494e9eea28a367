"""A recipe's training in several processes: what is refused, each one's part of the data, and whether all are still alike.

Every process has the whole network, optimizer and state of all parts; what differs is the data that it reads. So a checkpoint
is the first one's state, and it is resumed by any number of processes.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from contextlib import nullcontext
from itertools import pairwise

import torch
from torch import Tensor

from compactmtl.config import Recipe
from compactmtl.data.inputs import given, image_of, size_of
from compactmtl.distributed.agree import check_alike, digest, totals
from compactmtl.distributed.in_parts import Sums
from compactmtl.distributed.processes import distributed, rank, world
from compactmtl.distributed.sums import averaged, joined
from compactmtl.errors import CompactError, ConfigError
from compactmtl.tasks import Task
from compactmtl.tasks.losses import at_least_float32
from compactmtl.train.accumulate import number_of_parts
from compactmtl.train.session import Session
from compactmtl.train.shrink import Shrinker
from compactmtl.verify.joining import can_be_joined

EVERY = 100  # steps between looks at whether all processes have the same
SAME = 1e-4  # of a loss of the whole batch in float32, whose parts are summed in another order


def check_supported(recipe: Recipe) -> None:
    """Raise ConfigError, naming the key, where several processes were started for what one alone can do."""
    if not distributed():
        return
    refused = {
        "train.mixup": recipe.train.mixup is not None,
        "train.compile": recipe.train.compile is not False,
        "data.mixing.batch_norm: per_source": bool(recipe.data.sources)
        and recipe.data.mixing.batch_norm == "per_source",
        "sparsity.selective.losses": recipe.sparsity is not None and bool(recipe.sparsity.losses),
        "a latency budget of sparsity, whose choices are measured": recipe.sparsity is not None
        and recipe.sparsity.target is not None
        and recipe.sparsity.target.latency is not None,
    }
    for what, there in refused.items():
        if there:
            raise ConfigError(
                f"{what}: not supported by several processes, and {world()} were started",
                "train it in one process, or leave it out",
            )
    try:
        totals([0.0])
    except (CompactError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"torch.distributed cannot exchange numbers on the CPU: {error}",
            'initialize it with the backend "gloo", or "cpu:gloo,cuda:nccl" for GPUs',
        ) from error


def check_parts(session: Session) -> None:
    """Raise ConfigError where a batch has fewer images than there are processes, or a task's loss of the parts of a batch, on
    several processes or one after the other, is not one of the whole batch.

    Before the run's folder is made, which a refused training leaves to the next try.
    """
    parts = min(session.recipe.train.accumulate, 2)
    if parts > 1:
        _check_losses(
            session, parts, f"{session.recipe.train.accumulate} parts", "leave out train.accumulate"
        )
        dgr = session.recipe.regularization.dgr
        if dgr is not None and dgr.mode == "exact":
            _check_means(session)
    if not distributed():
        return
    sampler = session.train_loader.sampler
    if sampler.least < world():
        single = sampler.least == 1
        most = "train in one process" if single else f"start at most {sampler.least} processes"
        raise ConfigError(
            f"an epoch has a batch of {sampler.least} image{'' if single else 's'}, fewer than the {world()} processes",
            f"{most}, or choose a data.batch_size that leaves a larger last batch of the "
            f"{session.samples['train']} images",
        )
    if parts == 1:
        _check_losses(session, 1, f"{world()} processes", "train in one process")


def prepare(session: Session) -> tuple[str, ...]:
    """Give this process its part of the session's data, which `check_parts` has looked at; lines for the user."""
    at_once = session.recipe.images_at_once
    parts = number_of_parts(session.recipe.data.batch_size, at_once, world())
    if not distributed():
        images = f"{at_once} image{'' if at_once == 1 else 's'}"
        return (f"each batch passes in {parts} parts of at most {images}",) if parts > 1 else ()
    session.train_loader.sampler.split(rank(), world())
    lines = [
        f"{world()} processes: each trains on its part of every batch of {session.recipe.data.batch_size} images"
    ]
    if parts > 1:
        lines.append(f"each of them passes its part of a batch in {parts} parts")
    if whole := _apart(session):
        lines.append(
            f"each process validates on the whole split: metrics of {', '.join(whole)} cannot be joined"
        )
    else:
        session.select_loader.sampler.split(rank(), world())
    return tuple(lines)


def validates_in_parts(session: Session) -> bool:
    """Whether each process has its own batches of the split that selects."""
    return distributed() and not _apart(session)


def _apart(session: Session) -> list[str]:
    """The tasks whose metrics on parts of a split cannot be joined."""
    return [name for name, task in session.tasks.items() if not can_be_joined(task)]


def _check_losses(session: Session, parts: int, who: str, instead: str) -> None:
    """Raise ConfigError for a task whose loss of the parts of a batch, joined, is not its loss of the batch.

    Each process passes its share in `parts` parts. `who` would then train another network, and `instead` is what to do.
    """
    images = list(range(min(len(session.data.splits["train"]), 2 * parts * world())))
    batch = session.train_loader.dataset[(0, images)]
    if isinstance(batch, CompactError):
        raise batch
    marks = [len(images) * place // (parts * world()) for place in range(parts * world() + 1)]
    mine = list(pairwise(marks))[parts * rank() : parts * (rank() + 1)]
    generator = torch.Generator().manual_seed(session.recipe.seed)
    for name, task in session.tasks.items():
        target = batch["targets"][task.target]
        shape = (len(images), task.channels, *_cells(task, size_of(image_of(given(batch)))))
        output = torch.randn(shape, generator=generator)
        with torch.no_grad():
            whole = float(task.loss(at_least_float32(output), target))
            found = _in_parts([(output[first:last], target[first:last]) for first, last in mine], task)
        wrong = totals([float(not abs(found - whole) <= SAME * max(abs(whole), SAME))])[0]
        if wrong and whole == whole:
            raise ConfigError(
                f"tasks.{name}: the loss of kind {task.kind} is {found:.6g} of the parts of a batch and {whole:.6g} of the batch, so "
                f"{who} would train another network than one",
                "take its means with masked_mean of compactmtl.tasks.losses, or mean and summed of compactmtl.distributed.sums; or "
                f"{instead}",
            )


def _in_parts(parts: Sequence[tuple[Tensor, Tensor]], task: Task) -> float:
    """The loss of the outputs and targets of all parts on all processes, from sums over them."""
    sums = Sums()
    sums.begin()
    loss = 0.0
    for output, target in parts:
        with joined(), sums.part(last=True) if len(parts) > 1 else nullcontext():
            loss = float(task.loss(output, target))
    return loss


def _check_means(session: Session) -> None:
    """Raise ConfigError where dummy gradient norms of a task's loss cannot be taken part by part: it is no mean over the batch.

    Of a mean the gradient is the sum of its parts' gradients, each of which its part can differentiate again. Of another
    function of sums, such as a Dice loss, a part also moves the others' gradients.
    """
    draw = torch.Generator().manual_seed(session.recipe.seed)
    batch = session.train_loader.dataset[(0, list(range(min(len(session.data.splits["train"]), 4))))]
    if isinstance(batch, CompactError):
        raise batch
    middle = len(batch["image"]) // 2
    for name, task in session.tasks.items():
        target = batch["targets"][task.target]
        shape = (len(target), task.channels, *_cells(task, size_of(image_of(given(batch)))))
        output = torch.randn(shape, generator=draw).double()
        whole = _slopes(task, [(output, target)])
        parts = _slopes(task, [(output[:middle], target[:middle]), (output[middle:], target[middle:])])
        if float((whole - parts).norm()) > SAME * float(whole.norm()):
            raise ConfigError(
                f"regularization.dgr: in parts of a batch its gradient is not that of the batch for tasks.{name}, whose loss of kind "
                f"{task.kind} is no mean over the batch",
                "set regularization.dgr.mode: finite_difference, choose another loss of the task, or leave out train.accumulate",
            )


def _slopes(task: Task, parts: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """The gradient by the outputs of the squared norm of the loss's gradient by a factor of each channel, part by part."""
    sums = Sums()
    found: list[Tensor] = []
    for learning in (True, True, False):
        found = []
        sums.begin()
        for number, (output, target) in enumerate(parts):
            leaf = output.clone().requires_grad_()
            factors = output.new_ones(output.shape[1:2]).requires_grad_()
            last = learning and number == len(parts) - 1
            with torch.enable_grad(), sums.part(last=last):
                loss = task.loss(leaf * factors.view(-1, *[1] * (output.ndim - 2)), target)
                (slope,) = averaged(torch.autograd.grad(loss, [factors], create_graph=True))
                found.append(torch.autograd.grad(slope.square().sum(), leaf)[0])
        if learning:
            sums.learn()
    return torch.cat(found)


def _cells(task: Task, size: tuple[int, int]) -> tuple[int, ...]:
    return tuple(-(-side // task.stride) for side in size) if task.dense else ()


def check_state(session: Session, *, thoroughly: bool) -> None:
    """Raise TrainingError unless weights, masks, plan and random numbers are the same on all processes, to the bit.

    `thoroughly` looks at the optimizer too.
    """
    if not distributed():
        return
    facts = {"the weights": digest(list(session.model.state_dict().values()))}
    if session.sparsifier is not None:
        facts["the masks"] = digest([torch.from_numpy(flags) for flags in session.sparsifier.dead()])
    if (shrinker := session.part(Shrinker)) is not None:
        facts["the plans of what was removed"] = zlib.crc32(shrinker.state_dict().encode())
    if thoroughly:
        held = session.optimizer.state.values()
        facts["the optimizer's moments"] = digest(
            [value for one in held for value in one.values() if isinstance(value, torch.Tensor)]
        )
    facts["the random numbers"] = digest([torch.get_rng_state()])
    check_alike(facts, f"after step {session.position.step}")
