"""What `predict` shows and records of each kind of task: pictures with legends, words, figures for a program."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from compactmtl.backends.torch.runner import TorchRunner
from compactmtl.cli.predict import describe, record
from compactmtl.config.recipe import TaskConfig
from compactmtl.data.base import Preprocessing
from compactmtl.export.predict import Predictor
from compactmtl.export.sheet import sheet
from compactmtl.tasks import TargetSpec, build_tasks
from compactmtl.tasks.pictures import MARKED

SIZE = (16, 24)
SPECS = {
    "seg": TargetSpec("mask", classes=("floor", "wall")),
    "depth": TargetSpec("depth", unit="m"),
    "disparity": TargetSpec("disparity", unit="px"),
    "normals": TargetSpec("normals"),
    "gender": TargetSpec("class", classes=("male", "female")),
    "traits": TargetSpec("multilabel", classes=("Smiling", "Young", "Hat")),
    "age": TargetSpec("scalar", unit="years", mean=33, std=20),
}
CONFIGS: dict[str, dict[str, Any]] = {
    "seg": {"kind": "segmentation"},
    "edges": {"kind": "boundaries", "target": "seg"},
    "depth": {"kind": "depth"},
    "disparity": {"kind": "disparity"},
    "normals": {"kind": "normals"},
    "gender": {"kind": "classification"},
    "traits": {"kind": "multilabel"},
    "age": {"kind": "regression"},
    "years": {
        "kind": "binned_regression",
        "target": "age",
        "options": {"low": 1.0, "high": 81.0, "bins": 5},
    },
}
TASKS = build_tasks({name: TaskConfig.model_validate(config) for name, config in CONFIGS.items()}, SPECS)


def outputs() -> dict[str, Tensor]:
    """Raw outputs whose meaning is plain, one image."""
    left = (torch.arange(SIZE[1]) < 6).expand(SIZE)
    return {
        "seg": torch.stack([left.float(), (~left).float()])[None],
        "edges": torch.where(left, 99.0, -99.0)[None, None],
        "depth": torch.where(left, 1.5, 4.0)[None, None],
        "disparity": torch.where(left, 30.0, 12.0)[None, None],
        "normals": torch.tensor([0.0, 0.0, -1.0]).view(1, 3, 1, 1).expand(1, 3, *SIZE),
        "gender": torch.tensor([[0.0, 2.0]]),
        "traits": torch.tensor([[3.0, -3.0, 1.0]]),
        "age": torch.tensor([[31.24]]),
        "years": torch.tensor([[-99.0, 0.0, 0.0, -99.0, -99.0]]),
    }


class Certain(nn.Module):
    """Says the same of every image."""

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return outputs()


@pytest.fixture
def predictor() -> Predictor:
    return Predictor(TorchRunner(Certain(), ["image"], list(TASKS)), TASKS, Preprocessing(SIZE))


def image() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (3, *SIZE), np.uint8)


def test_every_kind_of_task_is_recorded_in_figures(predictor: Predictor) -> None:
    found = record(predictor.predict(image()), predictor.tasks)
    json.dumps(found)  # nothing but plain values
    sigmoid = torch.sigmoid(torch.tensor([3.0, -3.0, 1.0])).tolist()
    assert found["seg"] == {"pixel_shares": {"wall": 0.75, "floor": 0.25}}
    assert found["edges"] == {"boundary_share": 0.25}
    assert found["depth"] == {"min": 1.5, "median": 4.0, "max": 4.0, "unit": "m"}
    assert found["disparity"] == {"min": 12.0, "median": 12.0, "max": 30.0, "unit": "px"}
    assert found["gender"]["class"] == "female"
    assert sum(found["gender"]["probabilities"].values()) == pytest.approx(1)
    assert found["traits"]["classes"] == ["Smiling", "Hat"]
    assert list(found["traits"]["probabilities"].values()) == pytest.approx(sigmoid)
    assert found["age"] == {"value": pytest.approx(31.24), "unit": "years"}
    assert found["years"] == {"value": pytest.approx(31.0), "unit": "years"}


def test_a_line_tells_single_values_and_where_maps_are(predictor: Predictor) -> None:
    text = describe(predictor.predict(image()), predictor.tasks)
    assert "edges boundary 25.0%" in text and "normals as a picture only" in text
    assert "gender female (88%)" in text
    assert "traits Smiling, Hat" in text
    assert "years 31.0 years" in text


def test_the_sheet_has_a_panel_for_each_map(predictor: Predictor) -> None:
    picture = np.asarray(sheet(image(), predictor.predict(image()), predictor.tasks))
    maps = sum(task.dense for task in TASKS.values())
    assert picture.shape[1] > (1 + maps) * 24 * 16  # enlarged 16 times
    marked = (picture == np.array(MARKED)).all(-1)
    assert marked.sum() == 256 * 384 / 4  # the quarter that is a boundary for certain
