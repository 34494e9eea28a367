"""A network of the user's own goes through every command that reads its run, and its bundle needs no code."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from compactmtl.cli.main import main
from compactmtl.errors import OK, USAGE
from tests.support.own_networks import NETWORKS, RECIPE

NAMED = [
    "model.factory=own_networks:Named",
    "model.outputs=[segmentation,depth]",
    "model.encoder_path=backbone",
    "model.head_paths={segmentation: decoder.seg, depth: decoder.z}",
]
CLOSED = ["model.factory=own_networks:Closed"]
SPARSE = [
    "train.epochs=4",
    "sparsity.scope=model",
    "sparsity.selective.mac_reduction=0.35",
    "sparsity.selective.min_channels=4",
    "sparsity.shrink_every=1",
]
TARGET = "backend: onnxruntime\nlatency: {warmup: 1, repeats: 3}\n"
SWEEP = """
recipe: recipe.yaml
seeds: [0]
baseline: shown
entries:
  shown: {}
  closed: {overrides: ["model.factory=own_networks:Closed"]}
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_networks.py").write_text(NETWORKS)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    (tmp_path / "t.yaml").write_text(TARGET)
    (tmp_path / "sweep.yaml").write_text(SWEEP)
    Image.new("RGB", (60, 40), (90, 120, 30)).save("photo.png")
    path = list(sys.path)
    yield tmp_path
    sys.path[:] = path
    sys.modules.pop("own_networks", None)


@pytest.mark.slow
@pytest.mark.parametrize("network", [NAMED, CLOSED], ids=["named", "closed"])
def test_every_command_reads_the_run(
    network: list[str], place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trust = ["--trust"]
    words = ["train", "recipe.yaml", *network, *SPARSE, "--name", "own"]
    assert main(words) == USAGE  # no file and no key gives the user's word
    assert not Path("runs/own").exists()
    assert main([*words, "train.max_steps=5", "--dry-run", *trust]) == OK
    assert main([*words, *trust]) == OK
    assert "next: compactmtl compact runs/own --trust" in capsys.readouterr().out
    run, bundle = "runs/own", "runs/own/export/t"
    for later in (["compact", run], ["export", run, "--target", "t.yaml"], ["report", run], ["predict", run, "photo.png", "--out", "p"]):  # fmt: skip
        capsys.readouterr()
        assert main(later) == USAGE, later
        assert "is code" in capsys.readouterr().err, later
        assert main([*later, *trust]) == OK, (later, capsys.readouterr().err)
    surgery = json.loads(Path(run, "compact/surgery.json").read_text())
    assert surgery["macs"]["after"] <= 0.7 * surgery["macs"]["before"]
    verification = json.loads(Path(bundle, "verification.json").read_text())
    assert verification["parity"]["passed"]
    assert main([*words, *trust, "--resume"]) == OK  # nothing left to do
    # Some of its tasks: what only the other one reads leaves.
    assert main(["compact", run, "--tasks", "depth", *trust]) == OK
    alone = json.loads(Path("runs/own-depth/compact/surgery.json").read_text())
    # (one layer that computes both outputs stays)
    assert alone["parameters"]["after"] < surgery["parameters"]["after"] or network is CLOSED
    assert main(["export", "runs/own-depth", "--target", "t.yaml", *trust]) == OK
    # The bundle is on its own.
    Path("own_networks.py").unlink()
    sys.modules.pop("own_networks", None)
    assert main(["predict", bundle, "photo.png", "--out", "q"]) == OK
    left, right = (json.loads(Path(folder, "predictions.json").read_text()) for folder in ("p", "q"))
    assert left["photo.png"]["tasks"].keys() == right["photo.png"]["tasks"].keys()
    capsys.readouterr()
    assert main(["report", run, *trust]) == USAGE
    assert "no module own_networks" in capsys.readouterr().err


@pytest.mark.slow
def test_probe_and_sweep(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", "sweep.yaml", "--out", "sw", "--trust"]) == OK
    capsys.readouterr()
    assert main(["probe", "sw/closed/seed0", "--trust"]) == USAGE
    assert "shows no encoder" in capsys.readouterr().err
    # a teacher, which is asked through its own forward
    for teacher in ("shown", "closed"):
        words = [f"distillation.teacher=sw/{teacher}/seed0", "distillation.start=0", "--name", teacher]
        assert main(["train", "recipe.yaml", *words, "--trust"]) == OK


@pytest.mark.slow
def test_recipes_check_asks_for_the_word(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "check", "recipe.yaml"]) == USAGE
    assert "own_networks:Shown is code" in capsys.readouterr().err
    assert main(["recipes", "check", "recipe.yaml", "--trust"]) == OK
    Path("wrong.yaml").write_text(RECIPE.replace('Shown"', 'Shown", options: {widht: 3}'))
    assert main(["recipes", "check", "wrong.yaml", "--trust"]) == USAGE
    assert "did you mean width?" in capsys.readouterr().err
