"""`predict` from a bundle: what it loads and what it says."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from PIL import Image

from compactmtl.config.target import Target
from tests.support.bundles import LABELS, conv_bundle
from tests.support.conv_onnx import SIZE

CODE = """
import sys
from compactmtl.cli.main import main
code = main(sys.argv[1:])
print("loaded", *sys.modules)
sys.exit(code)
"""
# What takes seconds to import and has no part in running a bundle.
SLOW = {
    "torch",
    "torchvision",
    "timm",
    "torchmetrics",
    "torchjd",
    "scipy",
    "sympy",
    "matplotlib",
    "tensorboard",
    "pandas",
    "sklearn",
    "onnxscript",
}


def predict(folder: Path) -> subprocess.CompletedProcess[str]:
    """A picture through folder/bundle, in a process of its own."""
    pixels = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "photo.png")
    return subprocess.run(
        [sys.executable, "-c", CODE, "predict", "bundle", "photo.png", "--out", "found"],
        capture_output=True,
        text=True,
        cwd=folder,
        check=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_bundle_is_run_without_torch(tmp_path: Path, backend: Literal["onnxruntime", "openvino"]) -> None:
    pytest.importorskip(backend)
    conv_bundle(tmp_path / "bundle", Target(backend=backend))
    done = predict(tmp_path)
    loaded = done.stdout.splitlines()[-1].split()
    assert loaded[0] == "loaded"
    assert not SLOW & set(loaded)
    tasks = json.loads((tmp_path / "found" / "predictions.json").read_text())["photo.png"]["tasks"]
    assert tasks["logits"]["class"] in LABELS
    assert sum(tasks["logits"]["probabilities"].values()) == pytest.approx(1, abs=1e-6)
    assert sum(tasks["map"]["pixel_shares"].values()) == pytest.approx(1)
    assert (tmp_path / "found" / "photo.png").is_file()


@pytest.mark.slow
def test_a_picture_takes_less_than_a_second_and_a_half_of_processor_time(tmp_path: Path) -> None:
    conv_bundle(tmp_path / "bundle", Target(backend="onnxruntime"))
    seconds = []
    for _ in range(2):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        predict(tmp_path)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    # Measured 0.8 s; importing torch alone would take 2.
    assert min(seconds) < 1.5
