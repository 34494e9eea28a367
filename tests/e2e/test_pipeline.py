"""The whole pipeline by its commands: train dense and compact, compact, export, verify, report, predict."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from compactmtl.cli.main import main
from compactmtl.verify.result import Verification

# a few steps on small pictures: the pipeline is under test, not the network
SHORT = [
    "data.size=[48,64]",
    "data.options.train=32",
    "data.options.val=8",
    "train.epochs=3",
    "train.threads=1",
]


@pytest.mark.slow
def test_scenes_from_recipe_to_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", str(tmp_path)]
    dense, compact = tmp_path / "scenes-dense", tmp_path / "scenes-compact"
    # latency bounds mean nothing on a busy machine that has trained three epochs; parity and accuracy do
    assert main(["train", "scenes/dense", *SHORT, *out]) == 0
    assert main(["train", "scenes/compact", *SHORT, *out]) == 0
    assert main(["compact", str(compact)]) == 0
    surgery = json.loads((compact / "compact" / "surgery.json").read_text())
    assert surgery["macs"]["after"] <= 0.55 * surgery["macs"]["before"]
    assert surgery["proof"]["max_relative_error"] <= surgery["proof"]["tolerance"]

    assert main(["export", str(compact), "--target", "onnxruntime-cpu", "--baseline", str(dense)]) in (0, 4)
    bundle = compact / "export" / "onnxruntime-cpu"
    found = Verification.model_validate_json((bundle / "verification.json").read_text())
    assert found.parity.passed
    for task, metrics in found.accuracy.torch.items():
        for metric, value in metrics.items():
            assert found.accuracy.artifact[task][metric] == pytest.approx(value, rel=1e-3, abs=1e-3)

    assert main(["report", str(compact), "--baseline", str(dense)]) == 0
    assert (compact / "report.html").stat().st_size > 10_000
    assert json.loads((compact / "report.json").read_text())["runs"]

    picture = tmp_path / "room.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)).save(picture)
    for model in (compact, bundle):
        predictions = tmp_path / f"predictions-{model.name}"
        assert main(["predict", str(model), str(picture), "--out", str(predictions)]) == 0
        assert list(predictions.glob("*.png"))
    capsys.readouterr()
