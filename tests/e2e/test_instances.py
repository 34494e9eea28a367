"""Instances are learned, and none is lost on the way from training through surgery to ONNX Runtime."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from compactmtl.cli.main import main
from compactmtl.verify.result import Verification
from tests.support.layouts.coco import write_coco

SMALL = [
    "data.size=[64, 80]",
    "data.options.repeat=20",
    "model.encoder.options.channels=[8, 16, 24, 32]",
    "tasks.instances.head.width=24",
    "train.epochs=3",
    "train.optimizer.lr=5e-3",
]


@pytest.mark.slow
def test_a_small_network_memorizes_four_images_and_its_bundle_scores_the_same(tmp_path: Path) -> None:
    write_coco(tmp_path)
    run = tmp_path / "run"
    train = [
        "train",
        "coco/overfit",
        f"data.root={tmp_path}",
        *SMALL,
        "--out",
        str(tmp_path),
        "--name",
        "run",
    ]
    assert main(train) == 0
    last = json.loads((run / "log.jsonl").read_text().splitlines()[-1])
    assert last["best"]["instances"]["ap50"] > 0.9

    assert main(["compact", str(run)]) == 0
    assert main(["export", str(run), "--target", "onnxruntime-cpu"]) in (0, 4)  # 4: latency on a busy machine
    path = run / "export" / "onnxruntime-cpu" / "verification.json"
    found = Verification.model_validate_json(path.read_text())
    assert found.parity.passed
    assert found.accuracy.torch["instances"]["ap50"] == pytest.approx(
        last["best"]["instances"]["ap50"], abs=1e-3
    )
    assert found.accuracy.artifact["instances"] == pytest.approx(found.accuracy.torch["instances"], abs=1e-3)
