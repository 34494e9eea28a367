"""The multiple that channel counts are kept at: a recipe's own number, or what its export targets run best."""

from __future__ import annotations

import math
from dataclasses import dataclass

from compactmtl.backends.registry import get_backend
from compactmtl.backends.targets import load_target
from compactmtl.config.recipe import Recipe
from compactmtl.errors import ConfigError

WITHOUT_TARGET = 16  # what a CPU's float32 kernels step at


@dataclass(frozen=True)
class Align:
    """Channel counts are multiples of `channels`; `source` says where the number comes from."""

    channels: int
    source: str

    def __str__(self) -> str:
        return f"{self.channels} ({self.source})"


def align_of(recipe: Recipe) -> Align:
    """The value of `surgery.align`. `auto` is the least common multiple of the targets' steps, 16 without targets.

    Raises ConfigError where `auto` needs a target that cannot be read.
    """
    if recipe.surgery.align != "auto":
        return Align(recipe.surgery.align, "surgery.align")
    if not recipe.targets:
        return Align(WITHOUT_TARGET, "surgery.align: auto, without a target")
    try:
        targets = [load_target(name) for name in recipe.targets]
    except ConfigError as error:
        raise ConfigError(
            f"surgery.align: auto reads the recipe's targets: {error.message}",
            f"{error.hint}\nor set surgery.align to a number, such as 16".strip(),
        ) from error
    steps = (get_backend(target.backend).channel_step(target) for target in targets)
    return Align(math.lcm(*steps), f"surgery.align: auto, of {', '.join(recipe.targets)}")


def surgery_align(recipe: Recipe) -> Align:
    """The same for surgery. Where a latency budget chose the counts, `auto` adds no dead channels to them."""
    section = None if recipe.sparsity is None else recipe.sparsity.target
    if recipe.surgery.align == "auto" and section is not None and section.latency is not None:
        return Align(1, "surgery.align: auto, as the latency budget chose")
    return align_of(recipe)
