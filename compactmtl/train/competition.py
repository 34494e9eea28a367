"""Resource competition made visible: how task gradients lie to each other in each shared layer, how the M(t) spread.

Source: arXiv:2308.13300 asks how shared factors with task diagonals handle it. The gradients are those of the
contracted weights, so that a plain network and an over-parameterized one are measured alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import combinations, islice
from typing import Any

import torch
from torch import Tensor, nn

from compactmtl.data.base import Batch
from compactmtl.distributed.processes import average
from compactmtl.models.features import encoder_of
from compactmtl.models.multitask import TaskEncoders
from compactmtl.overparam import contract, factorized_layers
from compactmtl.train.norms import train_mode
from compactmtl.train.session import Session

ORDER = 0  # the same batches at each epoch's end: an order that no epoch of training has


def competition(session: Session) -> dict[str, Any] | None:
    """For the log: cosines of task gradients by layer and pair of tasks, and the spread of each layer's diagonals.

    The cosines are taken over as many batches as `train.competition` says; none where that is 0, where there is
    a single task, or where each task has an encoder of its own. None where there is nothing to say. Weights, running
    statistics and random generators stay as they were.
    """
    count = session.recipe.train.competition
    shared = len(session.tasks) > 1 and not isinstance(encoder_of(session.model), TaskEncoders)
    cosines: dict[str, dict[str, float]] = {}
    if count and shared:
        loader = session.train_loader
        loader.sampler.set_epoch(ORDER)
        cosines = gradient_cosines(session, islice(loader, count))
    spread = diagonal_spread(session.model, list(session.tasks))
    return {"cosines": cosines, "spread": spread} if cosines or spread else None


def gradient_cosines(session: Session, batches: Iterable[Batch]) -> dict[str, dict[str, float]]:
    """Layer -> "task|task" -> cosine of the two losses' gradients by the layer's weight, summed over `batches`.

    A layer that one of the losses does not reach is left out.
    """
    model = contract(session.model)
    train_mode(model, session.recipe)
    weights = {
        name.removesuffix(".weight"): parameter.requires_grad_()
        for name, parameter in model.encoder.named_parameters()
        if parameter.ndim > 1
    }
    sums: dict[str, dict[str, Tensor]] = {task: {} for task in session.tasks}
    devices = [session.device] if session.device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.enable_grad():
        torch.manual_seed(session.recipe.seed)
        for batch in batches:
            losses = session.task_losses(model, batch)
            for task, loss in losses.items():
                gradients = torch.autograd.grad(
                    loss, list(weights.values()), retain_graph=True, allow_unused=True
                )
                for name, gradient in zip(weights, gradients, strict=True):
                    if gradient is not None:
                        sums[task][name] = sums[task].get(name, torch.zeros_like(gradient)) + gradient
    average([total for of_task in sums.values() for total in of_task.values()])
    return {
        name: {
            f"{one}|{other}": _cosine(sums[one][name], sums[other][name])
            for one, other in combinations(session.tasks, 2)
        }
        for name in weights
        if all(name in of_task for of_task in sums.values())
    }


def diagonal_spread(model: nn.Module, tasks: list[str]) -> dict[str, dict[str, float]]:
    """Layer -> task -> standard deviation of the entries of its M(t), which all begin at 1; "shared" where one is all.

    A layer of a task's own encoder is named with that task. "between" is the root mean square, over the entries, of
    their standard deviation over the tasks.
    """
    spread: dict[str, dict[str, float]] = {}
    for name, layer in factorized_layers(model).items():
        if layer.diagonals is None:
            continue
        diagonal = layer.diagonals.detach().double()
        names = tasks if len(diagonal) == len(tasks) > 1 else ["shared"]
        values = {task: float(row.std(correction=0)) for task, row in zip(names, diagonal, strict=True)}
        if len(diagonal) > 1:
            values["between"] = float(diagonal.var(0, correction=0).mean().sqrt())
        spread[name.removeprefix("encoder.")] = values
    return spread


def summary(logged: Mapping[str, Any] | None) -> dict[str, float]:
    """The mean cosine of each pair over the layers, for one line of a log or a plot."""
    pairs: dict[str, list[float]] = {}
    for layer in (logged or {}).get("cosines", {}).values():
        for pair, value in layer.items():
            pairs.setdefault(pair, []).append(value)
    return {pair: sum(values) / len(values) for pair, values in pairs.items()}


def _cosine(one: Tensor, other: Tensor) -> float:
    one, other = one.flatten().double(), other.flatten().double()
    length = float(one.norm() * other.norm())
    return float(one @ other) / length if length else 0.0
