"""Distillation: each task learns from a teacher's outputs for the same pictures, the encoder from a teacher's features.

Source of the outputs' loss: arXiv:1503.02531; of the features': see `compactmtl.train.mimic`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from compactmtl.config.distillation import OWN, DistillationConfig, FeatureDistillationConfig
from compactmtl.data.inputs import each
from compactmtl.distributed.sums import mean
from compactmtl.errors import ArtifactError, ConfigError
from compactmtl.models import MultiTaskModel
from compactmtl.surgery.slice_plan import Kept
from compactmtl.tasks import Task
from compactmtl.tasks.losses import at_least_float32
from compactmtl.tasks.registry import all_classes
from compactmtl.train.mimic import Mimicry, find_sources, shapes_of
from compactmtl.train.part import ForwardPass, Part, Setup, Training
from compactmtl.train.teacher import Teacher, check_tasks, earlier_self, encoder_teacher, run_teacher

FEATURES = "features"  # the log's name of the features' loss


class Distiller(Part):
    """Teachers, and the terms that they add from step `start` on: to each task's loss, and to the balanced total.

    A teacher `self` is the model as it was at that step.
    """

    name: ClassVar[str] = "distillation"

    def __init__(
        self,
        config: DistillationConfig,
        setup: Setup,
        outputs: Teacher | None = None,
        features: Teacher | None = None,
        mimicry: Mimicry | None = None,
    ) -> None:
        """`outputs` and `features` are the teachers that are not the model itself; they may be one.

        Raises ConfigError for a task whose kind cannot be distilled, or that the teacher of the outputs lacks.
        """
        if config.teacher is not None:
            check_kinds(setup.tasks)
        if outputs is not None:
            check_tasks(outputs, setup.tasks)
        self._config, self._tasks, self._data = config, setup.tasks, setup.recipe.data
        self._inputs = setup.inputs
        self._start = round(config.start * setup.total_steps)
        self._others = {"outputs": outputs, "features": features}
        self._own: Teacher | None = None
        self._mimicry = mimicry
        if mimicry is not None:
            self.learned, self.penalties = mimicry.projections, (FEATURES,)

    def _teacher(self, what: str, model: MultiTaskModel) -> Teacher:
        other = self._others[what]
        if other is not None:
            return other
        if self._own is None:
            self._own = earlier_self(model, self._data)
        return self._own

    def after_forward(self, training: Training, current: ForwardPass) -> None:
        if self._config.teacher is None or training.position.step < self._start:
            return
        teacher = self._teacher("outputs", training.model)
        image = each(Tensor.detach, current.inputs)
        features, targets = teacher.look(image, current.outputs)
        if self._mimicry is not None and self._teacher("features", training.model) is teacher:
            current.taught = features
        temperature, weight = self._config.temperature, self._config.weight
        for name, output in current.outputs.items():
            term = distillation_loss(self._tasks[name], output, targets[name], temperature)
            current.losses[name] = current.losses[name] + weight * term

    def before_backward(self, training: Training, current: ForwardPass) -> None:
        self.penalize(training, current)

    def penalize(self, training: Training, current: ForwardPass) -> None:
        features = self._config.features
        if self._mimicry is None or features is None or training.position.step < self._start:
            return
        if FEATURES in current.penalties:
            return
        taught = current.taught
        if taught is None:
            taught = self._teacher("features", training.model).features(each(Tensor.detach, current.inputs))
        current.penalties[FEATURES] = features.weight * self._mimicry.loss(current.features, taught)

    def rebind(self, model: MultiTaskModel, kept: Kept) -> None:
        if self._mimicry is not None:
            self._mimicry.rebind(model, kept, self._inputs)

    def state_dict(self) -> dict[str, Any]:
        """The weights of a teacher that was this model, what others' weights were, and the projections."""
        others = {what: one.fingerprint for what, one in self._others.items() if one is not None}
        return {
            "self": dict(self._own.network.state_dict()) if self._own is not None else {},
            "teachers": others,
            "projections": dict(self._mimicry.projections.state_dict()) if self._mimicry is not None else {},
        }

    def load_state_dict(self, training: Training, state: Any) -> None:
        """The inverse of `state_dict`; the training's model is still at its first size.

        Raises ArtifactError where a teacher has changed since.
        """
        own = state.get("self", state)  # earlier versions saved these weights alone
        for what, known in state.get("teachers", {}).items():
            teacher = self._others[what]
            if teacher is None or teacher.fingerprint != known:
                raise ArtifactError(
                    f"distillation: the weights of the {what}' teacher are not those that this run began with",
                    "put them back, or train again with --overwrite",
                )
        if own:
            self._own = earlier_self(training.model, self._data)
            self._own.network.load_state_dict(own)
        if self._mimicry is not None:
            self._mimicry.projections.load_state_dict(state["projections"])


def check_kinds(tasks: Mapping[str, Task]) -> None:
    """Raise ConfigError for a task whose outputs cannot be distilled."""
    for name, task in tasks.items():
        if task.distillation is None:
            kinds = [kind for kind, one in all_classes().items() if one.distillation is not None]
            raise ConfigError(
                f"distillation: task {name} is of kind {task.kind}, whose outputs cannot be distilled",
                f"kinds: {', '.join(kinds)}; or set distillation.teacher: null and learn from features",
            )


def distillation_loss(task: Task, output: Tensor, target: Tensor, temperature: float) -> Tensor:
    """How far a task's raw output is from the teacher's, `target`: a scalar.

    Cross-entropy less the teacher's own entropy for probabilities, both softened by the temperature T and times T²,
    so that gradients keep their size; for values the task's own loss against the teacher's prediction.
    """
    output = at_least_float32(output)
    if task.distillation == "softmax":
        student, teacher = (F.log_softmax(one / temperature, 1) for one in (output, target))
        apart = F.kl_div(student, teacher, reduction="none", log_target=True).sum(1)
        return temperature**2 * mean(apart)
    if task.distillation == "sigmoid":
        probability = torch.sigmoid(target / temperature)
        cross, own = (
            mean(F.binary_cross_entropy_with_logits(one / temperature, probability, reduction="none"))
            for one in (output, target)
        )
        return temperature**2 * (cross - own)
    return task.loss(output, task.decode(target))


def build_distiller(setup: Setup) -> Distiller | None:
    """The recipe's distillation, or None where it asks for none.

    Raises ConfigError or ArtifactError where a teacher is not a finished run with the recipe's tasks, or its features do
    not match the network's.
    """
    config = setup.recipe.distillation
    if config is None:
        return None
    runs = {name: run_teacher(setup, name) for name in config.names if name != OWN}
    outputs = runs.get(config.teacher or OWN)
    if config.features is None:
        return Distiller(config, setup, outputs)
    name = config.features.teacher or config.teacher or OWN
    features = encoder_teacher(setup, config.features) if config.features.encoder else runs.get(name)
    return Distiller(config, setup, outputs, features, _mimicry(setup, config.features, features))


def _mimicry(setup: Setup, config: FeatureDistillationConfig, teacher: Teacher | None) -> Mimicry:
    """The features' loss; a teacher that is not there is the model itself."""
    encoder, sparsity = setup.model.encoder, setup.recipe.sparsity
    ours = shapes_of(encoder, setup.inputs)
    theirs = ours if teacher is None else teacher.shapes(setup.inputs)
    sources = (
        find_sources(setup.model, setup.inputs) if sparsity is not None and sparsity.shrink_every else None
    )
    with torch.random.fork_rng(devices=[]):  # the rest of the run draws what it would draw without
        torch.manual_seed(setup.recipe.seed)
        mimicry = Mimicry(config, ours, theirs, sources)
    mimicry.projections.to(setup.device)
    return mimicry
