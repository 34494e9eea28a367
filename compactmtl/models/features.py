"""What an encoder gives: a vector or feature maps, and what of them a head reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves  # what torch.export flattens inputs and outputs with

# The last map alone; every map; every map with what enters the last part of its stage.
Needs = Literal["last", "pyramid", "blocks"]


@dataclass(frozen=True)
class FeatureMap:
    """One map (B, channels, ~H / stride, ~W / stride) of an encoder.

    `part` "before" is a map inside a stage, whose result follows at once as the stage's "map".
    """

    channels: int
    stride: int
    part: Literal["before", "map"] = "map"


@dataclass(frozen=True)
class BuiltEncoder:
    """An encoder and the width of what it gives: (B, channels), or (B, channels, h, w) where `dense`.

    Where it gives maps, `maps` describes them, the last one of `channels`. `expansion` is that of its blocks, 1 where
    they are not bottlenecks or not looked into.
    """

    module: nn.Module
    channels: int
    dense: bool
    maps: tuple[FeatureMap, ...] = ()
    expansion: int = 1


def last_map(features: Tensor | Sequence[Tensor]) -> Tensor:
    """What most heads read of an encoder: its only output, or the last of several maps."""
    return features if isinstance(features, Tensor) else features[-1]


def stage_maps(maps: Sequence[FeatureMap]) -> list[int]:
    """Positions of the maps that stages end in, in the encoder's order."""
    return [index for index, one in enumerate(maps) if one.part == "map"]


def tensors_in(features: Any) -> list[Tensor]:
    """The tensors of what an encoder gives: one, or those in lists, tuples and mappings, in order."""
    return [leaf for leaf in tree_leaves(features) if isinstance(leaf, Tensor)]


def encoder_of(model: nn.Module) -> nn.Module | None:
    """The submodule that is `model.encoder`; None of a model without one, or that calls something else so."""
    encoder = getattr(model, "encoder", None)
    return encoder if isinstance(encoder, nn.Module) else None


def encoder_name(model: nn.Module) -> str | None:
    """The name of the submodule that is `model.encoder`; None of a model without one."""
    encoder = encoder_of(model)
    if encoder is None:
        return None
    return next((name for name, module in model.named_modules() if module is encoder), None)


def task_names(model: nn.Module) -> tuple[str, ...] | None:
    """The tasks of a multi-task network in the order of its outputs; None of a network that does not say."""
    names = getattr(model, "task_names", None)
    if isinstance(names, tuple):
        return names
    heads = getattr(model, "heads", None)
    return tuple(heads) if isinstance(heads, nn.ModuleDict) else None
