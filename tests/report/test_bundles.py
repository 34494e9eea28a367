"""The page of bundles alone: what it says of them comes from the bundles."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from compactmtl.data.base import Preprocessing, Rule, Vector
from compactmtl.export import Bundle
from compactmtl.export.bundle import read_info
from compactmtl.report import build_report, write_bundle_report
from compactmtl.report.card import model_card
from compactmtl.train import Run
from tests.support.bundles import with_inputs
from tests.support.synthetic_runs import FACE_TASKS, SyntheticRun, make_recipe
from tests.support.tiny_val import TinySplits

MakeRun = Callable[..., SyntheticRun]
DATA: dict[str, Any] = {"name": "scenes", "size": (48, 64), "batch_size": 2}
GRAY = {**DATA, "channels": 1, "mean": (0.5,), "std": (0.2,), "resize": "letterbox"}
BANDS = {**DATA, "channels": 5, "resize": "crop"}

RULES: dict[str, Rule] = {
    "rgb": Preprocessing(size=(32, 48), resize="letterbox"),
    "depth": Preprocessing(size=(32, 48), mean=(0.5,), std=(0.25,)),
    "camera": Vector((1.0, 24.0, 16.0), (0.3, 1.0, 2.0)),
}


def page_of(run: SyntheticRun, out: Path) -> str:
    folder = run.path / "export/onnxruntime-cpu"  # without a model file, which the page does not need
    page = write_bundle_report([Bundle(folder, read_info(folder / "bundle.json"))], out).read_text()
    return " ".join(page.split())


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (DATA, ["stretch to 48×64 (height × width), bilinear with antialiasing</dd>", "<dd>RGB, NCHW</dd>"]),
        (GRAY, ["letterbox to 48×64", "antialiasing; padding is 128</dd>", "<dd>gray, NCHW</dd>"]),
        (BANDS, ["crop to 48×64", "<dd>5-band, NCHW</dd>"]),
    ],
)
def test_how_an_image_becomes_the_input(
    data: dict[str, Any], says: list[str], make_run: MakeRun, tmp_path: Path
) -> None:
    run = make_run("run", make_recipe(FACE_TASKS, data=data), exported=True)
    page = page_of(run, tmp_path)
    for words in says:
        assert words in page, words


def test_figures_of_a_runs_bundle_are_of_its_val_split(make_run: MakeRun, tmp_path: Path) -> None:
    page = page_of(make_run("run", make_recipe(FACE_TASKS), exported=True), tmp_path)
    assert "over 8 images of the run&#39;s val split" in page
    assert "own evaluation" not in page


@pytest.mark.parametrize(("data", "kind"), [(DATA, "RGB"), (GRAY, "gray"), (BANDS, "5-band")])
def test_the_card_of_a_run_without_a_bundle_knows_its_images(
    data: dict[str, Any], kind: str, make_run: MakeRun, splits: TinySplits
) -> None:
    run = make_run("run", make_recipe(FACE_TASKS, data=data), compacted=True)
    report = build_report([cast(Run, run)], None, splits)
    assert f"for {kind} images of 48×64, trained on scenes." in model_card(report.runs[0], report)


def test_each_of_several_inputs_is_on_the_page(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run("run", make_recipe(FACE_TASKS), exported=True)
    folder = run.path / "export/onnxruntime-cpu"
    bundle = Bundle(folder, with_inputs(read_info(folder / "bundle.json"), RULES))
    page = " ".join(write_bundle_report([bundle], tmp_path).read_text().split())
    assert f"compactmtl predict {folder} rgb=FILE depth=FILE camera=FILE</code>" in page
    for words in (
        "<dt>input</dt><dd><code>rgb</code></dd> <dt>resize</dt><dd>letterbox to 32×48",
        "<dt>input</dt><dd><code>depth</code></dd> <dt>resize</dt><dd>stretch to 32×48",
        "<dd>gray, NCHW</dd>",
        "<dt>input</dt><dd><code>camera</code></dd> <dt>kind</dt><dd>3 numbers</dd> <dt>values</dt><dd>(value − mean) / std",
    ):
        assert words in page, words
