"""Deprecated names of what reads outputs: they warn, and say what the task says."""

from __future__ import annotations

import numpy as np
import pytest

from compactmtl.errors import ArtifactError
from compactmtl.tasks import TargetSpec
from compactmtl.tasks.reading import reading, readings_of
from compactmtl.tasks.registry import task_kinds
from tests.support.task_kinds import usual_options, usual_task


@pytest.mark.parametrize("kind", task_kinds())
def test_a_reading_is_the_task_under_its_old_names(kind: str) -> None:
    task = usual_task(kind)
    with pytest.warns(DeprecationWarning, match=r"Task\.read"):
        old = reading("it", kind, task.spec, usual_options(kind), task.channels)
    assert (old.name, old.kind, old.spec, old.dense) == ("it", kind, task.spec, task.dense)
    assert dict(old.options) == task.options.model_dump()
    size = (6, 8) if task.dense else ()
    output = np.random.default_rng(0).normal(size=(2, task.channels, *size)).astype(np.float32)
    values = old.decode(output)
    np.testing.assert_array_equal(values, task.read(output))
    assert old.probabilities(output[0]) == task.probabilities(output[0])
    assert old.caption(values[0]) == task.caption(values[0])
    np.testing.assert_array_equal(old.picture(values[0]), task.picture(values[0]))


def test_parts_that_do_not_belong_together_are_refused() -> None:
    with (
        pytest.warns(DeprecationWarning, match=r"Task\.read"),
        pytest.raises(ArtifactError, match="has 2 channels, expected 3"),
    ):
        reading("it", "normals", TargetSpec("normals"), {}, 2)


def test_readings_of_a_bundle_warn() -> None:
    task = usual_task("depth")
    with pytest.warns(DeprecationWarning, match=r"use Bundle\.tasks"):
        assert readings_of({"it": task}, "Bundle")["it"].task is task
