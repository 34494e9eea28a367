"""The multi-task network: one encoder, one head a task."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

from torch import Tensor, nn
from torch.utils._pytree import tree_map

from compactmtl.data.inputs import Images, parts, size_of
from compactmtl.errors import ConfigError
from compactmtl.models.features import last_map
from compactmtl.models.mtan import MTANHead


class TaskEncoders(nn.ModuleDict):
    """An encoder a task in place of the shared one: an image to {task: what its encoder gives}."""

    def forward(self, image: Tensor) -> dict[str, Any]:
        return {task: encoder(image) for task, encoder in self.items()}


class MultiTaskModel(nn.Module):
    """Image (B, C, H, W) to {task: output}, in the order of `heads`.

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

    @property
    def task_names(self) -> tuple[str, ...]:
        """The tasks, in the order of the outputs."""
        return tuple(self.heads)

    @property
    def head_prefixes(self) -> tuple[str, ...]:
        """What the names of the heads' parameters begin with."""
        return ("heads.",)

    def pass_through(
        self, image: Images, cut: Callable[[Tensor], Tensor] = lambda x: x
    ) -> tuple[Any, dict[str, Tensor]]:
        """The encoder's features, each of their tensors as `cut` gives it on to the heads, and the outputs."""
        features = tree_map(cut, self.features(image))
        size = size_of(image)
        return features, {name: self.run_head(name, features, size) for name in self.heads}

    def features(self, image: Images) -> Any:
        """What the encoder gives for images (B, C, H, W)."""
        return self.encoder(*parts(image))

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
