"""A session of a recipe as it begins: data, model, parts and optimizer, seeded."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor, nn

from compactmtl.backends.torch.device import find_device
from compactmtl.balancing import Balancer, balancer
from compactmtl.config import Recipe
from compactmtl.data.mixing import shares_of
from compactmtl.distributed.processes import OwnDraws
from compactmtl.models import MultiTaskModel, OwnModel
from compactmtl.runs.model import example_inputs, fresh_model
from compactmtl.sparsity import LatencyTable
from compactmtl.tasks import TargetSpec, Task, delta_m
from compactmtl.tasks.by_source import measured, names_by_source
from compactmtl.train.alternating import DiagonalPass
from compactmtl.train.layout import Layout, stated
from compactmtl.train.optimizers import (
    build_optimizer,
    build_scaler,
    build_schedule,
    parameter_groups,
    rate_scales,
)
from compactmtl.train.own_check import check_own
from compactmtl.train.own_parts import check_parts
from compactmtl.train.part import Setup
from compactmtl.train.parts import build_parts, find_part
from compactmtl.train.random_state import same_random_state, seed_everything
from compactmtl.train.session import Session, total_steps
from compactmtl.train.training_data import Opened, load_data


def build_session(
    recipe: Recipe,
    specs: Mapping[str, TargetSpec] | None = None,
    layout: Callable[[MultiTaskModel, int], Layout] | None = None,
    table: LatencyTable | None = None,
    *,
    fill: bool = True,
    opened: Opened | None = None,
) -> Session:
    """Data, model, parts and optimizer of a recipe, seeded.

    `specs` are the targets' of a run that goes on, by default what the data set says. `layout` decides on the memory layout
    from the model and the number of steps; by default it is what the recipe says, and NCHW where that says `auto`. `table`
    is the one that a run with a latency budget began with; by default it is as the recipe says. Without `fill` no teacher
    labels the training split, and `opened` is called before one does (see `load_data`).

    Raises ConfigError, DataError or MissingDependencyError where the recipe can't be followed here.
    """
    device = find_device(recipe.train.device)
    data, tasks = load_data(recipe, specs, fill=fill, opened=opened)
    if recipe.single_task:
        by_source = measured(tasks, names_by_source(recipe.data.labels_apart))
        delta_m(
            recipe.single_task, recipe.single_task, by_source
        )  # raises now what it would raise after an epoch
    seed_everything(recipe.seed)
    model = fresh_model(recipe, tasks).to(device)
    steps = total_steps(recipe, len(data.train))
    chosen = stated(recipe) if layout is None else layout(model, steps)
    model = chosen.apply(model)
    weighing = balancer(
        recipe.balancing.name, tasks, at=recipe.balancing.at, options=recipe.balancing.options
    ).to(device)
    inputs = tuple(one.to(device) for one in example_inputs(recipe))
    if isinstance(model, OwnModel):
        _check_network(recipe, model, tasks, weighing, inputs)
    parts = build_parts(
        Setup(
            recipe=recipe,
            tasks=tasks,
            model=model,
            balancer=weighing,
            device=device,
            inputs=inputs,
            steps_per_epoch=len(data.train),
            total_steps=steps,
            shares=shares_of(data.train.sampler),
            table=table,
        )
    )
    groups = parameter_groups(
        model,
        weighing,
        frozenset[str]().union(*(part.undecayed for part in parts)),
        lr=recipe.train.optimizer.lr,
        factor_lr=recipe.train.optimizer.lr * (recipe.overparam.lr_scale if recipe.overparam else 1.0),
        scales=rate_scales(recipe.train.optimizer, recipe.model.encoder, model),
        diagonals=find_part(parts, DiagonalPass) is None,
    )
    for part in parts:
        if part.learned is not None:
            groups += parameter_groups(part.learned, nn.Module(), frozenset())
    optimizer = build_optimizer(recipe.train.optimizer, groups)
    for part in parts:
        part.attach(optimizer)
    return Session(
        recipe=recipe,
        tasks=tasks,
        data=data,
        model=model,
        optimizer=optimizer,
        schedule=build_schedule(recipe.train.schedule, optimizer, steps),
        scaler=build_scaler(recipe.train.autocast, device),
        parts=parts,
        device=device,
        layout=chosen,
        draws=OwnDraws(recipe.seed),
    )


def _check_network(
    recipe: Recipe, model: OwnModel, tasks: Mapping[str, Task], weighing: Balancer, inputs: tuple[Tensor, ...]
) -> None:
    """Raise ConfigError where a network of the user's own breaks a rule or lacks what the recipe needs of it."""
    with same_random_state(inputs[0].device):
        check_own(model, tasks, recipe.data, lambda: fresh_model(recipe, tasks, initialize=False))
        check_parts(recipe, model, weighing, inputs)
