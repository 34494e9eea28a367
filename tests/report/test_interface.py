"""What a report says of a bundle's inputs: each its own kind, size, rule and values, in the words of the model card."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from compactmtl.backends.targets import load_target
from compactmtl.data.base import Preprocessing, Rule, Vector
from compactmtl.export.record import BundleInfo
from compactmtl.report.card import _interface
from compactmtl.report.interface import Interface, interface
from tests.support.bundles import conv_bundle, several_bundle, with_inputs

RULES: dict[str, Rule] = {
    "rgb": Preprocessing(size=(32, 48), resize="letterbox"),
    "depth": Preprocessing(size=(32, 48), mean=(0.5,), std=(0.25,)),
    "camera": Vector((1.0, 24.0, 16.0), (0.3, 1.0, 2.0)),
}


@pytest.fixture
def info(tmp_path: Path) -> BundleInfo:
    """A bundle of three inputs that are made in three ways."""
    return with_inputs(several_bundle(tmp_path / "bundle", load_target("onnxruntime-cpu")).info, RULES)


def lines(view: Interface) -> list[str]:
    run: Any = SimpleNamespace(shown_export=SimpleNamespace(interface=view, target="t"), exports=())
    return list(_interface(run))


def test_each_of_several_inputs_is_described_on_its_own(info: BundleInfo, tmp_path: Path) -> None:
    said = lines(interface(tmp_path, info))
    assert [line for line in said if line.startswith("- ")] == [
        "- `rgb`: RGB, NCHW, letterboxed to 32×48 (height × width) by a bilinear filter with antialiasing. Values: (value / 255 "
        "− mean) / std of each channel, mean (0.485, 0.456, 0.406), std (0.229, 0.224, 0.225).",
        "- `depth`: gray, NCHW, stretched to 32×48 (height × width) by a bilinear filter with antialiasing. Values: (value / 255 "
        "− mean) / std of each channel, mean (0.5), std (0.25).",
        "- `camera`: 3 numbers. Values: (value − mean) / std of each, mean (1, 24, 16), std (0.3, 1, 2).",
    ]
    assert any("rgb=FILE depth=FILE camera=FILE" in line for line in said)


def test_what_the_model_does_itself_is_said_of_each(info: BundleInfo, tmp_path: Path) -> None:
    target = info.target.model_copy(update={"onnx": info.target.onnx.model_copy(update={"preprocess": True})})
    said = [
        line
        for line in lines(interface(tmp_path, info.model_copy(update={"target": target})))
        if line[:2] == "- "
    ]
    assert all("the model normalizes them" in line for line in said) and "NHWC" in said[1]


def test_a_report_is_read_back_as_it_was_written(info: BundleInfo, tmp_path: Path) -> None:
    view = interface(tmp_path, info)
    assert Interface.model_validate(json.loads(view.model_dump_json())) == view


def test_one_picture_without_a_name_is_said_as_one(tmp_path: Path) -> None:
    info = conv_bundle(tmp_path / "bundle", load_target("onnxruntime-cpu")).info
    said = lines(interface(tmp_path, info))
    assert any(line.startswith("Input: RGB, NCHW, stretched to 8×8") for line in said)
    assert any(line.endswith("IMAGE` runs it on one image.") for line in said)


def test_one_picture_with_a_name_is_given_by_it(info: BundleInfo, tmp_path: Path) -> None:
    training = info.training.model_copy(update={"inputs": {"rgb": RULES["rgb"]}})
    one = info.model_copy(update={"inputs": info.inputs[:1], "training": training})
    assert any("rgb=FILE` runs it on one sample." in line for line in lines(interface(tmp_path, one)))
