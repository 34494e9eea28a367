"""What recipes' networks are made of, and the few recipes whose parts together are those of all."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from compactmtl.config import resolve_recipe


def graph_parts(name: str) -> set[str]:
    """What a recipe's exported file is made of: encoder, heads and kinds of tasks."""
    recipe = resolve_recipe(name).recipe
    encoder = recipe.model.encoder.model_dump_json(include={"name", "output_stride", "options"})
    heads = {
        f"{recipe.model.encoder.name} {task.kind} {task.head and task.head.model_dump(exclude={'width', 'depth'})}"
        for task in recipe.tasks.values()
    }
    factorized = {f"{recipe.model.encoder.name} factorized"} if recipe.overparam else set()
    return {encoder} | heads | factorized


def covering(names: Sequence[str], parts: Callable[[str], set[str]]) -> frozenset[str]:
    """Recipes whose parts together are those of all: an export takes most of a test's time."""
    parts_of = {name: parts(name) for name in names}
    sparse = {name: resolve_recipe(name).recipe.sparsity is not None for name in names}
    missing = set().union(*parts_of.values())
    chosen = []
    while missing:
        # of equals a sparse one: its compact network has odd widths
        best = max(names, key=lambda name: (len(parts_of[name] & missing), sparse[name]))
        chosen.append(best)
        missing -= parts_of[best]
    return frozenset(chosen)
