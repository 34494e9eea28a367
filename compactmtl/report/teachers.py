"""What was trained for a run to learn from, so that comparisons can count it, and the labels that came of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from compactmtl.artifacts.layout import LOG
from compactmtl.config.distillation import OWN
from compactmtl.report.model import PseudoLabelView, TeacherView
from compactmtl.report.parse import damaged

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


def pseudo_label_views(run: Run, log: Sequence[Mapping[str, Any]]) -> tuple[PseudoLabelView, ...]:
    """What the teachers of pseudo-labels gave of the run's tasks when it began. Raises ArtifactError for a damaged log."""
    start = next((line for line in log if line.get("event") == "start"), {})
    keys = PseudoLabelView.model_fields
    try:
        return tuple(
            PseudoLabelView.model_validate({key: one[key] for key in keys})
            for one in start.get("pseudo_labels", ())
            if one["task"] in run.tasks
        )
    except (ValidationError, KeyError, TypeError) as error:
        raise damaged(run.path / LOG, error) from error
