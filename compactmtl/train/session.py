"""What one training run holds in memory, its step, and its state for resuming.

A step is the forward pass, the backward pass and the optimizer's step; between them stand the recipe's parts, in the
order of `compactmtl.train.parts`.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from compactmtl.balancing import Balancer
from compactmtl.config import Recipe
from compactmtl.data.base import Batch
from compactmtl.data.inputs import Images, count, given, parts, to_device
from compactmtl.data.loader import Loader
from compactmtl.distributed.agree import totals
from compactmtl.distributed.processes import OwnDraws, world
from compactmtl.distributed.sums import joined
from compactmtl.errors import ArtifactError
from compactmtl.models import MultiTaskModel
from compactmtl.surgery.slice_plan import Kept
from compactmtl.tasks import Task
from compactmtl.tasks.by_source import measured, names_by_source
from compactmtl.tasks.losses import at_least_float32
from compactmtl.train.accumulate import InParts, number_of_parts, split
from compactmtl.train.alternating import DiagonalPass
from compactmtl.train.average import WeightAverage
from compactmtl.train.balance import Balancing
from compactmtl.train.layout import Layout
from compactmtl.train.optimizers import (
    rate,
)
from compactmtl.train.part import ForwardPass, Part, Position
from compactmtl.train.parts import find_part
from compactmtl.train.shrink import Shrinker
from compactmtl.train.sparse import Sparsifier
from compactmtl.train.training_data import TrainingData

P = TypeVar("P", bound=Part)

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass
class Session:
    """The live objects of a run."""

    recipe: Recipe
    tasks: dict[str, Task]
    data: TrainingData
    model: MultiTaskModel
    optimizer: Optimizer
    schedule: LambdaLR
    scaler: torch.amp.GradScaler
    parts: tuple[Part, ...]
    device: torch.device
    layout: Layout
    draws: OwnDraws  # of several processes
    position: Position = field(default_factory=Position)
    latest: ForwardPass | None = None  # of `forward`, for `update`
    repeatable: bool = False  # that the network gives the same when a part of a batch passes again was seen

    def part(self, kind: type[P]) -> P | None:
        """The part of a class, if the recipe asks for it."""
        return find_part(self.parts, kind)

    @property
    def balancer(self) -> Balancer:
        return self._balancing.balancer

    @property
    def _balancing(self) -> Balancing:
        part = self.part(Balancing)
        assert part is not None  # every run has one
        return part

    @property
    def sparsifier(self) -> Sparsifier | None:
        return self.part(Sparsifier)

    @property
    def diagonals(self) -> DiagonalPass | None:
        return self.part(DiagonalPass)

    @property
    def measured(self) -> dict[str, Task]:
        """The tasks as they are measured: one that several data sets label, on each of them."""
        return measured(self.tasks, names_by_source(self.recipe.data.labels_apart))

    @property
    def eligible(self) -> bool:
        """Whether the model as it is now may become the best checkpoint."""
        return all(part.eligible for part in self.parts)

    @property
    def train_loader(self) -> Loader:
        return self.data.train

    @property
    def select_loader(self) -> Loader:
        return self.data.select

    @property
    def held_out(self) -> Loader:
        assert self.data.held_out is not None  # the recipe's checks see to it
        return self.data.held_out

    @property
    def samples(self) -> dict[str, int]:
        """Counts by split."""
        return {split: len(dataset) for split, dataset in self.data.splits.items()}

    @property
    def steps_per_epoch(self) -> int:
        return len(self.data.train)

    @property
    def total_steps(self) -> int:
        return total_steps(self.recipe, self.steps_per_epoch)

    @property
    def lr(self) -> float:
        """The learning rate of the last step."""
        config = self.recipe.train
        return config.optimizer.lr * rate(config.schedule, max(self.position.step - 1, 0), self.total_steps)

    def autocast(self) -> torch.autocast:
        """The recipe's mixed precision for forward passes."""
        name = self.recipe.train.autocast
        dtype = _DTYPES.get(name, torch.bfloat16)
        return torch.autocast(self.device.type, dtype=dtype, enabled=name != "off")

    def batches(self, order: int, first: int, last: int) -> Iterator[Batch]:
        """Training batches `first` to `last` (not included) of the data in the order of epoch number `order`."""
        if first >= last:
            return iter(())
        self.train_loader.sampler.set_epoch(order)
        self.train_loader.sampler.set_start(first)
        return itertools.islice(self.train_loader, last - first)

    def image(self, batch: Batch) -> Images:
        """A batch's images as the model takes them, (B, 3, H, W) on its device; or its inputs."""
        return self.layout.lay(to_device(given(batch), self.device))

    def parts_of(self, batch: Batch) -> list[Batch]:
        """A batch as it passes the network: whole, or in parts where the recipe says so (`train.accumulate`)."""
        if self.recipe.train.accumulate == 1:
            return [batch]
        images = int(totals([float(count(given(batch)))])[0])
        return split(batch, number_of_parts(images, self.recipe.images_at_once, world()))

    def forward_pass(self, batch: Batch) -> ForwardPass:
        """A forward pass with each task's loss, in float32 or wider; nothing is balanced.

        Of several processes each passes its own part of the batch, and the losses are the whole batch's. A batch that passes
        in parts has its losses alone: no features and no outputs.
        """
        return self._forward_pass(batch, penalized=False)

    def _forward_pass(self, batch: Batch, *, penalized: bool) -> ForwardPass:
        """With the penalties too, where it is `penalized` and the batch passes in parts."""
        batches = self.parts_of(batch)
        if len(batches) == 1:
            return self._pass(batch)
        whole = ForwardPass(batch, given(batch), [], {}, {}, {})

        def run(number: int, part: Batch) -> dict[str, Tensor]:
            current = self._pass(part, number)
            with joined():
                for one in self.parts if penalized else ():
                    one.penalize(self, current)
            whole.head_parameters = current.head_parameters
            penalties = {f"penalty/{name}": value for name, value in current.penalties.items()}
            return {**current.losses, **penalties}

        learned = [part.learned for part in self.parts if part.learned is not None]
        modules: list[nn.Module] = [self.model, *learned]
        nested = max(part.nested for part in self.parts) if penalized else 0
        found = InParts(
            batches, run, modules, self.device, passes=1 + nested, check=not self.repeatable
        ).values([parameter for module in modules for parameter in module.parameters()])
        self.repeatable = True
        whole.losses = {name: found[name] for name in self.tasks}
        whole.penalties = {
            name.removeprefix("penalty/"): value for name, value in found.items() if name not in self.tasks
        }
        return whole

    def _pass(self, batch: Batch, number: int | None = None) -> ForwardPass:
        """One pass of all that is given; `number` is that of a part."""
        image = self.image(batch)
        for part in self.parts:
            image = part.before_forward(image)
        place = [self.position.step, 0 if self.diagonals is None else self.diagonals.place.step]
        if number is not None:
            place.append(number)
        with joined(), self.draws.at(*place, device=self.device):
            with self.autocast(), ExitStack() as contexts:
                for part in self.parts:
                    contexts.enter_context(part.forward_context(batch))
                # Views, none of which is computed from another: gradients by them add up to the encoder's.
                features, outputs = self.model.pass_through(image, lambda x: x.view_as(x))
            targets, losses = {}, {}
            for name, task in self.tasks.items():
                targets[name] = batch["targets"][task.target].to(self.device, non_blocking=True)
                losses[name] = task.loss(at_least_float32(outputs[name]), targets[name])
            current = ForwardPass(batch, image, features, outputs, targets, losses)
            for part in self.parts:
                part.after_forward(self, current)
        return current

    def forward(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
        """Each task's loss on a batch, and their balanced sum with penalties."""
        self.latest = current = self._forward_pass(batch, penalized=True)
        with joined():
            for part in self.parts:
                part.before_backward(self, current)
        assert current.total is not None  # the balancer's
        return current.losses, current.total

    def task_losses(self, model: MultiTaskModel, batch: Batch) -> dict[str, Tensor]:
        """Each task's loss of another model of these tasks on a batch, without what parts add."""

        def run(number: int, part: Batch) -> dict[str, Tensor]:
            image = to_device(given(part), self.device)
            with joined():
                with self.autocast():
                    outputs = model(*parts(image))
                return {
                    name: task.loss(
                        at_least_float32(outputs[name]),
                        part["targets"][task.target].to(self.device, non_blocking=True),
                    )
                    for name, task in self.tasks.items()
                }

        batches = self.parts_of(batch)
        if len(batches) == 1:
            return run(0, batch)
        return InParts(batches, run, [model], self.device).values(list(model.parameters()))

    @property
    def penalties(self) -> dict[str, Tensor]:
        """The penalties that the recipe asks for, as "penalty/NAME", with those of the last forward pass."""
        names = [name for part in self.parts for name in part.penalties]
        values = self.latest.penalties if self.latest else {}
        return {f"penalty/{name}": values.get(name, torch.zeros(())) for name in names}

    def update(self, loss: Tensor) -> None:
        """One optimizer step on the last forward pass, whose balanced loss is `loss`."""
        assert self.latest is not None
        batch = self.latest.batch
        self.optimizer.zero_grad(set_to_none=True)
        self._backward(loss)
        self.scaler.unscale_(self.optimizer)
        for part in self.parts:
            part.after_backward(self, batch)
        if self.recipe.train.clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.train.clip)
        if self._step():
            for part in self.parts:
                part.after_step(self, batch)
        self.schedule.step()
        self.position.step += 1
        self.position.batch += 1

    def _backward(self, loss: Tensor) -> None:
        """Gradients of the last forward pass, whose graph goes with it."""
        current, self.latest = self.latest, None
        assert current is not None
        trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        self._balancing.backward(self.model, current, loss, self.scaler, trained)

    def repeat(self, batch: Batch) -> None:
        """Replace the gradients by those of another forward and backward pass, of which the balancer learns nothing."""
        before = copy.deepcopy(self.balancer.state_dict())
        self.optimizer.zero_grad(set_to_none=True)
        _, loss = self.forward(batch)
        self._backward(loss)
        self.balancer.load_state_dict(before)

    def _step(self) -> bool:
        """Step the optimizer; False where float16's scaler skipped the step for an overflow."""
        if not self.scaler.is_enabled():
            self.optimizer.step()
            return True
        before = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return bool(self.scaler.get_scale() >= before)

    def before_validation(self) -> None:
        """What parts do between an epoch's steps and its validation."""
        for part in self.parts:
            part.before_validation(self, self.deployed)

    def end_epoch(self) -> None:
        """What parts do between epochs; the model may be a smaller one afterwards."""
        for part in self.parts:
            part.end_epoch(self)

    def rebind(self, kept: Kept) -> None:
        """The model was cut in place, and the optimizer with it: of its parameters only the indices `kept` are left."""
        for part in self.parts:
            part.rebind(self.model, kept)

    @property
    def deployed(self) -> MultiTaskModel:
        """What is validated and may become the best checkpoint: the average of the weights where there is one."""
        average = self.part(WeightAverage)
        return self.model if average is None else average.model

    def weights(self, model: MultiTaskModel | None = None) -> Mapping[str, Tensor]:
        """A state_dict at the network's first size, with zeros for channels that were removed: the model's, or `model`'s."""
        state: Mapping[str, Tensor] = (model or self.model).state_dict()
        shrinker = self.part(Shrinker)
        return shrinker.whole(state) if shrinker else state

    def state_dict(self) -> dict[str, Any]:
        """All but the model's weights and the random generators."""
        position, shrinker = self.position, self.part(Shrinker)
        return {
            "position": [position.epoch, position.batch, position.step],
            "optimizer": shrinker.optimizer_whole(self.optimizer, self.model)
            if shrinker
            else self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            **{part.name: part.state_dict() for part in self.parts if part.name},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`; the model, at its first size, has its weights already.

        Raises ArtifactError where the state of a part is missing.
        """
        if missing := [part.name for part in self.parts if part.name and part.name not in state]:
            raise ArtifactError(
                f"the checkpoint holds no state of {', '.join(missing)}",
                "resume with the version of compactmtl that wrote it, or train again with --overwrite",
            )
        self.position = Position(*state["position"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.scaler.load_state_dict(state["scaler"])
        for part in self.parts:
            if part.name:
                part.load_state_dict(self, state[part.name])


def total_steps(recipe: Recipe, steps_per_epoch: int) -> int:
    """Optimizer steps of the whole run; `max_steps` shortens the schedules with it."""
    steps = recipe.train.epochs * steps_per_epoch
    return min(steps, recipe.train.max_steps or steps)
