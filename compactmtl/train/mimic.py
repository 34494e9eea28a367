"""The distance of a network's features from a teacher's, through a projection that is trained with it and left behind.

Sources: arXiv:1412.6550 (FitNets: a regressor from the student's features to the teacher's), arXiv:2011.01424 (the
direction of features, apart from their size).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compactmtl.config.distillation import FeatureDistillationConfig
from compactmtl.distributed.sums import mean
from compactmtl.errors import ConfigError, TrainingError
from compactmtl.graph.sources import Sources, sources_of_outputs
from compactmtl.models import MultiTaskModel
from compactmtl.models.features import encoder_name
from compactmtl.surgery.slice_plan import Kept
from compactmtl.tasks.losses import at_least_float32
from compactmtl.train.teacher import levels_of

Shape = tuple[int, ...]
TINY = 1e-12  # of features that are all 0


class Projection(nn.Module):
    """A 1x1 convolution, or a linear layer for vectors, from the network's channels to the teacher's.

    It begins as the identity where both have as many, because a network and a teacher of the same beginnings agree on
    what a channel means. It has a column for every channel that the network had at first, and reads those that are left.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        layer = nn.Linear(inputs, outputs)
        self.weight, self.bias = layer.weight, nn.Parameter(torch.zeros(outputs))
        if inputs == outputs:
            nn.init.eye_(self.weight)
        self.register_buffer("alive", torch.arange(inputs), persistent=False)
        self.alive: Tensor

    def forward(self, features: Tensor) -> Tensor:
        """(B, channels left, ...) to (B, the teacher's channels, ...)."""
        weight = self.weight.index_select(1, self.alive)
        if features.ndim == 2:
            return F.linear(features, weight, self.bias)
        return F.conv2d(features, weight[:, :, None, None], self.bias)


class Mimicry:
    """The features' loss of a recipe, and the projections that belong to it."""

    def __init__(
        self,
        config: FeatureDistillationConfig,
        ours: Sequence[Shape],
        theirs: Sequence[Shape],
        sources: Sequence[Sources] | None = None,
    ) -> None:
        """`ours` and `theirs` are the shapes of one image's features, network and teacher, level by level.

        `sources` are those of the network's features, where channels may be removed from it. Raises ConfigError where
        levels do not match in number, kind or size.
        """
        self._config = config
        self._levels = range(len(ours))[-1:] if config.levels == "last" else range(len(ours))
        theirs = theirs[-1:] if config.levels == "last" else theirs
        _check([ours[level] for level in self._levels], theirs)
        self._sources = None if sources is None else [sources[level] for level in self._levels]
        self.projections = nn.ModuleList(
            Projection(ours[level][1], shape[1]) for level, shape in zip(self._levels, theirs, strict=True)
        )

    def loss(self, features: Any, taught: Any) -> Tensor:
        """The mean over the levels of the distance to the teacher's features, a scalar without its weight."""
        levels, teachers = levels_of(features), levels_of(taught)
        if self._config.levels == "last":
            teachers = teachers[-1:]
        distance = relative_error if self._config.loss == "mse" else turned
        return torch.stack(
            [
                distance(project(at_least_float32(levels[level])), at_least_float32(teacher))
                for level, project, teacher in zip(self._levels, self.projections, teachers, strict=True)
            ]
        ).mean()

    def rebind(self, model: MultiTaskModel, kept: Kept, inputs: tuple[Tensor, ...]) -> None:
        """Read only the channels that are left. Raises TrainingError where these are not those of the features."""
        assert self._sources is not None
        found = shapes_of(model.encoder, inputs)
        for place, (level, project) in enumerate(zip(self._levels, self.projections, strict=True)):
            assert isinstance(project, Projection)
            left, self._sources[place] = self._sources[place].left(kept)
            project.alive = project.alive[torch.tensor(left, dtype=torch.long, device=project.alive.device)]
            if len(project.alive) != found[level][1]:
                raise TrainingError(
                    f"distillation.features: feature map {level} has {found[level][1]} channels after dead ones were "
                    f"removed, {len(project.alive)} were expected",
                    "leave out sparsity.shrink_every: `compact` removes them after training",
                )


def relative_error(ours: Tensor, theirs: Tensor) -> Tensor:
    """The mean squared difference over the mean square of the teacher's: 1 for features that are all 0."""
    return mean(F.mse_loss(ours, theirs, reduction="none")) / mean(theirs.square()).clamp_min(TINY)


def turned(ours: Tensor, theirs: Tensor) -> Tensor:
    """The squared distance of channel vectors scaled to length 1, 2 − 2 cos, as a mean over images and positions."""
    return mean((F.normalize(ours, dim=1) - F.normalize(theirs, dim=1)).square().sum(1))


def shapes_of(encoder: nn.Module, inputs: tuple[Tensor, ...]) -> list[Shape]:
    """The shapes of an encoder's features; it is left as it was."""
    from compactmtl.graph.borrow import borrowed

    with borrowed(encoder, weights=False):
        return [tuple(level.shape) for level in levels_of(encoder(*inputs))]


def find_sources(model: nn.Module, inputs: tuple[Tensor, ...]) -> list[Sources]:
    """Where the features of `model.encoder` have their channels from, by the names of the model.

    Raises SurgeryError where the encoder cannot be traced.
    """
    encoder = model.encoder
    assert isinstance(encoder, nn.Module)
    return sources_of_outputs(encoder, inputs, f"{encoder_name(model)}.")


def _check(ours: Sequence[Shape], theirs: Sequence[Shape]) -> None:
    place = "distillation.features"
    if len(ours) != len(theirs):
        raise ConfigError(
            f"{place}: the network gives {len(ours)} feature maps ({_sizes(ours)}), the teacher {len(theirs)} ({_sizes(theirs)})",
            f"set {place}.levels: last, or name a teacher with as many",
        )
    for level, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
        if len(mine) != len(other):
            kinds = {2: "one vector an image", 4: "a feature map"}
            raise ConfigError(
                f"{place}: the network gives {kinds[len(mine)]}, the teacher {kinds[len(other)]}",
                "name a teacher that was trained on tasks of the same kind",
            )
        if mine[2:] != other[2:]:
            raise ConfigError(
                f"{place}: feature map {level} is {_size(mine)} in the network and {_size(other)} in the teacher",
                "set output_stride or options.out_index of one of the two encoders so that the sizes agree",
            )


def _sizes(shapes: Sequence[Shape]) -> str:
    return ", ".join(map(_size, shapes))


def _size(shape: Shape) -> str:
    return "×".join(map(str, shape[2:])) if len(shape) == 4 else "a vector"
