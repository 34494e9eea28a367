"""A recipe's regularizers during training: what each step adds to the loss, and which extra heads learn."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from compactmtl.balancing import DummyGradientNorm
from compactmtl.balancing.penalties import input_gradient_penalty, weight_gradient_penalty
from compactmtl.balancing.pta import PseudoTasks
from compactmtl.balancing.sam import uphill
from compactmtl.config import Recipe
from compactmtl.config.balancing import DgrConfig
from compactmtl.config.schema import ScheduleConfig
from compactmtl.errors import ConfigError
from compactmtl.models import MultiTaskModel, build_model
from compactmtl.overparam import contract
from compactmtl.tasks import Task
from compactmtl.train.optimizers import rate
from compactmtl.train.passes import Pass


class Regularizer:
    """Everything of a recipe's section `regularization`, on one model.

    `pseudo` are the extra heads of pseudo-task augmentation; `names` the penalties that the log has.
    """

    def __init__(
        self,
        recipe: Recipe,
        model: MultiTaskModel,
        tasks: Mapping[str, Task],
        total_steps: int,
        device: torch.device,
    ) -> None:
        config = recipe.regularization
        self._config, self._total_steps = config, total_steps
        self._encoder = model.encoder
        self.names = tuple(
            name for name in ("dgr", "input_gradient", "weight_gradient") if getattr(config, name) is not None
        )
        self.dgr = None if config.dgr is None else build_dgr(config.dgr, recipe, model, tasks).to(device)
        self.pseudo = (
            None
            if config.pta is None
            else PseudoTasks(
                _plain_heads(recipe, model),
                config.pta.decoders,
                config.pta.control,
                noise=config.pta.noise,
                seed=recipe.seed if config.pta.seed is None else config.pta.seed,
                attention=_attention(model),
            ).to(device)
        )
        twice = [n for n in ("sam", "input_gradient", "weight_gradient") if getattr(config, n) is not None]
        if twice and recipe.train.autocast == "float16":
            raise ConfigError(
                f"regularization.{twice[0]} takes two gradients a step, which float16's loss scaling does not allow",
                "use train.autocast: bfloat16 or off",
            )

    def follow(self, model: MultiTaskModel) -> None:
        """Go on with `model`, which took the place of the first one as dead channels were removed."""
        self._encoder = model.encoder
        for part in (self.dgr, self.pseudo):
            if part is not None:
                part.attend(_attention(model))

    @property
    def reads_image(self) -> bool:
        """Whether images must ask for gradients."""
        return self._config.input_gradient is not None

    def penalties(self, seen: Pass, total: Tensor, step: int) -> dict[str, Tensor]:
        """Each penalty times its λ at optimizer step `step`, on a forward pass and its balanced loss."""
        config = self._config
        found: dict[str, Tensor] = {}
        if config.dgr is not None and self.dgr is not None:
            size = (seen.image.shape[-2], seen.image.shape[-1])
            value = self.dgr(seen.features, seen.targets, size)
            found["dgr"] = self._strength(config.dgr.strength, config.dgr.schedule, step) * value
        if (penalty := config.input_gradient) is not None:
            value = input_gradient_penalty(total, seen.image)
            found["input_gradient"] = self._strength(penalty.strength, penalty.schedule, step) * value
        if (penalty := config.weight_gradient) is not None:
            value = weight_gradient_penalty(total, self._encoder.parameters())
            found["weight_gradient"] = self._strength(penalty.strength, penalty.schedule, step) * value
        return found

    def _strength(self, strength: float, schedule: ScheduleConfig, step: int) -> float:
        return strength * rate(schedule, step, self._total_steps)

    @property
    def looks_uphill(self) -> bool:
        """Whether the gradient is taken twice, the second time at `uphill` weights."""
        return self._config.sam is not None

    def uphill(self, model: nn.Module) -> AbstractContextManager[None]:
        """The model's weights moved along their gradient; see `looks_uphill`."""
        sam = self._config.sam
        return nullcontext() if sam is None else uphill(model.parameters(), sam.rho, adaptive=sam.adaptive)

    def end_epoch(self, epoch: int) -> None:
        if self.pseudo is not None:
            self.pseudo.end_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        return {} if self.pseudo is None else self.pseudo.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if self.pseudo is not None:
            self.pseudo.load_state_dict(state)


def build_dgr(
    config: DgrConfig, recipe: Recipe, model: MultiTaskModel, tasks: Mapping[str, Task]
) -> DummyGradientNorm:
    """The recipe's dummy heads for `model`; torch's random generators are left alone."""
    own = config.head
    heads = _plain_heads(recipe, model)
    if own.width is not None or own.depth is not None:
        heads = _other_heads(recipe, tasks, width=own.width, depth=own.depth)
    return DummyGradientNorm(
        heads,
        {name: task.loss for name, task in tasks.items()},
        dummies=config.dummies,
        seed=recipe.seed if config.seed is None else config.seed,
        mode=config.mode,
        norm=config.norm,
        epsilon=config.epsilon,
        chunk=config.chunk,
        activation=own.activation,
        initialization=own.initialization,
        attention=_attention(model),
    )


def _attention(model: MultiTaskModel) -> nn.Module | None:
    found = getattr(model.encoder, "attention", None)
    return found if isinstance(found, nn.Module) else None


def _plain_heads(recipe: Recipe, model: MultiTaskModel) -> dict[str, nn.Module]:
    """The model's heads, of plain layers where the recipe factorizes them."""
    overparam = recipe.overparam
    plain = model if overparam is None or overparam.scope == "encoder" else contract(model)
    return dict(plain.heads.items())


def _other_heads(
    recipe: Recipe, tasks: Mapping[str, Task], *, width: int | None, depth: int | None
) -> dict[str, nn.Module]:
    """Heads of the recipe's kinds and another width or depth. Builds, and forgets, an encoder to read its channels."""
    from compactmtl.models.heads import head_config

    changes = {key: value for key, value in {"width": width, "depth": depth}.items() if value is not None}
    configs = {
        name: config.model_copy(
            update={"head": head_config(tasks[name], config.head).model_copy(update=changes)}
        )
        for name, config in recipe.tasks.items()
    }
    with torch.random.fork_rng(devices=[]):
        model = build_model(recipe.model_copy(update={"tasks": configs}), tasks, initialize=False)
    return dict(model.heads.items())


def build_regularizer(
    recipe: Recipe, model: MultiTaskModel, tasks: Mapping[str, Task], total_steps: int, device: torch.device
) -> Regularizer | None:
    """The recipe's regularizers, or None where it asks for none.

    Raises ConfigError where one does not fit the model.
    """
    if all(part is None for part in recipe.regularization.model_dump().values()):
        return None
    return Regularizer(recipe, model, tasks, total_steps, device)
