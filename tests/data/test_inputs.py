"""Several inputs from a data set of the user's own: order, values, augmentation, caches, and what does not fit."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from compactmtl.config import trusting
from compactmtl.config.recipe import DataConfig
from compactmtl.data import build_loader, check_dataset, load_dataset
from compactmtl.data.base import Batch
from compactmtl.data.inputs import given
from compactmtl.errors import ConfigError, DataError

INPUTS: dict[str, Any] = {
    "rgb": {},
    "near": {"channels": 1, "mean": [0.0], "std": [1.0]},
    "pose": {"kind": "vector", "channels": 2, "mean": [1.0, 2.0], "std": [2.0, 4.0]},
}
DATA = '''
import torch

from compactmtl.tasks import TargetSpec


class Same:
    """Each picture of a sample, and its mask, show one pattern."""

    resizes = ("stretch", "letterbox")
    change = staticmethod(lambda inputs: inputs)

    def __init__(self, config, split):
        self.config, self.split = config, split
        self.specs = {"it": TargetSpec("mask", classes=tuple(map(str, range(8))), ignore_index=255)}

    def __len__(self):
        return 6

    def __getitem__(self, index):
        height, width = self.config.size
        draw = torch.Generator().manual_seed(index)
        pattern = torch.randint(8, (height // 4, width // 4), generator=draw).repeat_interleave(4, 0).repeat_interleave(4, 1)
        picture = (30 * pattern).to(torch.uint8)
        inputs = {"rgb": picture.expand(3, -1, -1), "near": picture[None], "pose": torch.tensor([float(index), 5.0])}
        sample = {"inputs": type(self).change(inputs), "targets": {"it": pattern}}
        if self.config.resize == "letterbox":
            sample["own_size"] = (height, 2 * width)
        return sample

    def identifier(self, index):
        return str(index)
'''


@pytest.fixture(autouse=True)
def _module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "same_data.py").write_text(DATA)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with trusting():
        yield
    sys.modules.pop("same_data", None)


def config(**fields: Any) -> DataConfig:
    values = {"name": "same_data:Same", "size": (16, 24), "batch_size": 3, "inputs": INPUTS} | fields
    return DataConfig.model_validate(values)


def changed(monkeypatch: pytest.MonkeyPatch, change: Any) -> None:
    """Let the data set give other inputs."""
    import same_data  # type: ignore[import-not-found]

    monkeypatch.setattr(same_data.Same, "change", staticmethod(change))


def batches(data: DataConfig, *, train: bool, epoch: int = 1) -> list[Batch]:
    loader = build_loader(load_dataset(data, "train"), data, train=train, seed=0)
    loader.sampler.set_epoch(epoch)
    return list(loader)


def test_inputs_come_in_the_recipes_order_and_normalized() -> None:
    batch = batches(config(), train=False)[0]
    rgb, near, pose = given(batch)
    assert rgb.shape == (3, 3, 16, 24) and near.shape == (3, 1, 16, 24)
    assert rgb is batch["image"]
    pattern = batch["targets"]["it"].float()[:, None] * 30 / 255
    torch.testing.assert_close(near, pattern)
    torch.testing.assert_close(rgb[:, 1:2], (pattern - 0.456) / 0.224)
    assert pose.tolist() == [[(n - 1) / 2, 0.75] for n in range(3)]
    turned = config(inputs={name: INPUTS[name] for name in ("pose", "near", "rgb")})
    other = batches(turned, train=False)[0]
    assert [one.shape for one in given(other)] == [pose.shape, near.shape, rgb.shape]
    assert torch.equal(other["image"], near)  # the first picture


@pytest.mark.parametrize(
    "augment",
    [{"flip": True}, {"zoom": [1.2, 1.6]}, {"rotate": 30}, {"shift": 3}],
    ids=lambda one: next(iter(one)),
)
def test_pictures_move_together_and_vectors_do_not(augment: dict[str, Any]) -> None:
    data = config(augment=augment)
    loader = build_loader(load_dataset(data, "train"), data, train=True, seed=0)
    plain = {int(pose[0] * 2 + 1): near for batch in batches(config(), train=False) for _, near, pose in zip(*given(batch), strict=True)}  # fmt: skip
    moved = False
    for batch in loader:
        for rgb, near, pose in zip(*given(batch), strict=True):
            gray = (rgb[1] * 0.224 + 0.456) * 255
            torch.testing.assert_close(gray, near[0] * 255, atol=1e-3, rtol=0)
            assert pose[1] == 0.75
            moved |= not torch.equal(near, plain[int(pose[0] * 2 + 1)])
    assert moved


def test_color_changes_pictures_of_three_channels_or_those_named() -> None:
    plain, moved = (given(batches(config(augment=a), train=True)[0]) for a in ({}, {"color": 0.5}))
    assert [torch.equal(a, b) for a, b in zip(plain, moved, strict=True)] == [False, True, True]
    named = INPUTS | {"rgb": {"color": False}, "near": {**INPUTS["near"], "color": True}}
    plain, moved = (
        given(batches(config(augment=a, inputs=named), train=True)[0]) for a in ({}, {"color": 0.5})
    )
    assert [torch.equal(a, b) for a, b in zip(plain, moved, strict=True)] == [True, False, True]


@pytest.mark.parametrize("fields", [{"cache": "disk"}, {"cache": "none"}, {"workers": 2}], ids=str)
def test_caches_and_workers_give_the_same(fields: dict[str, Any]) -> None:
    augment = {"flip": True, "rotate": 10, "color": 0.2}
    for one, other in zip(
        batches(config(augment=augment), train=True),
        batches(config(augment=augment, **fields), train=True),
        strict=True,
    ):
        assert all(torch.equal(a, b) for a, b in zip(given(one), given(other), strict=True))


def test_padding_of_a_letterbox_is_of_every_picture() -> None:
    data = config(resize="letterbox", augment={"color": 0.9})
    dataset = load_dataset(data, "train")
    sample = dataset[0]
    assert sample["inside"][0, 0] == 0 and set(sample["others"]) == {"near", "pose"}
    (batch, *_), (whole, *_) = (batches(one, train=True) for one in (data, config(resize="letterbox")))
    outside = sample["inside"] == 0
    assert torch.equal(given(batch)[0][..., outside], given(whole)[0][..., outside])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda one: {"rgb": one["rgb"], "pose": one["pose"]}, "gives no input 'near', only rgb, pose; data.inputs names rgb, near, pose"),
        (lambda one: one | {"near": one["near"][0]}, r"input near \(picture of 1\) is uint8 \(16, 24\), expected uint8 \(1, 16, 24\)"),
        (lambda one: one | {"near": one["rgb"]}, r"input near \(picture of 1\) is uint8 \(3, 16, 24\)"),
        (lambda one: one | {"near": one["near"][..., :20]}, r"expected uint8 \(1, 16, 24\)"),
        (lambda one: one | {"rgb": one["rgb"].float()}, "input rgb .* is float32"),
        (lambda one: one | {"pose": torch.zeros(3)}, r"input pose \(vector of 2\) is float32 \(3,\), expected float32 \(2,\)"),
        (lambda one: one | {"pose": torch.tensor([1.0, np.nan])}, "input pose .* not finite"),
        (lambda one: one["rgb"], "inputs is a Tensor"),
    ],
)  # fmt: skip
def test_what_the_data_set_gives_otherwise(
    change: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_dataset(config(), "train")
    changed(monkeypatch, change)
    with pytest.raises(DataError, match=message) as error:
        load_dataset(config(), "train")
    assert "sample 0" in str(error.value) and error.value.hint
    report = check_dataset(config())
    assert any(re.search(message, problem) for problem in report.problems)


def test_a_data_set_of_one_picture_refuses_names() -> None:
    with pytest.raises(
        ConfigError, match="the data set scenes gives one picture, and rgb, near, pose are named"
    ):
        load_dataset(config(name="scenes"), "train")
    with pytest.raises(ConfigError, match="gives one picture"):
        check_dataset(config(name="scenes"))


def test_a_dark_input_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    changed(monkeypatch, lambda one: one | {"near": one["near"] // 20})
    (note,) = [note for note in check_dataset(config()).notes if "no pixel" in note]
    assert "of input near" in note and "data.inputs.near.range" in note
