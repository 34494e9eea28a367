"""Stages are found by form and target, and files with labels alone are read."""

from __future__ import annotations

import json

import pytest

from compactmtl.report.model import Form, Stage, StageKey


@pytest.mark.parametrize(
    ("form", "target", "label"),
    [
        ("trained", None, "trained"),
        ("compact", None, "compact"),
        ("exported", "orin, int8", "exported, orin, int8"),
    ],
)
def test_a_stage_of_any_version_s_file_has_its_target(form: Form, target: str | None, label: str) -> None:
    stage = Stage(form=form, target=target, size=None, metrics=None)
    assert stage.key == StageKey(form, target)
    assert stage.label == label
    written = json.loads(stage.model_dump_json())
    assert written["label"] == label
    assert Stage.model_validate(written) == stage
    del written["target"]  # as earlier versions wrote it
    assert Stage.model_validate(written) == stage
