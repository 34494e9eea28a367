"""What was trained for a run to learn from, so that comparisons can count it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from compactmtl.config.distillation import OWN
from compactmtl.report.model import TeacherView

if TYPE_CHECKING:
    from compactmtl.runs import Run


def teacher_views(
    run: Run, name: str, meta: Mapping[str, Any], notes: list[str]
) -> tuple[TeacherView, ...] | None:
    """The runs that a run learned from; none where it did and an earlier version did not say what they cost."""
    from compactmtl.runs.teachers import recorded_teachers

    learned = run.recipe.distillation is not None and any(one != OWN for one in run.recipe.distillation.names)
    recorded = recorded_teachers(meta)
    if recorded is None and learned:
        notes.append(f"{name}: an earlier version trained it, so what its teacher's training cost is unknown")
        return None
    return tuple(TeacherView(path=one.path, epochs=one.epochs, seconds=one.seconds) for one in recorded or ())
