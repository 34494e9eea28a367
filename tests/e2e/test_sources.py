"""The road on two data sets at once: faces and clothed people in one compact network that is verified on both."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from compactmtl.cli.main import main
from compactmtl.export.bundle import Bundle
from compactmtl.runs import Run
from compactmtl.verify.result import Verification
from tests.support.layouts.ccp import write_ccp
from tests.support.layouts.utkface import write_utkface


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_utkface(folder, count=8)
    write_ccp(folder / "ccp", count=6)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("target", ["onnxruntime-cpu", "onnxruntime-cpu-int8"])
def test_two_data_sets_from_recipe_to_report(
    data: Path, tmp_path: Path, target: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    words = [f"data.root={data}", "train.threads=1", "data.batch_size=4", "train.max_steps=8"]
    # enough steps that no gate compares with zero
    assert (
        main(["train", "faces-clothes/compact", "--smoke", *words, "--name", "run", "--out", str(tmp_path)])
        == 0
    )
    printed = capsys.readouterr().out
    assert "labels of val of utkface: age 8 of 8, gender 8 of 8, ethnicity 8 of 8" in printed
    assert "labels of val of ccp: segmentation 6 of 6" in printed

    assert main(["compact", str(run), "--evaluate"]) == 0
    surgery = json.loads((run / "compact" / "surgery.json").read_text())
    assert surgery["macs"]["after"] < surgery["macs"]["before"]
    assert surgery["proof"]["max_relative_error"] <= surgery["proof"]["tolerance"]

    # latency bounds mean nothing here, and int8 of an untrained network loses what it loses: what is under test is that
    # every task is measured on its own data
    assert main(["export", str(run), "--target", target]) in (0, 4)
    found = Verification.model_validate_json((run / "export" / target / "verification.json").read_text())
    assert found.accuracy.samples == 14
    assert set(found.accuracy.torch) == {"age", "gender", "ethnicity", "segmentation"}
    subjects = {gate.subject for gate in found.gates if gate.gate == "accuracy"}
    assert {"age.mae", "segmentation.miou"} <= subjects
    if target == "onnxruntime-cpu":
        assert found.parity.passed
        assert all(gate.passed for gate in found.gates if gate.gate == "accuracy")
    assert Bundle.open(run / "export" / target).info.golden is not None

    assert main(["report", str(run)]) == 0
    report = json.loads((run / "report.json").read_text())
    assert report["runs"][0]["data"] == "utkface+ccp"
    picture = tmp_path / "person.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (96, 64, 3), dtype=np.uint8)).save(picture)
    for model in (run, run / "export" / target):
        assert (
            main(["predict", str(model), str(picture), "--out", str(tmp_path / f"predicted-{model.name}")])
            == 0
        )
    assert Run.open(run).finished
    capsys.readouterr()
