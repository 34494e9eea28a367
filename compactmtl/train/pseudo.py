"""Pseudo-task augmentation as a part of the step: further heads learn each task beside its own."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from compactmtl.balancing.pta import PseudoTasks
from compactmtl.data.inputs import size_of
from compactmtl.models import MultiTaskModel
from compactmtl.surgery.slice_plan import Kept
from compactmtl.train.part import ForwardPass, Part, Setup, Training
from compactmtl.train.regularize import attention_of, plain_heads


class PseudoHeads(Part):
    """A task's loss is the mean over its own head and the further ones."""

    name: ClassVar[str] = "regularizer"  # in checkpoints, since the first version

    def __init__(self, pseudo: PseudoTasks) -> None:
        self.pseudo = pseudo
        self.learned = pseudo if pseudo.learns else None

    def after_forward(self, training: Training, current: ForwardPass) -> None:
        size = size_of(current.inputs)
        with training.autocast():
            outputs = self.pseudo.outputs(current.features, size)
        for name, task in training.tasks.items():
            if outputs[name]:
                further = [task.loss(output.float(), current.targets[name]) for output in outputs[name]]
                current.losses[name] = torch.stack([current.losses[name], *further]).mean()
            current.head_parameters[name] = [
                parameter for head in self.pseudo.heads(name) for parameter in head.parameters()
            ]

    def end_epoch(self, training: Training) -> None:
        self.pseudo.end_epoch(training.position.epoch)

    def rebind(self, model: MultiTaskModel, kept: Kept) -> None:
        self.pseudo.attend(attention_of(model))

    def state_dict(self) -> dict[str, Any]:
        return self.pseudo.state_dict()

    def load_state_dict(self, training: Training, state: Any) -> None:
        self.pseudo.load_state_dict(state)


def build_pseudo_heads(setup: Setup) -> PseudoHeads | None:
    """The recipe's `regularization.pta`, or None."""
    recipe = setup.recipe
    config = recipe.regularization.pta
    if config is None:
        return None
    pseudo = PseudoTasks(
        plain_heads(recipe, setup.model),
        config.decoders,
        config.control,
        noise=config.noise,
        seed=recipe.seed if config.seed is None else config.seed,
        attention=attention_of(setup.model),
    )
    return PseudoHeads(pseudo.to(setup.device))
