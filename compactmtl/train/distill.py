"""Distillation: each task also learns from a teacher's outputs for the same pictures. Source: arXiv:1503.02531."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from compactmtl.config.recipe import DistillationConfig
from compactmtl.errors import ConfigError
from compactmtl.graph.copies import copy_model
from compactmtl.models import MultiTaskModel
from compactmtl.runs.run import Run
from compactmtl.tasks import Task
from compactmtl.tasks.registry import all_classes
from compactmtl.train.part import ForwardPass, Part, Setup, Training


class Distiller(Part):
    """A teacher, and the term that it adds to each task's loss from step `start` on.

    A teacher `self` is the model as it was at that step.
    """

    name: ClassVar[str] = "distillation"

    def __init__(
        self,
        config: DistillationConfig,
        tasks: Mapping[str, Task],
        total_steps: int,
        teacher: MultiTaskModel | None = None,
    ) -> None:
        """Raises ConfigError for a task whose kind cannot be distilled, or that the teacher lacks."""
        for name, task in tasks.items():
            if task.distillation is None:
                kinds = [kind for kind, one in all_classes().items() if one.distillation is not None]
                raise ConfigError(
                    f"distillation: task {name} is of kind {task.kind}, whose outputs cannot be distilled",
                    f"kinds: {', '.join(kinds)}",
                )
            if teacher is not None and name not in teacher.heads:
                raise ConfigError(
                    f"distillation: the teacher has no task {name}",
                    "name a run that was trained on all tasks",
                )
        self._config, self._tasks = config, tasks
        self._start = round(config.start * total_steps)
        self._own = config.teacher == "self"
        self._teacher = teacher

    def after_forward(self, training: Training, current: ForwardPass) -> None:
        terms = self.losses(current.image, current.outputs, training.model, training.position.step)
        for name, term in terms.items():
            current.losses[name] = current.losses[name] + term

    def losses(
        self, image: Tensor, outputs: Mapping[str, Tensor], model: MultiTaskModel, step: int
    ) -> dict[str, Tensor]:
        """Each task's term times its weight; none before the step `start`. Steps count from 0."""
        if step < self._start:
            return {}
        if self._teacher is None:
            self._teacher = frozen(copy_model(model))
        with torch.no_grad():
            targets = self._teacher(image.detach())
        temperature, weight = self._config.temperature, self._config.weight
        return {
            name: weight * distillation_loss(self._tasks[name], output, targets[name].float(), temperature)
            for name, output in outputs.items()
        }

    def state_dict(self) -> dict[str, Any]:
        """The weights of a teacher that was this model; another's are on disk."""
        return dict(self._teacher.state_dict()) if self._own and self._teacher is not None else {}

    def load_state_dict(self, training: Training, state: Any) -> None:
        """The inverse of `state_dict`; the training's model is still at its first size."""
        if self._own and state:
            self._teacher = copy_model(training.model)
            self._teacher.load_state_dict(state)
            frozen(self._teacher)


def distillation_loss(task: Task, output: Tensor, target: Tensor, temperature: float) -> Tensor:
    """How far a task's raw output is from the teacher's, `target`: a scalar.

    Cross-entropy less the teacher's own entropy for probabilities, both softened by the temperature T and times T²,
    so that gradients keep their size; for values the task's own loss against the teacher's prediction.
    """
    output = output.float()
    if task.distillation == "softmax":
        student, teacher = (F.log_softmax(one / temperature, 1) for one in (output, target))
        apart = F.kl_div(student, teacher, reduction="none", log_target=True).sum(1)
        return temperature**2 * apart.mean()
    if task.distillation == "sigmoid":
        probability = torch.sigmoid(target / temperature)
        cross = F.binary_cross_entropy_with_logits(output / temperature, probability)
        own = F.binary_cross_entropy_with_logits(target / temperature, probability)
        return temperature**2 * (cross - own)
    return task.loss(output, task.decode(target))


def build_distiller(setup: Setup) -> Distiller | None:
    """The recipe's distillation, or None where it asks for none.

    Raises ConfigError or ArtifactError where the teacher is not a finished run with the recipe's tasks.
    """
    recipe, tasks, total_steps = setup.recipe, setup.tasks, setup.total_steps
    config = recipe.distillation
    if config is None:
        return None
    if config.teacher == "self":
        return Distiller(config, tasks, total_steps)
    run = Run.open(Path(config.teacher.replace("{seed}", str(recipe.seed))))
    if not run.finished:
        raise ConfigError(f"distillation: the teacher {run.path} has not finished", "train it first")
    if run.recipe.data.size != recipe.data.size:
        raise ConfigError(
            f"distillation: the teacher was trained on {list(run.recipe.data.size)} pixels, the recipe has {list(recipe.data.size)}",
            "name a run of the same size",
        )
    return Distiller(config, tasks, total_steps, frozen(run.load_plain().to(setup.device)))


def frozen(model: MultiTaskModel) -> MultiTaskModel:
    """The model in eval mode, none of whose parameters trains."""
    return model.eval().requires_grad_(False)
