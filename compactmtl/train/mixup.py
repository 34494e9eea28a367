"""Mixup: a network learns from mixtures of two images and the mixture of their targets. Source: arXiv:1710.09412."""

from __future__ import annotations

import torch
from torch.distributions import Beta

from compactmtl.data.inputs import Images, count, each, image_of
from compactmtl.errors import ConfigError
from compactmtl.tasks.registry import all_classes
from compactmtl.train.part import ForwardPass, Part, Setup, Training


class Mixup(Part):
    """Mixes each image of a batch with another one in one share for all, and each task's loss accordingly.

    The shares are drawn from torch's global generator, whose state is in every checkpoint.
    """

    def __init__(self, alpha: float) -> None:
        self._shares = Beta(torch.tensor(alpha), torch.tensor(alpha))
        self._share, self._order = 1.0, torch.empty(0, dtype=torch.int64)

    def before_forward(self, image: Images) -> Images:
        self._share = float(self._shares.sample())
        self._order = order = torch.randperm(count(image)).to(image_of(image).device)
        return each(lambda one: one.mul(self._share).add_(one[order], alpha=1 - self._share), image)

    def after_forward(self, training: Training, current: ForwardPass) -> None:
        """Replace the losses; where a task mixes its targets, those too."""
        share, order = self._share, self._order
        for name, task in training.tasks.items():
            output, target = current.outputs[name].float(), current.targets[name]
            other = target[order]
            if task.mixup == "loss":
                own = current.losses[name]
                current.losses[name] = share * own + (1 - share) * task.loss(output, other)
            else:
                current.targets[name] = mixed = share * target + (1 - share) * other
                current.losses[name] = task.loss(output, mixed)


def build_mixup(setup: Setup) -> Mixup | None:
    """The recipe's `train.mixup`, or None.

    Raises ConfigError for a task whose targets do not mix, and beside regularization, which reads targets and images
    of its own.
    """
    recipe = setup.recipe
    if recipe.train.mixup is None:
        return None
    for name, task in setup.tasks.items():
        if task.mixup is None:
            kinds = [kind for kind, one in all_classes().items() if one.mixup is not None]
            raise ConfigError(
                f"train.mixup: task {name} is of kind {task.kind}, whose targets cannot be mixed",
                f"leave train.mixup out, or train tasks of these kinds alone: {', '.join(kinds)}",
            )
    if recipe.regularization != type(recipe.regularization)():
        raise ConfigError(
            "train.mixup cannot be combined with regularization, which needs the images' own targets",
            "leave one of the two out",
        )
    return Mixup(recipe.train.mixup)
