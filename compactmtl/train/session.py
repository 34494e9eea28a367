"""Everything that one training run holds in memory, built from its recipe, and its state for resuming."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from compactmtl.balancing import Balancer, balancer, still_statistics
from compactmtl.config import Recipe
from compactmtl.data import build_loader, load_dataset
from compactmtl.data.base import Batch, VisionDataset
from compactmtl.data.labels import told
from compactmtl.data.loader import Loader
from compactmtl.models import MultiTaskModel
from compactmtl.overparam import factorized_layers
from compactmtl.runs.model import example_inputs, fresh_model
from compactmtl.tasks import TargetSpec, Task, build_tasks, delta_m
from compactmtl.train.alternating import DiagonalPass, build_diagonal_pass
from compactmtl.train.distill import Distiller, build_distiller
from compactmtl.train.machine import find_device
from compactmtl.train.optimizers import build_optimizer, build_schedule, rate
from compactmtl.train.passes import Pass, backward, branch
from compactmtl.train.random_state import seed_everything
from compactmtl.train.regularize import Regularizer, build_regularizer
from compactmtl.train.shrink import Shrinker, build_shrinker
from compactmtl.train.sparse import Sparsifier, build_sparsifier

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass
class Position:
    """Where training is: the epoch in progress, its batches done, and optimizer steps done in all.

    With all batches of an epoch done its validation is still to come.
    """

    epoch: int = 1
    batch: int = 0
    step: int = 0


@dataclass
class Session:
    """The live objects of a run."""

    recipe: Recipe
    tasks: dict[str, Task]
    specs: Mapping[str, TargetSpec]
    model: MultiTaskModel
    balancer: Balancer
    optimizer: Optimizer
    schedule: LambdaLR
    scaler: torch.amp.GradScaler
    sparsifier: Sparsifier | None
    train_loader: Loader
    select_loader: Loader
    splits: dict[str, VisionDataset]  # those that are trained and selected on
    data: tuple[
        str, ...
    ]  # what is to be told of the data: the labels that are known, and what is passed over
    device: torch.device
    diagonals: DiagonalPass | None = None  # pass 1 of alternating training
    regularizer: Regularizer | None = None
    shrinker: Shrinker | None = None  # progressive compaction
    distiller: Distiller | None = None
    position: Position = field(default_factory=Position)
    seen: Pass | None = None  # by `forward`, for `update`

    @property
    def samples(self) -> dict[str, int]:
        """Counts by split."""
        return {split: len(dataset) for split, dataset in self.splits.items()}

    @property
    def steps_per_epoch(self) -> int:
        return len(self.train_loader)

    @property
    def total_steps(self) -> int:
        return total_steps(self.recipe, len(self.train_loader))

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

    def forward(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
        """Each task's loss on a batch, and their balanced sum with penalties; in float32 whatever the outputs'
        precision."""
        self.seen = seen = self._pass(batch)
        total = self.balancer.combine(seen.losses)
        if self.regularizer and self.regularizer.names:
            seen.penalties.update(self.regularizer.penalties(seen, total, self.position.step))
            total = total + torch.stack(list(seen.penalties.values())).sum()
        return seen.losses, total

    def _pass(self, batch: Batch) -> Pass:
        image = batch["image"].to(self.device, non_blocking=True)
        if self.recipe.train.channels_last:
            image = image.contiguous(memory_format=torch.channels_last)
        regularizer = self.regularizer
        if regularizer and regularizer.reads_image and torch.is_grad_enabled():
            image = image.detach().requires_grad_()
        with self.autocast():
            features = branch(self.model.encoder(image))
            size = (image.shape[-2], image.shape[-1])
            outputs = {name: [self.model.run_head(name, features, size)] for name in self.model.heads}
            if regularizer and regularizer.pseudo:
                for name, extra in regularizer.pseudo.outputs(features, size).items():
                    outputs[name] += extra
        targets, losses = {}, {}
        for name, task in self.tasks.items():
            targets[name] = batch["targets"][task.target].to(self.device, non_blocking=True)
            found = [task.loss(output.float(), targets[name]) for output in outputs[name]]
            losses[name] = found[0] if len(found) == 1 else torch.stack(found).mean()
        if self.distiller:
            first = {name: found[0] for name, found in outputs.items()}
            for name, one in self.distiller.losses(image, first, self.model, self.position.step).items():
                losses[name] = losses[name] + one
        return Pass(batch, image, features, targets, losses)

    def task_losses(self, model: MultiTaskModel, batch: Batch) -> dict[str, Tensor]:
        """Each task's loss of another model of these tasks on a batch, without regularizers."""
        image = batch["image"].to(self.device, non_blocking=True)
        with self.autocast():
            outputs = model(image)
        return {
            name: task.loss(outputs[name].float(), batch["targets"][task.target].to(self.device))
            for name, task in self.tasks.items()
        }

    @property
    def penalties(self) -> dict[str, Tensor]:
        """The penalties that the recipe asks for, as "penalty/NAME", with those of the last forward pass."""
        names = self.regularizer.names if self.regularizer else ()
        found = self.seen.penalties if self.seen else {}
        return {f"penalty/{name}": found.get(name, torch.zeros(())) for name in names}

    def end_epoch(self) -> None:
        """What balancer and regularizers do between epochs."""
        self.balancer.end_epoch()
        if self.regularizer:
            self.regularizer.end_epoch(self.position.epoch)

    def update_diagonals(self, batch: Batch) -> dict[str, Tensor]:
        """One step of pass 1 on a batch: each task's diagonals on its own loss; returns the losses."""
        assert self.diagonals is not None
        losses = self._pass(batch).losses
        self.diagonals.step(losses)
        return losses

    def update(self, loss: Tensor) -> None:
        """One optimizer step on the last forward pass, whose balanced loss is `loss`: backward, clip, step, proximal
        step, schedule."""
        config = self.recipe.train
        self.optimizer.zero_grad(set_to_none=True)
        assert self.seen is not None
        batch = self.seen.batch
        self._backward(loss)
        if self.regularizer and self.regularizer.looks_uphill:
            self._backward_uphill(batch, self.regularizer)
        self.scaler.unscale_(self.optimizer)
        if self.sparsifier:
            self.sparsifier.observe()
        if config.clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), config.clip)
        skipped = self._step()
        if self.sparsifier and not skipped:
            self.sparsifier.shrink()
        if self.balancer.relooks and not skipped:
            with torch.no_grad(), still_statistics(self.model):
                self.balancer.after_step(self._pass(batch).losses)
        self.schedule.step()
        self.position.step += 1
        self.position.batch += 1

    def _backward(self, loss: Tensor) -> None:
        """Gradients of the last forward pass, whose graph goes with it."""
        seen, self.seen = self.seen, None
        assert seen is not None
        pseudo = self.regularizer.pseudo if self.regularizer else None
        backward(self.balancer, self.model, seen, loss, self.scaler, pseudo)

    def _backward_uphill(self, batch: Batch, regularizer: Regularizer) -> None:
        """Replace the gradients by those at weights moved along them; balancer and statistics don't see it."""
        remembered = copy.deepcopy(self.balancer.state_dict())
        with regularizer.uphill(self.model), still_statistics(self.model):
            self.optimizer.zero_grad(set_to_none=True)
            _, loss = self.forward(batch)
            self._backward(loss)
        self.balancer.load_state_dict(remembered)

    def _step(self) -> bool:
        """Step the optimizer; whether float16's scaler skipped the step for an overflow."""
        if not self.scaler.is_enabled():
            self.optimizer.step()
            return False
        before = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return bool(self.scaler.get_scale() < before)

    def shrink(self) -> bool:
        """Remove dead channels where the recipe asks for it at this epoch's end; whether any went."""
        before = self.model
        if self.shrinker and self.sparsifier and self.shrinker.due(self.position.epoch):
            self.model = self.shrinker.shrink(self.model, self.sparsifier, self.optimizer)
        if self.regularizer and self.model is not before:
            self.regularizer.follow(self.model)
        return self.model is not before

    def weights(self) -> Mapping[str, Tensor]:
        """The model's state_dict at its first size, with zeros for channels that were removed."""
        state: Mapping[str, Tensor] = self.model.state_dict()
        return self.shrinker.whole(state) if self.shrinker else state

    def state_dict(self) -> dict[str, Any]:
        """All but the model's weights and the random generators."""
        position = self.position
        return {
            "position": [position.epoch, position.batch, position.step],
            "optimizer": self.shrinker.optimizer_whole(self.optimizer, self.model)
            if self.shrinker
            else self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "balancer": self.balancer.state_dict(),
            "sparsifier": self.sparsifier.state_dict() if self.sparsifier else {},
            "shrunk": self.shrinker.plan.to_json() if self.shrinker else "",
            "distillation": self.distiller.state_dict() if self.distiller else {},
            "diagonals": self.diagonals.state_dict() if self.diagonals else {},
            "regularizer": self.regularizer.state_dict() if self.regularizer else {},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.position = Position(*state["position"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.distiller:
            self.distiller.load_state_dict(state["distillation"], self.model)
        if self.shrinker and self.sparsifier:
            self.model = self.shrinker.again(state["shrunk"], self.model, self.sparsifier, self.optimizer)
        self.schedule.load_state_dict(state["schedule"])
        self.scaler.load_state_dict(state["scaler"])
        self.balancer.load_state_dict(state["balancer"])
        if self.sparsifier:
            self.sparsifier.load_state_dict(state["sparsifier"])
        if self.diagonals:
            self.diagonals.load_state_dict(state["diagonals"])
        if self.regularizer:
            self.regularizer.follow(self.model)
            self.regularizer.load_state_dict(state["regularizer"])


def total_steps(recipe: Recipe, steps_per_epoch: int) -> int:
    """Optimizer steps of the whole run; `max_steps` shortens the schedules with it."""
    steps = recipe.train.epochs * steps_per_epoch
    return min(steps, recipe.train.max_steps or steps)


def build_session(recipe: Recipe, specs: Mapping[str, TargetSpec] | None = None) -> Session:
    """Data, model, balancing, optimizer and sparsity of a recipe, seeded.

    `specs` are the targets' of a run that goes on, by default what the data set says.

    Raises ConfigError, DataError or MissingDependencyError where the recipe can't be followed here.
    """
    device = find_device(recipe.train.device)
    train_set = load_dataset(recipe.data, "train")
    select_set = load_dataset(recipe.data, recipe.data.select_on)
    specs = train_set.specs if specs is None else specs
    tasks = build_tasks(recipe.tasks, specs)
    chosen: dict[str, VisionDataset] = {"train": train_set, recipe.data.select_on: select_set}
    shown = dict(chosen)
    if "val" not in shown:  # the run ends with its metrics there
        shown["val"] = load_dataset(recipe.data.model_copy(update={"cache": "none"}), "val")
    data = told(shown, {name: task.target for name, task in tasks.items()})
    if recipe.single_task:
        delta_m(
            recipe.single_task, recipe.single_task, tasks
        )  # raises now what it would raise after an epoch
    train_loader = build_loader(train_set, recipe.data, train=True, seed=recipe.seed)
    select_loader = build_loader(select_set, recipe.data, train=False, seed=recipe.seed)
    seed_everything(recipe.seed)
    model = fresh_model(recipe, tasks).to(device)
    if recipe.train.channels_last:
        model = model.to(memory_format=torch.channels_last)
    weighing = balancer(
        recipe.balancing.name, tasks, at=recipe.balancing.at, options=recipe.balancing.options
    ).to(device)
    steps = total_steps(recipe, len(train_loader))
    (image,) = example_inputs(recipe)
    sparsifier = build_sparsifier(recipe, model, (image.to(device),), steps)
    diagonals = build_diagonal_pass(recipe, model, device, len(train_loader))
    regularizer = build_regularizer(recipe, model, tasks, steps, device)
    groups = parameter_groups(
        model,
        weighing,
        sparsifier.shrunk if sparsifier else frozenset(),
        factor_lr=recipe.train.optimizer.lr * (recipe.overparam.lr_scale if recipe.overparam else 1.0),
        diagonals=diagonals is None,
    )
    if regularizer and regularizer.pseudo and regularizer.pseudo.learns:
        groups += parameter_groups(regularizer.pseudo, nn.Module(), frozenset())
    optimizer = build_optimizer(recipe.train.optimizer, groups)
    if sparsifier:
        sparsifier.attach(optimizer)
    return Session(
        recipe=recipe,
        tasks=tasks,
        specs=specs,
        model=model,
        balancer=weighing,
        optimizer=optimizer,
        schedule=build_schedule(recipe.train.schedule, optimizer, steps),
        scaler=torch.amp.GradScaler(device.type, enabled=recipe.train.autocast == "float16"),
        sparsifier=sparsifier,
        train_loader=train_loader,
        select_loader=select_loader,
        splits=chosen,
        data=data,
        device=device,
        diagonals=diagonals,
        regularizer=regularizer,
        shrinker=build_shrinker(recipe, model, (image.to(device),), weighing),
        distiller=build_distiller(recipe, tasks, steps, device),
    )


def parameter_groups(
    model: nn.Module,
    weighing: nn.Module,
    shrunk: frozenset[str],
    *,
    factor_lr: float | None = None,
    diagonals: bool = True,
) -> list[dict[str, Any]]:
    """The model's parameters with and without weight decay, factors at a rate of their own, and the balancer's.

    No decay on biases, norms and the factors' diagonals (they don't overfit, and decay fights BatchNorm's
    scale) nor on parameters that the proximal step shrinks (decay would shrink them twice). The diagonals are
    left out where another pass trains them.
    """
    layers = factorized_layers(model).values()
    scales = {id(layer.diagonals) for layer in layers}
    factors = {id(one) for layer in layers for one in layer.factors().values()} if factor_lr else set()
    found: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if id(parameter) in scales and not diagonals:
            continue
        decays = parameter.ndim > 1 and name not in shrunk and id(parameter) not in scales
        found.setdefault((id(parameter) in factors, decays), []).append(parameter)
    groups: list[dict[str, Any]] = [
        {
            "params": parameters,
            **({"lr": factor_lr} if factor else {}),
            **({} if decays else {"weight_decay": 0.0}),
        }
        for (factor, decays), parameters in sorted(found.items(), reverse=True)
    ]
    weights = list(weighing.parameters())
    if weights:
        groups.append({"params": weights, "weight_decay": 0.0})
    return [group for group in groups if group["params"]]
