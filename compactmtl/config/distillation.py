"""Distillation: which teachers a recipe learns from, and what of them."""

from __future__ import annotations

from pydantic import Field

from compactmtl.config.schema import Frozen, Positive, Share


class DistillationConfig(Frozen):
    """Each task also learns from a teacher's output for the same images."""

    teacher: str = Field(
        "self",
        description="`self` is the model as it was at `start`. Otherwise the folder of a finished run; "
        "`{seed}` in it stands for the recipe's seed.",
    )
    start: Share = Field(0.2, description="Share of all steps after which the teacher's loss is added.")
    weight: Positive = Field(
        1.0, description="Factor of the teacher's loss relative to the loss against the targets."
    )
    temperature: Positive = Field(
        2.0, description="Temperature that softens the class probabilities of teacher and student."
    )
