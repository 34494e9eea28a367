"""Pictures of samples."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from compactmtl.report.pictures import comparison_strip, data_uri
from compactmtl.report.samples import SampleView, TaskSample, View, below, predict_samples, spread
from compactmtl.tasks import build_tasks
from tests.support.synthetic_runs import FACE_TASKS, SPECS, SyntheticRun, make_recipe, write_run
from tests.support.synthetic_verification import ROOM_TASKS
from tests.support.tiny_val import TinySplits, TinyVal


@given(st.integers(1, 1000), st.integers(1, 20))
def test_spread_gives_distinct_indices_in_range(length: int, count: int) -> None:
    indices = spread(length, count)
    assert len(indices) == len(set(indices)) == min(length, count)
    assert indices[0] == 0
    assert all(0 <= index < length for index in indices)


def test_a_data_uri_holds_the_picture_itself() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    encoded = data_uri(picture).removeprefix("data:image/png;base64,")
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded)))), picture)


def test_predictions_are_the_model_s_own(pair: tuple[SyntheticRun, SyntheticRun]) -> None:
    dense, compact = pair
    models = [("dense", dense.load_plain(), dense), ("compact", compact.load_compact(), compact)]
    samples = predict_samples(models, TinySplits(), 3)  # type: ignore[arg-type]
    assert [sample.identifier for sample in samples] == ["val/00000", "val/00004", "val/00007"]
    tasks = build_tasks(dense.recipe.tasks, SPECS)
    for sample, index in zip(samples, (0, 4, 7), strict=True):
        assert [task.task for task in sample.tasks] == list(ROOM_TASKS)
        for task in sample.tasks:
            target = TinyVal()[index]["targets"][task.task].numpy()
            assert task.target is not None
            assert task.target.picture is not None
            assert np.array_equal(task.target.picture, tasks[task.task].picture(target, target))
            assert list(task.predictions) == ["dense", "compact"]


def test_values_are_told_in_words(pair: tuple[SyntheticRun, SyntheticRun]) -> None:
    run = write_run(pair[0].path.parent / "faces", make_recipe(FACE_TASKS))
    (sample,) = predict_samples([("dense", run.load_plain(), run)], TinySplits(), 1)  # type: ignore[list-item]
    age, gender = sample.tasks
    assert not age.dense
    assert age.target is not None
    assert age.target.caption == run.tasks["age"].caption(np.asarray(20.0, np.float32))
    assert gender.predictions["dense"].caption in ("male", "female")


def flat(color: int, height: int = 10, width: int = 20) -> np.ndarray:
    return np.full((height, width, 3), color, np.uint8)


def strip_of(targets: bool = True) -> Image.Image:
    tasks = tuple(
        TaskSample(
            name,
            View(flat(60)) if targets else None,
            {"dense": View(flat(120)), "compact": View(flat(180))},
        )
        for name in ("depth", "normals")
    )
    return comparison_strip([SampleView("one", flat(30), tasks)], tile=100, gap=4)


def test_a_strip_has_a_row_a_task_and_a_column_a_model() -> None:
    pixels = np.asarray(strip_of())
    width = pixels.shape[1]
    rows = [
        np.flatnonzero((pixels[:, x] == color).all(1)) for color, x in ((30, width - 390), (180, width - 50))
    ]
    assert len(rows[0]) == 50  # the input once, 100 pixels wide at 2:1
    assert len(rows[1]) == 100  # the last model for both tasks
    shades = [int(pixels[rows[0][0], width - 390 + 104 * column, 0]) for column in range(4)]
    assert shades == [30, 60, 120, 180]


def test_a_strip_without_targets_has_no_column_for_them() -> None:
    assert strip_of().width - strip_of(targets=False).width == 104


def test_a_strip_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        comparison_strip([])


@pytest.mark.parametrize(
    ("identifier", "root", "expected"),
    [
        ("/data/UTKFace/1_0.jpg", "/data", "UTKFace/1_0.jpg"),
        ("/data/UTKFace/1_0.jpg", "/other", "/data/UTKFace/1_0.jpg"),
        ("scene 7", None, "scene 7"),
    ],
)
def test_a_sample_is_named_below_the_datas_root(identifier: str, root: str | None, expected: str) -> None:
    assert below(identifier, root) == expected
