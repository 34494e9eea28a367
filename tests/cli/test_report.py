"""`compactmtl report`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from compactmtl.cli.main import main
from compactmtl.errors import USAGE
from compactmtl.report import write
from compactmtl.train import Run
from tests.support.synthetic_runs import FACE_TASKS, SyntheticRun, make_recipe, write_run
from tests.support.synthetic_verification import scaled
from tests.support.tiny_val import TinySplits


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, SyntheticRun]:
    """Synthetic runs that the command finds by path."""
    made = {
        "dense": write_run(tmp_path / "dense", make_recipe()),
        "compact": write_run(
            tmp_path / "compact", make_recipe(), compacted=True, exported=True, baseline=scaled(1.0)
        ),
        "failed": write_run(tmp_path / "failed", make_recipe(), compacted=True, exported=True, passed=False),
    }
    real: Callable[..., Run] = Run.open
    known = {str(run.path): run for run in made.values()}
    monkeypatch.setattr(Run, "open", lambda path, overrides=(): known.get(str(path)) or real(path, overrides))
    monkeypatch.setattr(write, "ValSplits", TinySplits)
    return made


def test_it_writes_into_the_first_run_s_folder_and_prints_the_table(
    runs: dict[str, SyntheticRun], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = runs["compact"].path
    assert main(["report", str(folder), "--baseline", str(runs["dense"].path)]) == 0
    assert {"report.html", "report.json", "preview.png"} <= {path.name for path in folder.iterdir()}
    printed = capsys.readouterr().out
    assert "segmentation, mIoU" in printed
    assert f"report: {folder / 'report.html'}" in printed
    assert "\x1b" not in printed  # no colors into a pipe


def test_out_is_made_and_the_run_is_left_alone(runs: dict[str, SyntheticRun], tmp_path: Path) -> None:
    before = {path.name for path in runs["dense"].path.iterdir()}
    assert main(["report", str(runs["dense"].path), "--out", str(tmp_path / "a" / "b")]) == 0
    assert (tmp_path / "a" / "b" / "report.html").exists()
    assert {path.name for path in runs["dense"].path.iterdir()} == before


def test_markdown_alone_goes_to_standard_output(
    runs: dict[str, SyntheticRun], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(runs["dense"].path), "--markdown"]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("|  | dense |")
    assert "report:" not in captured.out
    assert "report:" in captured.err


@pytest.mark.slow
def test_latex_alone_goes_to_standard_output(
    runs: dict[str, SyntheticRun], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(runs["compact"].path), "--baseline", str(runs["dense"].path), "--latex"]
    assert main(["report", *arguments]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("% needs") and captured.out.endswith("\\end{tabular}\n")
    assert "report:" in captured.err


def test_seeds_against_single_task_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = [write_run(tmp_path / f"{task}-alone", make_recipe((task,))) for task in FACE_TASKS]
    made += [write_run(tmp_path / f"both-{seed}", make_recipe(FACE_TASKS, seed=seed)) for seed in (0, 1)]
    known = {str(run.path): run for run in made}
    monkeypatch.setattr(Run, "open", lambda path, overrides=(): known[str(path)])
    monkeypatch.setattr(write, "ValSplits", TinySplits)
    out = tmp_path / "out"
    assert main(["report", *known, "--baseline", "single", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "single-task networks" in printed and "scenes/dense, 2 runs" in printed
    assert {"report.html", "report.json", "delta.md", "delta.tex"} <= {path.name for path in out.iterdir()}
    assert "Recipes over their runs" in (out / "report.html").read_text()


def test_a_single_task_baseline_that_is_not_there_exits_2(
    runs: dict[str, SyntheticRun], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(runs["dense"].path), "--baseline", "single"]) == 2
    assert "--task NAME" in capsys.readouterr().err


@pytest.mark.slow
def test_failed_gates_are_told(runs: dict[str, SyntheticRun], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(runs["failed"].path)]) == 0
    assert "1 of 14 gates failed" in capsys.readouterr().err


def test_a_folder_that_is_no_run_exits_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path)]) == 2
    assert "is not a run" in capsys.readouterr().err


def test_an_output_that_is_a_file_exits_2_and_names_it(
    runs: dict[str, SyntheticRun], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert main(["report", str(runs["dense"].path), "--out", str(tmp_path / "file")]) == 2
    assert str(tmp_path / "file") in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--baseline", "dense"], "--baseline"),
        (["--latex"], "--latex"),
        (["--device", "cpu"], "--device"),
        (["data.root=/data"], "key=value"),
    ],
)
def test_bundles_alone_take_no_option_of_runs(
    words: list[str],
    named: str,
    runs: dict[str, SyntheticRun],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bundle = runs["compact"].path / "export/onnxruntime-cpu"
    assert main(["report", str(bundle), "--out", str(tmp_path / "out"), *words]) == USAGE
    assert f"{named} has no meaning for bundles alone" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
