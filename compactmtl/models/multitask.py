"""The multi-task network: one encoder, one head a task."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from torch import Tensor, nn

from compactmtl.config.recipe import EncoderConfig, Recipe
from compactmtl.errors import ConfigError
from compactmtl.models.encoder import BuiltEncoder, build_encoder
from compactmtl.models.features import Needs, last_map
from compactmtl.models.heads import NEEDS, build_head, dense_head, head_config
from compactmtl.models.mtan import MTANHead, SharedAttention
from compactmtl.tasks import Task


class TaskEncoders(nn.ModuleDict):
    """An encoder a task in place of the shared one: an image to {task: what its encoder gives}."""

    def forward(self, image: Tensor) -> dict[str, Any]:
        return {task: encoder(image) for task, encoder in self.items()}


class MultiTaskModel(nn.Module):
    """Image (B, 3, H, W) to {task: output}, in the order of `heads`.

    `encoder(image)` gives features (B, C) or (B, C, h, w), or a list of maps, of which a head reads the last, or all
    where its attribute `needs` is "pyramid" or "blocks". `heads[task](features, (H, W))` gives that task's output; a
    MTANHead is also given `encoder.attention`. An encoder that is a TaskEncoders gives each task its own. Raises ConfigError for a task name that torch cannot give a submodule.
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
        features = self.encoder(image)
        size = (image.shape[-2], image.shape[-1])
        return {name: self.run_head(name, features, size) for name in self.heads}

    def keep_tasks(self, names: Iterable[str]) -> MultiTaskModel:
        """Take the heads of all other tasks out, and their encoders where each task has its own; in place."""
        for name in set(self.heads) - set(names):
            del self.heads[name]
            if isinstance(self.encoder, TaskEncoders):
                del self.encoder[name]
        return self

    def run_head(self, name: str, features: Any, size: tuple[int, int]) -> Tensor:
        """The output of one task for what `encoder(image)` gave on images of `size` = (H, W)."""
        head, encoder = self.heads[name], self.encoder
        if isinstance(encoder, TaskEncoders):
            features, encoder = features[name], encoder[name]
        if isinstance(head, MTANHead):
            return cast(Tensor, head(features, size, encoder.attention))
        several = getattr(head, "needs", "last") != "last"
        return cast(Tensor, head(features if several else last_map(features), size))


def build_model(recipe: Recipe, tasks: Mapping[str, Task], *, initialize: bool = True) -> MultiTaskModel:
    """Build the network of a recipe, in training mode, with its heads in the order of `tasks`.

    The encoder returns a feature map if at least one task is dense; linear heads then average it. Random weights are drawn
    from torch's global generator.

    Args:
        recipe: the recipe.
        tasks: the tasks by name, as `build_tasks` returns them.
        initialize: False skips the recipe's pretrained or local encoder weights, for a model whose weights are about to be
            loaded.

    Raises:
        ConfigError: for a model that cannot be built.
        ArtifactError: for weights that do not fit the model.
        MissingDependencyError: where pretrained weights cannot be downloaded.
    """
    configs = {name: head_config(task, recipe.tasks[name].head) for name, task in tasks.items()}
    encoder = encoder_for(recipe, tasks, recipe.model.encoder, initialize=initialize)
    heads = {
        name: build_head(task, encoder.channels, configs[name], encoder.maps, expansion=encoder.expansion)
        for name, task in tasks.items()
    }
    if any(isinstance(head, MTANHead) for head in heads.values()):
        encoder.module.attention = SharedAttention(encoder.maps, encoder.expansion)
    return MultiTaskModel(encoder.module, heads).train()


def encoder_for(
    recipe: Recipe, tasks: Mapping[str, Task], config: EncoderConfig, *, initialize: bool = True
) -> BuiltEncoder:
    """The encoder `config` with the outputs that the heads of a recipe's tasks read. Raises as `build_encoder`."""
    configs = [head_config(task, recipe.tasks[name].head) for name, task in tasks.items()]
    return build_encoder(
        config,
        recipe.data.size,
        dense=any(dense_head(one) for one in configs),
        needs=_needs([one.kind for one in configs]),
        initialize=initialize,
        channels=recipe.data.channels,
    )


def _needs(kinds: Sequence[str]) -> Needs:
    """What heads of these kinds read of the encoder, all together."""
    needs = {NEEDS.get(kind, "last") for kind in kinds}
    return "blocks" if "blocks" in needs else "pyramid" if "pyramid" in needs else "last"
