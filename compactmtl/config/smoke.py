"""What --smoke changes of a recipe: recipes/_smoke.yaml is laid over it, so that it takes two steps on small pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from compactmtl.config.load import Resolved, resolve_recipe
from compactmtl.config.paths import PACKAGE_PREFIX
from compactmtl.config.recipe import Recipe

OVERLAY = "_smoke"
SELECTIVE = (
    "_smoke-selective"  # after it, where a recipe shrinks selectively: from the first step to the last
)
PACKAGED = "_smoke-packaged"  # after it, where the encoder's weights are those of a package
STEPS = ("train.epochs=1", "train.max_steps=2")  # as the overlay says


def resolve_smoke(
    name_or_path: str | Path,
    overrides: Sequence[str] = (),
    *,
    tasks: Sequence[str] = (),
    two_steps: bool = False,
) -> Resolved:
    """A recipe as --smoke trains it. Overrides are laid over the smoke settings.

    With `two_steps` it takes two steps whatever the overrides say. Raises as `resolve_recipe`.
    """
    recipe = resolve_recipe(name_or_path, overrides, tasks=tasks).recipe
    selective = recipe.sparsity is not None and recipe.sparsity.selective is not None
    packaged = (recipe.model.encoder.weights or "").startswith(PACKAGE_PREFIX)
    return resolve_recipe(
        name_or_path,
        [*_room(recipe), *overrides, *(STEPS if two_steps else ())],
        overlays=[OVERLAY, *([SELECTIVE] if selective else []), *([PACKAGED] if packaged else [])],
        tasks=tasks,
    )


def _room(recipe: Recipe) -> list[str]:
    """A batch larger than the overlay's: with two images for each part that it passes in, and one of every source where
    batches are joined."""
    wanted = [min(2 * recipe.train.accumulate, recipe.data.batch_size)] if recipe.train.accumulate > 1 else []
    if recipe.data.mixing.batches == "joined":
        wanted.append(len(recipe.data.sources))
    size = max(wanted, default=0)
    return [f"data.batch_size={size}"] if size > 2 else []
