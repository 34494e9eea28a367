"""Which samples say anything of a target: as the task that learns it says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compactmtl.config.recipe import TaskConfig
from compactmtl.data.labels import anything_known
from compactmtl.tasks import TargetSpec, build_task
from compactmtl.tasks.base import TargetKind
from compactmtl.tasks.registry import all_classes, usual_kind
from tests.support.task_kinds import usual_options

SHAPES: dict[TargetKind, tuple[int, ...]] = {
    "mask": (2, 2),
    "class": (),
    "depth": (1, 2, 2),
    "disparity": (1, 2, 2),
    "normals": (3, 1, 2),
    "scalar": (),
    "multilabel": (3,),
    "instances": (2, 2, 2),
}
WHOLE: dict[TargetKind, tuple[int, ...]] = {
    "mask": (0, 1, 255),
    "class": (0, 1, 255),
    "instances": (-1, 0, 1),
    "multilabel": (-1, 0, 1),
}


@pytest.mark.parametrize("target", SHAPES)
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_a_sample_is_counted_where_its_task_learns_from_it(target: TargetKind, data: st.DataObject) -> None:
    kind = usual_kind(target)
    assert all_classes()[kind].target_kind == target
    spec = TargetSpec(target, classes=("a", "b", "c"), ignore_index=255)
    task = build_task("it", TaskConfig.model_validate({"kind": kind, "options": usual_options(kind)}), spec)
    count = 3 * int(np.prod(SHAPES[target]))
    # mostly unknown values, so that samples without a known one are drawn
    values = st.sampled_from(WHOLE.get(target) or (0.0, 0.0, 0.0, np.nan, np.inf, -np.inf, 0.5))
    drawn = np.array(data.draw(st.lists(values, min_size=count, max_size=count))).reshape(3, *SHAPES[target])
    known = task.known(torch.from_numpy(drawn)).reshape(3, -1).any(1)
    assert anything_known(spec, drawn).tolist() == known.tolist()
