"""Whether a run met what its recipe asks to remove."""

from __future__ import annotations

from typing import Literal

from compactmtl.config.recipe import Recipe
from compactmtl.config.schema import Frozen
from compactmtl.report.read import Surgery


class Budget(Frozen):
    """A target of sparsity: the share of the whole model to be removed, and the share that surgery removed.

    `reached` is none where surgery was not run, and for latency, which surgery does not count: a gate of the export to
    `target` holds the artifact to it. `asked` of a latency budget is its limit: milliseconds, a speedup or a share.
    """

    key: str  # in the recipe, such as sparsity.selective.mac_reduction
    measure: Literal["macs", "parameters", "latency"]
    asked: float
    reached: float | None
    target: str = ""  # of a latency budget; empty where its table alone says what it is of

    @property
    def limit(self) -> str:
        """What was asked, in words."""
        kind = self.key.rpartition(".")[2]
        if kind == "ms":
            return f"at most {self.asked:g} ms"
        if kind == "speedup":
            return f"{self.asked:g} times as fast as dense"
        return f"{100 * self.asked:.1f} % asked"

    @property
    def met(self) -> bool | None:
        """Whether at least as much was removed as asked; none where that is not known."""
        return None if self.reached is None else self.reached >= self.asked


def budget(recipe: Recipe, surgery: Surgery | None) -> Budget | None:
    """The recipe's target of sparsity, held against what surgery removed; none where the recipe sets none."""
    if recipe.sparsity is None:
        return None
    section = recipe.sparsity.target
    if section is None:
        return None
    reached = None
    if surgery is not None and section.measure != "latency":
        change = getattr(surgery, section.measure)
        reached = 1 - change.after / change.before
    return Budget(
        key=f"sparsity.{recipe.sparsity.section}.{section.key}",
        measure=section.measure,
        asked=section.amount,
        reached=reached,
        target="" if section.latency is None else section.latency.target_name,
    )
