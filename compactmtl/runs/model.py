"""A recipe's model in its training form, in the form that is deployed, and inputs to try it on."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from compactmtl.config import Recipe
from compactmtl.data.inputs import random_inputs
from compactmtl.models import MultiTaskModel, build_model
from compactmtl.overparam import contract, overparameterize
from compactmtl.tasks import Task


def fresh_model(recipe: Recipe, tasks: Mapping[str, Task], *, initialize: bool = True) -> MultiTaskModel:
    """The recipe's model in its training form; `initialize=False` where its weights are about to be loaded."""
    model = build_model(recipe, tasks, initialize=initialize)
    options = recipe.overparam
    if options is None:
        return model
    return overparameterize(
        model,
        kind=options.kind,
        rank=options.rank,
        scope=options.scope,
        exclude=options.exclude,
        tasks=list(tasks) if options.owned else (),
        per_task=options.per_task,
        depthwise=options.depthwise,
        evaluation=options.evaluation,
        initialize=initialize,
    )


def plain_form(recipe: Recipe, model: MultiTaskModel) -> MultiTaskModel:
    """A trained model in the form that the recipe deploys: contracted, thin layers left where it asks for them."""
    options = recipe.overparam
    return model if options is None else contract(model, options.keep_factors_below)


def example_inputs(recipe: Recipe, batch: int = 1) -> tuple[Tensor, ...]:
    """A deterministic random batch at the recipe's size, float32 (batch, C, H, W); a tensor for each of its inputs."""
    return random_inputs(recipe.data, batch, torch.Generator().manual_seed(0))
