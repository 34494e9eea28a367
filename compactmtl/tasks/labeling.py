"""A teacher's outputs as labels: in the target's format, and where the teacher is sure enough of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from compactmtl.tasks.base import Task


def sure_labels(
    task: Task,
    output: Tensor,
    *,
    confidence: float | None = None,
    agreement: float | None = None,
    mirrored: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """What a teacher's raw output (B, ...) says, and where it counts.

    Args:
        task: the teacher's, whose kind has a `sureness`.
        output: the teacher's for images, as its head gives it.
        confidence: the least `Task.certainty` of a label that counts. None: any.
        agreement: the largest `Task.disagreement` of a label that counts with `mirrored`. None: any.
        mirrored: the labels that the teacher gives for the mirror images, mirrored back.

    Returns the labels in the format of the task's target, and where they count: bool, of their shape or with one channel.
    A label that the format takes for unknown, such as a depth that is not positive, does not count.
    """
    label = task.decode(output)
    sure = task.known(label)
    if confidence is not None:
        sure = sure & (task.certainty(output) >= confidence)
    if agreement is not None:
        assert mirrored is not None
        sure = sure & (task.disagreement(label, mirrored) <= agreement)
    return label, sure if sure.ndim == label.ndim else sure[:, None]
