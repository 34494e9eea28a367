"""Pass 1 of alternating training: the tasks' diagonals M(t), each on its own task's loss. Source: arXiv:2308.13300, sec. 2.3.

Every epoch has two passes over the data. Here only the diagonals move; in the ordinary pass, the second, all else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from compactmtl.config import Recipe
from compactmtl.config.recipe import ScheduleConfig
from compactmtl.data.base import Batch
from compactmtl.distributed.processes import average
from compactmtl.errors import ConfigError
from compactmtl.models import MultiTaskModel
from compactmtl.overparam import factorized_layers
from compactmtl.overparam.layer import DIAGONAL
from compactmtl.train.optimizers import build_optimizer, build_scaler, build_schedule, rate_scales
from compactmtl.train.part import Part, Setup, Training


@dataclass
class Place:
    """Where pass 1 is: the epoch that it was last in, its batches done there, and its steps done in all."""

    epoch: int = 0
    batch: int = 0
    step: int = 0


class DiagonalPass(Part):
    """The diagonals of a model, their optimizer and schedule, and how far pass 1 has come.

    `diagonals` maps each layer's name to M (T, r), a row a task, or, where each task has a weight of its own, to
    M (1, r) of the one task named in `owners`.
    """

    name: ClassVar[str] = "diagonals"
    logs: ClassVar[str] = "diagonals"

    def __init__(
        self, recipe: Recipe, model: MultiTaskModel, device: torch.device, steps_per_epoch: int
    ) -> None:
        options = recipe.overparam
        assert options is not None
        self._config = options.alternating
        self._tasks = list(recipe.tasks)
        self.diagonals = {
            name: layer.diagonals
            for name, layer in factorized_layers(model).items()
            if layer.diagonals is not None
        }
        # which rows of each M a task owns
        self.owners: dict[str, dict[str, int]] = {
            task: _rows(self.diagonals, task, row, split=options.per_task)
            for row, task in enumerate(self._tasks)
        }
        self.steps_per_epoch = max(1, round(self._config.share * steps_per_epoch))
        if recipe.train.max_steps is not None:
            self.steps_per_epoch = min(self.steps_per_epoch, recipe.train.max_steps)
        self.first_epoch = 1 + round(self._config.start * recipe.train.epochs)
        if self.first_epoch > recipe.train.epochs:
            raise ConfigError(
                f"overparam.alternating.start {self._config.start} leaves no epoch of {recipe.train.epochs} for pass 1",
                "start earlier, or train jointly: overparam.training=joint",
            )
        self.total_steps = max(0, recipe.train.epochs - self.first_epoch + 1) * self.steps_per_epoch
        optimizer = recipe.train.optimizer.model_copy(
            update={"lr": self._config.lr or recipe.train.optimizer.lr, "weight_decay": 0.0}
        )
        schedule = recipe.train.schedule
        # A task's rows are tensors of their own to the optimizer, which leaves those without a gradient alone: with one
        # task a step, momentum would move the others' too.
        self._rows = {
            task: {
                name: nn.Parameter(self.diagonals[name][row].detach().clone()) for name, row in rows.items()
            }
            for task, rows in self.owners.items()
        }
        scales = rate_scales(recipe.train.optimizer, recipe.model.encoder, model)
        by_scale: dict[float, list[nn.Parameter]] = {} if self.diagonals else {1.0: []}
        for rows in self._rows.values():
            for name, row in rows.items():
                by_scale.setdefault(scales.get(f"{name}.{DIAGONAL}", 1.0), []).append(row)
        self.optimizer = build_optimizer(
            optimizer,
            [
                {"params": rows, **({} if scale == 1 else {"lr": optimizer.lr * scale})}
                for scale, rows in sorted(by_scale.items(), key=lambda one: one[0], reverse=True)
            ],
        )
        self.schedule = build_schedule(
            ScheduleConfig(
                name="constant" if schedule.name == "constant" else "cosine",
                warmup=self._config.warmup,
                final=schedule.final,
            ),
            self.optimizer,
            max(1, self.total_steps),
        )
        self._ask(False)
        self.scaler = build_scaler(recipe.train.autocast, device)
        self.place = Place()
        self.sums: dict[str, float] = {}

    def start(self, epoch: int) -> int:
        """The first batch of pass 1 still to come in `epoch`; as many as there are where it has none left."""
        if epoch < self.first_epoch:
            return self.steps_per_epoch
        if self.place.epoch != epoch:
            self.place.epoch, self.place.batch = epoch, 0
            self.sums = dict.fromkeys(self._tasks, 0.0)
        return self.place.batch

    def due(self) -> list[str]:
        """The tasks whose diagonals the next step moves."""
        if self._config.tasks == "all":
            return self._tasks
        return [self._tasks[self.place.step % len(self._tasks)]]

    def update(self, training: Training, batch: Batch) -> dict[str, Tensor]:
        """One step on a batch: each task's diagonals on its own loss; returns the losses."""
        losses = training.forward_pass(batch).losses
        self.step(losses)
        return losses

    def step(self, losses: Mapping[str, Tensor]) -> None:
        """Move the diagonals of the tasks that are due, each down the gradient of its own task's loss."""
        due = self.due()
        found: list[Tensor] = []
        for task in due:
            rows, own = self.owners[task], self._rows[task]
            gradients = torch.autograd.grad(
                self.scaler.scale(losses[task]),
                [self.diagonals[name] for name in rows],
                retain_graph=task != due[-1],
                allow_unused=True,  # a layer that this task's output does not pass through
            )
            for (name, row), gradient in zip(rows.items(), gradients, strict=True):
                diagonal = self.diagonals[name].detach()
                own[name].detach().copy_(diagonal[row])
                own[name].grad = row_gradient = (
                    torch.zeros_like(own[name]) if gradient is None else gradient[row].clone()
                )
                found.append(row_gradient)
        average(found)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        for task in due:
            for name, row in self.owners[task].items():
                self.diagonals[name].detach()[row].copy_(self._rows[task][name].detach())
        self.schedule.step()
        self.place.batch += 1
        self.place.step += 1

    @contextmanager
    def training(self) -> Iterator[None]:
        """The diagonals ask for gradients for a while; pass 2 leaves them as they are."""
        self._ask(True)
        try:
            yield
        finally:
            self._ask(False)

    def _ask(self, for_gradients: bool) -> None:
        for diagonal in self.diagonals.values():
            diagonal.requires_grad_(for_gradients)

    def report(self) -> dict[str, float]:
        """Mean loss of each task over pass 1 of the epoch, empty before the first."""
        return (
            {name: value / self.place.batch for name, value in self.sums.items()} if self.place.batch else {}
        )

    def state_dict(self) -> dict[str, Any]:
        place = self.place
        return {
            "place": [place.epoch, place.batch, place.step],
            "sums": self.sums,
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load_state_dict(self, training: Training, state: Any) -> None:
        """The inverse of `state_dict`."""
        self.place = Place(*state["place"])
        self.sums = dict(state["sums"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.scaler.load_state_dict(state["scaler"])


def build_diagonal_pass(setup: Setup) -> DiagonalPass | None:
    """The recipe's pass 1, or None where it trains all at once."""
    recipe = setup.recipe
    if recipe.overparam is None or recipe.overparam.training == "joint":
        return None
    return DiagonalPass(recipe, setup.model, setup.device, setup.steps_per_epoch)


def _rows(diagonals: Mapping[str, Tensor], task: str, row: int, *, split: bool) -> dict[str, int]:
    if not split:
        return dict.fromkeys(diagonals, row)
    return {name: 0 for name in diagonals if name.startswith(f"encoder.{task}.")}
