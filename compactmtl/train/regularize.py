"""A recipe's gradient penalties as a part of the step: each adds a term to the balanced total."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from compactmtl.balancing import DummyGradientNorm
from compactmtl.balancing.penalties import input_gradient_penalty, weight_gradient_penalty
from compactmtl.config import Recipe
from compactmtl.config.balancing import DgrConfig, RegularizationConfig
from compactmtl.config.schema import ScheduleConfig
from compactmtl.data.inputs import Images, each, size_of
from compactmtl.errors import ConfigError
from compactmtl.models import MultiTaskModel, OwnModel, build_model
from compactmtl.models.features import encoder_of
from compactmtl.models.mtan import SharedAttention
from compactmtl.overparam import contract
from compactmtl.runs.model import example_inputs
from compactmtl.surgery.slice_plan import Kept
from compactmtl.tasks import Task
from compactmtl.train.optimizers import rate
from compactmtl.train.own_parts import called_heads
from compactmtl.train.part import ForwardPass, Part, Setup, Training

PENALTIES = ("dgr", "input_gradient", "weight_gradient")  # keys of `regularization`, and the log's names


class Penalties(Part):
    """The penalties of a recipe's section `regularization`."""

    def __init__(
        self,
        config: RegularizationConfig,
        encoder: nn.Module | None,
        dgr: DummyGradientNorm | None,
        total_steps: int,
    ) -> None:
        self.penalties = tuple(name for name in PENALTIES if getattr(config, name) is not None)
        self.dgr = dgr
        self._config, self._encoder, self._total_steps = config, encoder, total_steps
        if (
            config.dgr is not None
        ):  # gradients by the dummies' weights; and the loss at weights that moved along them
            self.nested = 2 if config.dgr.mode == "finite_difference" else 1

    def before_forward(self, image: Images) -> Images:
        if self._config.input_gradient is not None and torch.is_grad_enabled():
            return each(lambda one: one.detach().requires_grad_(), image)
        return image

    def penalize(self, training: Training, current: ForwardPass) -> None:
        if "dgr" not in current.penalties:
            current.penalties.update(self._dummies(current, training.position.step))

    def before_backward(self, training: Training, current: ForwardPass) -> None:
        assert current.total is not None
        if (
            "dgr" in current.penalties
        ):  # the balancer has added it, and nothing else goes with a batch in parts
            return
        terms = self.terms(current, current.total, training.position.step)
        current.penalties.update(terms)
        current.total = current.total + torch.stack(list(terms.values())).sum()

    def terms(self, current: ForwardPass, total: Tensor, step: int) -> dict[str, Tensor]:
        """Each penalty times its λ at optimizer step `step`, on a forward pass and its balanced loss."""
        config = self._config
        terms = self._dummies(current, step)
        if (penalty := config.input_gradient) is not None:
            value = input_gradient_penalty(total, current.inputs)
            terms["input_gradient"] = self._strength(penalty.strength, penalty.schedule, step) * value
        if (penalty := config.weight_gradient) is not None and self._encoder is not None:
            value = weight_gradient_penalty(total, self._encoder.parameters())
            terms["weight_gradient"] = self._strength(penalty.strength, penalty.schedule, step) * value
        return terms

    def _dummies(self, current: ForwardPass, step: int) -> dict[str, Tensor]:
        config = self._config.dgr
        if config is None or self.dgr is None:
            return {}
        value = self.dgr(current.features, current.targets, size_of(current.inputs))
        return {"dgr": self._strength(config.strength, config.schedule, step) * value}

    def _strength(self, strength: float, schedule: ScheduleConfig, step: int) -> float:
        return strength * rate(schedule, step, self._total_steps)

    def rebind(self, model: MultiTaskModel, kept: Kept) -> None:
        self._encoder = encoder_of(model)
        if self.dgr is not None:
            self.dgr.attend(attention_of(model))


def check_scaling(recipe: Recipe, name: str) -> None:
    """Raise ConfigError where `regularization.NAME` takes two gradients a step and float16 scales the loss."""
    if recipe.train.autocast == "float16":
        raise ConfigError(
            f"regularization.{name} takes two gradients a step, which float16's loss scaling does not allow",
            "use train.autocast: bfloat16 or off",
        )


def build_penalties(setup: Setup) -> Penalties | None:
    """The recipe's gradient penalties, or None where it asks for none.

    Raises ConfigError where one does not fit the model.
    """
    config = setup.recipe.regularization
    if all(getattr(config, name) is None for name in PENALTIES):
        return None
    for name in ("input_gradient", "weight_gradient"):
        if getattr(config, name) is not None:
            check_scaling(setup.recipe, name)
    dgr = None if config.dgr is None else build_dgr(config.dgr, setup.recipe, setup.model, setup.tasks)
    if dgr is not None:
        dgr = dgr.to(setup.device)
    return Penalties(config, encoder_of(setup.model), dgr, setup.total_steps)


def build_dgr(
    config: DgrConfig, recipe: Recipe, model: MultiTaskModel, tasks: Mapping[str, Task]
) -> DummyGradientNorm:
    """The recipe's dummy heads for `model`; torch's random generators are left alone."""
    own = config.head
    heads = plain_heads(recipe, model)
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
        attention=attention_of(model),
    )


def attention_of(model: MultiTaskModel) -> nn.Module | None:
    """What heads of kind mtan share, where the model has such."""
    attention = getattr(encoder_of(model), "attention", None)  # what needs an encoder is refused before
    return attention if isinstance(attention, SharedAttention) else None


def plain_heads(recipe: Recipe, model: MultiTaskModel) -> dict[str, nn.Module]:
    """The model's heads, of plain layers where the recipe factorizes them."""
    overparam = recipe.overparam
    plain = model if overparam is None or overparam.scope == "encoder" else contract(model)
    if isinstance(plain, OwnModel):
        device = next(plain.parameters()).device
        return called_heads(plain, tuple(one.to(device) for one in example_inputs(recipe)))
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
