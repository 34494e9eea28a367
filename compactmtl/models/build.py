"""The network of a recipe: encoder and heads by name, or a module of the user's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from compactmtl.config.recipe import EncoderConfig, Recipe
from compactmtl.models.encoder import build_encoder
from compactmtl.models.features import BuiltEncoder, Needs
from compactmtl.models.heads import build_head, dense_head, head_config, needs_of
from compactmtl.models.mtan import MTANHead, SharedAttention
from compactmtl.models.multitask import MultiTaskModel
from compactmtl.models.own import build_own
from compactmtl.models.whole_weights import load_whole
from compactmtl.tasks import Task


def build_model(recipe: Recipe, tasks: Mapping[str, Task], *, initialize: bool = True) -> MultiTaskModel:
    """Build the network of a recipe, in training mode, with its heads in the order of `tasks`.

    A network of the user's own (`model.factory`) is an OwnModel. Elsewhere the encoder returns a feature map if at least one task is dense; linear heads then average it. Random weights are drawn
    from torch's global generator.

    Args:
        recipe: the recipe.
        tasks: the tasks by name, as `build_tasks` returns them.
        initialize: False skips the recipe's pretrained or local weights, for a model whose weights are about to be loaded.

    Raises:
        ConfigError: for a model that cannot be built.
        ArtifactError: for weights that do not fit the model.
        MissingDependencyError: where pretrained weights cannot be downloaded.
    """
    model = _build(recipe, tasks, initialize=initialize)
    if initialize and recipe.model.weights is not None:
        load_whole(model, recipe.model.weights)
    return model.train()


def _build(recipe: Recipe, tasks: Mapping[str, Task], *, initialize: bool) -> MultiTaskModel:
    if recipe.model.factory is not None:
        return build_own(recipe.model, list(tasks), list(recipe.data.inputs))
    configs = {name: head_config(task, recipe.tasks[name].head) for name, task in tasks.items()}
    encoder = encoder_for(recipe, tasks, recipe.model.encoder, initialize=initialize)
    heads = {
        name: build_head(task, encoder.channels, configs[name], encoder.maps, expansion=encoder.expansion)
        for name, task in tasks.items()
    }
    if any(isinstance(head, MTANHead) for head in heads.values()):
        encoder.module.attention = SharedAttention(encoder.maps, encoder.expansion)
    return MultiTaskModel(encoder.module, heads)


def encoder_for(
    recipe: Recipe, tasks: Mapping[str, Task], config: EncoderConfig, *, initialize: bool = True
) -> BuiltEncoder:
    """The encoder `config` with the outputs that the heads of a recipe's tasks read. Raises as `build_encoder`."""
    configs = [head_config(task, recipe.tasks[name].head) for name, task in tasks.items()]
    return build_encoder(
        config,
        recipe.data.size,
        dense=any(dense_head(one, task) for one, task in zip(configs, tasks.values(), strict=True)),
        needs=_needs(
            [needs_of(one.kind, f"tasks.{name}.head.kind") for one, name in zip(configs, tasks, strict=True)]
        ),
        initialize=initialize,
        channels=recipe.data.channels,
    )


def _needs(needs: Sequence[Needs]) -> Needs:
    """What several heads read of the encoder, all together."""
    return "blocks" if "blocks" in needs else "pyramid" if "pyramid" in needs else "last"
