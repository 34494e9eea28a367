"""A recipe's training in several processes: what is refused, each one's part of the data, and whether all are still alike.

Every process has the whole network, optimizer and state of all parts; what differs is the data that it reads. So a checkpoint
is the first one's state, and it is resumed by any number of processes.
"""

from __future__ import annotations

import zlib

import torch

from compactmtl.config import Recipe
from compactmtl.data.inputs import given, image_of, size_of
from compactmtl.distributed.agree import check_alike, digest, totals
from compactmtl.distributed.processes import distributed, rank, world
from compactmtl.distributed.sums import joined
from compactmtl.errors import CompactError, ConfigError
from compactmtl.tasks import Task
from compactmtl.tasks.losses import at_least_float32
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
    """Raise ConfigError where a batch has fewer images than there are processes, or a task's loss is not one of the whole batch.

    Before the run's folder is made, which a refused training leaves to the next try.
    """
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
    _check_losses(session)


def prepare(session: Session) -> tuple[str, ...]:
    """Give this process its part of the session's data, which `check_parts` has looked at; lines for the user."""
    if not distributed():
        return ()
    session.train_loader.sampler.split(rank(), world())
    lines = [
        f"{world()} processes: each trains on its part of every batch of {session.recipe.data.batch_size} images"
    ]
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


def _check_losses(session: Session) -> None:
    """Raise ConfigError for a task whose loss of the parts of a batch, joined, is not its loss of the batch."""
    images = list(range(min(len(session.data.splits["train"]), 2 * world())))
    batch = session.train_loader.dataset[(0, images)]
    if isinstance(batch, CompactError):
        raise batch
    first, last = (len(images) * part // world() for part in (rank(), rank() + 1))
    generator = torch.Generator().manual_seed(session.recipe.seed)
    for name, task in session.tasks.items():
        target = batch["targets"][task.target]
        shape = (len(images), task.channels, *_cells(task, size_of(image_of(given(batch)))))
        output = torch.randn(shape, generator=generator)
        with torch.no_grad():
            whole = float(task.loss(at_least_float32(output), target))
            with joined():
                mine = float(task.loss(output[first:last], target[first:last]))
        wrong = totals([float(not abs(mine - whole) <= SAME * max(abs(whole), SAME))])[0]
        if wrong and whole == whole:
            raise ConfigError(
                f"tasks.{name}: the loss of kind {task.kind} is {mine:.6g} of the parts of a batch and {whole:.6g} of the batch, so "
                f"{world()} processes would train another network than one",
                "take its means with masked_mean of compactmtl.tasks.losses, or mean and summed of compactmtl.distributed.sums; or "
                "train in one process",
            )


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
