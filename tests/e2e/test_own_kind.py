"""A kind of task from a module of one's own goes all the way: nothing in the package knows its name."""

from __future__ import annotations

import importlib
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from compactmtl.cli.main import main
from compactmtl.errors import OK, USAGE
from tests.support.own_kind import FAR

RECIPE = """
data: {name: scenes, size: [16, 24], batch_size: 4, options: {train: 8, val: 4}}
tasks:
  segmentation: {kind: segmentation, head: {kind: fcn, width: 4}}
  far: {kind: "own_tasks:Far", target: depth, options: {limit: 8.0}, head: {kind: fcn, width: 4}}
model: {encoder: {name: test_resnet}}
balancing: {name: uncertainty}
distillation: {start: 0.5}
train: {epochs: 1, max_steps: 2, threads: 1}
targets: []
"""
TARGET = """
backend: onnxruntime
onnx: {postprocess: {far: sigmoid}}
latency: {warmup: 1, repeats: 2}
"""


@pytest.mark.slow
def test_a_new_kind_needs_its_class_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    Path("own_tasks.py").write_text(FAR)
    Path("recipe.yaml").write_text(RECIPE)
    Path("target.yaml").write_text(TARGET)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)).save("photo.png")
    importlib.invalidate_caches()
    try:
        assert main(["recipes", "check", "recipe.yaml"]) == USAGE
        assert main(["recipes", "check", "recipe.yaml", "--trust"]) == OK
        assert main(["train", "recipe.yaml", "--out", "runs", "--name", "run", "--trust"]) == OK
        assert main(["compact", "runs/run", "--trust"]) == OK
        assert main(["export", "runs/run", "--target", "target.yaml", "--trust"]) == OK
        bundle = "runs/run/export/target"
        assert main(["report", "runs/run", "--trust"]) == OK
        capsys.readouterr()
        assert main(["predict", bundle, "photo.png"]) == USAGE
        assert "own_tasks:Far is code" in capsys.readouterr().err
        for source in ("runs/run", bundle):
            assert main(["predict", source, "photo.png", "--out", source.replace("/", "-"), "--trust"]) == OK
    finally:
        sys.modules.pop("own_tasks", None)
    epoch = _epoch("runs/run/log.jsonl")
    loss = epoch["train"]["losses"]["far"]
    assert math.isfinite(loss) and loss > 0
    # half the weight, as the class says; two steps of 0.001 move the variance's logarithm by no more
    assert epoch["balancing"] == pytest.approx({"segmentation": 1.0, "far": 0.5}, rel=0.01)
    verification = json.loads(Path(bundle, "verification.json").read_text())
    assert verification["passed"]
    assert json.loads(Path("runs/run/report.json").read_text())["tasks"][1]["primary"] == "error"
    run, artifact = (
        json.loads(Path(folder, "predictions.json").read_text())["photo.png"]["tasks"]["far"]
        for folder in ("runs-run", "runs-run-export-target")
    )
    assert 0 < run["mean"] < run["limit"] == 8
    # float32 and its logit, of which a probability near 1 leaves four digits
    assert artifact == pytest.approx(run, rel=1e-3)


def _epoch(log: str) -> dict[str, Any]:
    """The log's line of the run's one epoch."""
    (line,) = (one for one in map(json.loads, Path(log).read_text().splitlines()) if one["event"] == "epoch")
    return dict(line)
