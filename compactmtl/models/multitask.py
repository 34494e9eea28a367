"""The multi-task network: one encoder, one head a task."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from compactmtl.config.recipe import Recipe
from compactmtl.errors import ConfigError
from compactmtl.models.encoder import build_encoder, last_map
from compactmtl.models.heads import build_head, head_config
from compactmtl.tasks import Task


class MultiTaskModel(nn.Module):
    """Image (B, 3, H, W) to {task: output}, in the order of `heads`.

    `encoder(image)` gives features (B, C) or (B, C, h, w), or a list of maps of which the last is read.
    `heads[task](features, (H, W))` gives that task's output. Raises ConfigError for a task name that torch cannot
    give a submodule.
    """

    def __init__(self, encoder: nn.Module, heads: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.encoder = encoder
        self.heads = nn.ModuleDict()
        for name, head in heads.items():
            if hasattr(self.heads, name):
                raise ConfigError(
                    f"tasks.{name}: {name!r} is a word of torch's own and cannot name a task",
                    "rename the task",
                )
            self.heads[name] = head

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        features = last_map(self.encoder(image))
        size = image.shape[-2:]
        return {name: head(features, size) for name, head in self.heads.items()}


def build_model(recipe: Recipe, tasks: Mapping[str, Task], *, initialize: bool = True) -> MultiTaskModel:
    """The network of a recipe, in training mode, its heads in the order of `tasks`.

    The encoder gives a feature map as soon as one task is dense; linear heads then average it. `initialize=False`
    leaves out the recipe's pretrained or local encoder weights, for a model whose weights are about to be loaded.
    Random weights are drawn from torch's global generator.

    Raises ConfigError for a model that cannot be built, ArtifactError for weights that do not fit it,
    MissingDependencyError where pretrained weights cannot be fetched.
    """
    configs = {name: head_config(task, recipe.tasks[name].head) for name, task in tasks.items()}
    dense = any(config.kind == "fcn" for config in configs.values())
    encoder = build_encoder(recipe.model.encoder, recipe.data.size, dense=dense, initialize=initialize)
    heads = {name: build_head(task, encoder.channels, configs[name]) for name, task in tasks.items()}
    return MultiTaskModel(encoder.module, heads).train()
