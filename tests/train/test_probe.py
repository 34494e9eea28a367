"""A run's probe: what is read, what is written, and when it is made anew."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from compactmtl.cli.main import main
from compactmtl.config.sweep import EntryConfig, SweepConfig
from compactmtl.errors import ArtifactError, ConfigError
from compactmtl.runs.probe import Question
from compactmtl.sweep import SweepRuns, probed
from compactmtl.sweep.run import finish
from compactmtl.train import Run
from compactmtl.train import probe as probing
from compactmtl.train.probe import probe_run
from tests.support.real_runs import write_run

FACES = """
data: {{name: utkface, root: {root}, size: [16, 16], batch_size: 16}}
tasks:
  age: {{kind: regression}}
  ethnicity: {{kind: classification, head: {{kind: {head}}}}}
model: {{encoder: {{name: test_resnet}}}}
"""


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Faces as gray as they are old, in a color for each ethnicity."""
    root = tmp_path_factory.mktemp("faces")
    rng = np.random.default_rng(0)
    for split, count in (("train", 60), ("val", 20)):
        folder = root / "UTKFace" / split
        folder.mkdir(parents=True)
        for number in range(count):
            age, race = int(rng.integers(1, 90)), number % 3
            picture = np.full((16, 16, 3), 2 * age, np.uint8)
            picture[..., race] += 60
            Image.fromarray(picture).save(folder / f"{age}_0_{race}_20170104{number:04d}.png")
    return root


@pytest.fixture
def face_run(faces: Path, tmp_path: Path) -> Run:
    return write_run(tmp_path / "faces-seed0", FACES.format(root=faces, head="linear"))


@pytest.mark.slow
def test_it_finds_what_the_features_hold_and_writes_it(face_run: Run) -> None:
    found = probe_run(face_run, Question(("linear", "knn")))
    assert found.samples == {"train": 60, "val": 20}
    assert found.tasks["ethnicity"].metric == "accuracy"
    assert found.tasks["ethnicity"].scores["linear"] > 0.8  # a random network keeps color
    assert found.tasks["age"].metric == "mae"
    assert found.tasks["age"].scores["linear"] < 15  # years; the mean is 22 off
    gap = found.tasks["ethnicity"].gap
    assert gap is not None
    assert gap.optimal < gap.arbitrary
    written = json.loads((face_run.path / "probe.json").read_text())
    assert written["tasks"]["ethnicity"]["gap"]["gap"] == pytest.approx(gap.gap)


@pytest.mark.slow  # seconds
def test_a_probe_of_the_same_question_is_read_back(face_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    first = probe_run(face_run, Question(("knn",), 30))
    calls: list[str] = []
    features = probing._features

    def counted(*args: object) -> object:
        calls.append("features")
        return features(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(probing, "_features", counted)
    assert probe_run(face_run, Question(("knn",), 30)) == first
    assert not calls
    probe_run(face_run, Question(("knn",), 40))
    assert len(calls) == 2  # both splits
    probe_run(face_run, Question(("knn",), 40), again=True)
    assert len(calls) == 4
    (face_run.path / "probe.json").write_text("{")
    probe_run(face_run, Question(("knn",), 40))
    assert len(calls) == 6


@pytest.mark.slow
def test_a_head_with_batch_norm_has_a_gap_too(faces: Path, tmp_path: Path) -> None:
    found = probe_run(write_run(tmp_path / "run", FACES.format(root=faces, head="mlp")), Question(("knn",)))
    assert found.tasks["ethnicity"].gap is not None


def test_maps_cannot_be_probed(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="segmentation: a target of kind mask"):
        probe_run(write_run(tmp_path / "scenes"))


def test_a_run_without_a_checkpoint(face_run: Run) -> None:
    shutil.rmtree(face_run.path / "checkpoints")
    with pytest.raises(ArtifactError, match="no checkpoint"):
        probe_run(face_run)


@pytest.mark.slow
def test_the_command_prints_a_table_a_task(
    face_run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "probes.json"
    assert main(["probe", str(face_run.path), "--predictors", "knn", "--json", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "faces " in shown  # the run without its seed
    assert "knn ↑" in shown
    assert "gap ↓" in shown
    assert json.loads(out.read_text())[str(face_run.path)]["samples"] == {"train": 60, "val": 20}


def test_too_few_samples_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["probe", "runs/none", "--samples", "3"]) == 2
    assert "--samples 3" in capsys.readouterr().err


@pytest.mark.slow
def test_a_sweep_probes_its_runs_once_and_tells(face_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = SweepConfig(recipe="utkface/small", probe=20, entries={"plain": EntryConfig()})
    finish(face_run, sweep, Console(quiet=True), {})
    monkeypatch.setattr(probing, "_features", None)  # not called again
    finish(face_run, sweep, Console(quiet=True), {})
    age, ethnicity = probed(SweepRuns(finished={"plain": [face_run]}))
    assert [row.label for row in ethnicity.rows] == ["plain"]
    assert age.caption.startswith("age: mae")
