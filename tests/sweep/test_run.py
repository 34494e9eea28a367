"""A sweep trains what is missing, goes on where it stopped, and loses no run to another's failure."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import Tensor

from compactmtl.cli.main import main
from compactmtl.config import SweepConfig, resolve_sweep
from compactmtl.errors import ArtifactError, ConfigError, MissingDependencyError, SurgeryError
from compactmtl.sweep import Failure, collect_runs, exit_code, plan_jobs, run_sweep, write_table
from compactmtl.sweep import run as sweep_module
from compactmtl.train import Run, TrainingInterrupted
from compactmtl.train.session import Session

TINY = Path(__file__).parents[1] / "train" / "tiny.yaml"
SWEEP = """
recipe: {tiny}
baseline: plain
seeds: [0, 1]
overrides: [train.epochs=1, train.max_steps=2, data.holdout=0.3, data.select_on=holdout]
entries:
  plain: {{}}
  ours: {{overrides: [overparam.kind=svd, overparam.training=alternating]}}
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "mine.yaml"
    found.write_text(SWEEP.format(tiny=TINY), "utf-8")
    return found


def quiet() -> Console:
    return Console(file=io.StringIO(), width=200)


def written(out: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in out.rglob("weights.safetensors")}


@pytest.mark.slow
def test_the_same_command_goes_on_and_writes_the_tables(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "runs"
    command = ["sweep", str(path), "--out", str(out)]
    update, steps = Session.update, []

    def signalling(self: Session, loss: Tensor) -> None:
        update(self, loss)
        steps.append(1)
        if len(steps) == 3:  # in the second run
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patched:
        patched.setattr(Session, "update", signalling)
        assert main(command) == 130
    assert "give the same command again" in capsys.readouterr().err
    early = (out / "sweep.md").read_text()
    assert "ours: no finished run of seed 0, 1" in early
    first = written(out / "plain" / "seed0")
    assert main(command) == 0
    assert written(out / "plain" / "seed0") == first  # finished: left alone
    text = (out / "sweep.md").read_text()
    assert "| plain, 2 runs |" in text and "| ours, 2 runs |" in text
    assert "/2) |" in text and "difference to plain with the same seed" in text
    assert "no finished run" not in text
    report = json.loads((out / "sweep.json").read_text())
    assert [row["label"] for row in report["sweep"]["paired"]] == ["ours"]
    assert (out / "report.html").exists()
    runs = [Run.open(out / entry / f"seed{seed}") for entry in ("plain", "ours") for seed in (0, 1)]
    assert all(run.val and run.val != run.best for run in runs)  # of val, and of the held-out part
    capsys.readouterr()
    assert main([*command, "--table"]) == 0
    assert "ours" in capsys.readouterr().out


def test_an_entry_that_cannot_be_built_stops_the_sweep_before_it_begins(path: Path, tmp_path: Path) -> None:
    path.write_text(
        path.read_text() + "  wrong: {overrides: [overparam.kind=svd, overparam.rank=5000]}\n", "utf-8"
    )
    sweep = resolve_sweep(path).sweep
    with pytest.raises(ConfigError, match="entry wrong: rank 5000 is out of range"):
        run_sweep(sweep, plan_jobs(sweep, tmp_path / "runs"), quiet())
    assert not (tmp_path / "runs").exists()


def taught_by(path: Path, teacher: Path) -> SweepConfig:
    """The sweep, whose second entry learns from a run."""
    words = f"[\"distillation={{teacher: '{teacher}', start: 0.0}}\"]"
    found = path.with_name("taught.yaml")
    text = path.read_text("utf-8")
    found.write_text(text.replace("[overparam.kind=svd, overparam.training=alternating]", words), "utf-8")
    return resolve_sweep(str(found)).sweep


@pytest.mark.slow  # seconds
def test_an_entry_learns_from_a_run_of_the_same_sweep(path: Path, tmp_path: Path) -> None:
    out = tmp_path / "runs"
    sweep = taught_by(path, out / "plain" / "seed{seed}")
    assert run_sweep(sweep, plan_jobs(sweep, out), quiet()) == {}
    for seed in (0, 1):
        teachers = json.loads((out / "ours" / f"seed{seed}" / "meta.json").read_text())["teachers"]
        assert [one["path"] for one in teachers] == [str((out / "plain" / f"seed{seed}").resolve())]


def test_a_teacher_that_the_sweep_does_not_train_before_stops_it(path: Path, tmp_path: Path) -> None:
    out = tmp_path / "runs"
    elsewhere = taught_by(path, tmp_path / "elsewhere")
    with pytest.raises(ArtifactError, match=r"^entry ours: .*elsewhere is not a run"):
        run_sweep(elsewhere, plan_jobs(elsewhere, out), quiet())
    sweep = taught_by(path, out / "plain" / "seed{seed}")
    with pytest.raises(ArtifactError, match=r"^entry ours: .*seed0 is not a run"):
        run_sweep(sweep, plan_jobs(sweep, out, only=["ours"]), quiet())
    assert not out.exists()


@pytest.mark.slow  # seconds
def test_a_failed_run_leaves_the_others(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = resolve_sweep(path).sweep
    jobs = plan_jobs(sweep, tmp_path / "runs", seeds=[0])
    forward = Session.forward

    def spoiled(self: Session, batch: object) -> object:
        losses, total = forward(self, batch)  # type: ignore[arg-type]
        if self.recipe.overparam is None:
            losses["depth"] = losses["depth"] * torch.nan
        return losses, total

    monkeypatch.setattr(Session, "forward", spoiled)
    failed = run_sweep(sweep, jobs, quiet())
    assert list(failed) == [str(tmp_path / "runs" / "plain" / "seed0")]
    runs = collect_runs(sweep, jobs)
    assert list(runs.finished) == ["ours"] and runs.missing == {"plain": [0]}
    runs.failed = {path: failure.reason for path, failure in failed.items()}
    report = write_table("mine", "", "compactmtl sweep mine", runs, sweep.baseline, tmp_path / "runs")
    assert report is not None and report.sweep is not None and report.sweep.baseline is None
    assert "failed: the loss of task 'depth' is nan" in (tmp_path / "runs" / "sweep.md").read_text()


@pytest.mark.slow
def test_runs_made_elsewhere_join_the_table(path: Path, tmp_path: Path) -> None:
    out = tmp_path / "runs"
    sweep = resolve_sweep(path).sweep
    run_sweep(sweep, plan_jobs(sweep, out, only=["plain"], seeds=[0]), quiet())
    other = plan_jobs(sweep, out, ["train.optimizer.lr=0.5"], only=["plain"], seeds=[0, 0])
    assert len(other) == 1
    with pytest.raises(ConfigError, match="trained with another recipe"):
        collect_runs(sweep, other)
    path.write_text(
        SWEEP.format(tiny=TINY).partition("entries:")[0]
        + f"entries:\n  plain: {{}}\n  other: {{runs: ['{out}/plain/seed*']}}\n",
        "utf-8",
    )
    sweep = resolve_sweep(path).sweep
    runs = collect_runs(sweep, plan_jobs(sweep, tmp_path / "new", seeds=[0]))
    assert [run.path for run in runs.finished["other"]] == [out / "plain" / "seed0"]
    assert runs.missing == {"plain": [0]}


def test_an_unfinished_run_from_elsewhere_is_an_error(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = resolve_sweep(path).sweep
    update: Callable[[Session, Tensor], None] = Session.update

    def signalling(self: Session, loss: Tensor) -> None:
        update(self, loss)
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Session, "update", signalling)
    with pytest.raises(TrainingInterrupted):
        run_sweep(sweep, plan_jobs(sweep, tmp_path / "runs", only=["plain"], seeds=[0]), quiet())
    path.write_text(f"entries:\n  other: {{runs: ['{tmp_path}/runs/plain/seed0']}}\n", "utf-8")
    with pytest.raises(ArtifactError, match="has not finished"):
        collect_runs(resolve_sweep(path).sweep, [])


def test_a_list_a_plan_and_a_missing_name(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", "--list"]) == 0
    assert "utkface/overparam" in capsys.readouterr().out
    assert main(["sweep", str(path), "--dry-run", "--out", "somewhere"]) == 0
    assert "somewhere/ours/seed1" in capsys.readouterr().out
    assert not Path("somewhere").exists()
    assert main(["sweep"]) == 2
    assert "no sweep is named" in capsys.readouterr().err


def failing(*_: object, **__: object) -> None:
    raise SurgeryError("the network cannot be traced", "mend it")


def a_bug(*_: object, **__: object) -> None:
    raise ZeroDivisionError("division by zero")


@pytest.mark.slow
@pytest.mark.parametrize(("fault", "code"), [(failing, 2), (a_bug, 1)])
def test_a_failing_compaction_ends_neither_the_sweep_nor_its_table(
    path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    fault: Callable[..., None],
    code: int,
) -> None:
    path.write_text("compact: true\ntargets: [onnxruntime-cpu]\n" + path.read_text(), "utf-8")
    monkeypatch.setattr("compactmtl.sweep.run.compact_run", fault)
    exported: list[object] = []
    monkeypatch.setattr("compactmtl.sweep.run.export_run", lambda *args: exported.append(args))
    out = tmp_path / "runs"
    assert main(["sweep", str(path), "--out", str(out), "--seeds", "0"]) == code
    assert all(Run.open(out / entry / "seed0").finished for entry in ("plain", "ours"))
    assert exported == []  # a bundle would be of the model that was not compacted
    table = (out / "sweep.md").read_text()
    for entry in ("plain", "ours"):
        assert f"{out}/{entry}/seed0 compact failed: " in table
    error = capsys.readouterr().err
    assert ("Traceback" in error) == (code == 1)


@pytest.mark.slow
def test_an_export_that_fails_or_misses_its_gates_is_told_at_the_end(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path.write_text(
        path.read_text().replace(
            "seeds: [0, 1]", "seeds: [0]\ntargets: [onnxruntime-cpu, onnxruntime-cpu-int8]"
        ),
        "utf-8",
    )

    def export(run: Run, name: str, target: object) -> object:
        if name == "onnxruntime-cpu" and run.path.parent.name == "plain":
            raise MissingDependencyError("no such backend here", "install it")
        return type("Verification", (), {"passed": run.path.parent.name != "ours"})

    monkeypatch.setattr("compactmtl.sweep.run.export_run", export)
    out = tmp_path / "runs"
    sweep = resolve_sweep(path).sweep
    failed = run_sweep(sweep, plan_jobs(sweep, out), quiet())
    assert {name.removeprefix(str(out)): failure.code for name, failure in failed.items()} == {
        "/plain/seed0 export onnxruntime-cpu": 3,
        "/ours/seed0 export onnxruntime-cpu": 4,
        "/ours/seed0 export onnxruntime-cpu-int8": 4,
    }
    assert exit_code(failed) == 3
    assert exit_code({"gates alone": Failure("", 4)}) == 4
    assert exit_code({"a": Failure("", 4), "b": Failure("", 1), "c": Failure("", 2)}) == 1
    assert exit_code({}) == 0


@pytest.mark.slow
def test_runs_of_other_overrides_stop_the_sweep_with_advice_that_it_has(path: Path, tmp_path: Path) -> None:
    out = tmp_path / "runs"
    sweep = resolve_sweep(path).sweep
    run_sweep(sweep, plan_jobs(sweep, out, only=["plain"], seeds=[0]), quiet())
    other = plan_jobs(sweep, out, ["train.optimizer.lr=0.5"])
    with pytest.raises(ConfigError, match="trained with another recipe") as caught:
        run_sweep(sweep, other, quiet())
    assert "--out" in caught.value.hint and "--name" not in caught.value.hint
    assert not (out / "ours").exists()


HOLD = """
import sys
from compactmtl.artifacts.lock import writing
with writing(sys.argv[1], "train"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.slow
def test_a_run_that_another_process_holds_is_come_back_to(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("compactmtl.sweep.run.POLL", 0.05)
    out = tmp_path / "runs"
    sweep = resolve_sweep(path).sweep
    jobs = plan_jobs(sweep, out, only=["plain"])
    console = quiet()
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(jobs[0].path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None and holder.stdin is not None
        holder.stdout.readline()
        waits = sweep_module.wait_for

        def killed_meanwhile(count: int) -> None:
            holder.kill()
            waits(count)

        monkeypatch.setattr(sweep_module, "wait_for", killed_meanwhile)
        assert run_sweep(sweep, jobs, console) == {}
    assert all(Run.open(job.path).finished for job in jobs)
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert f"[1/2] left for later: {jobs[0].path} is being written by process {holder.pid}" in said
    assert said.index("left for later") < said.index(f"[2/2] {jobs[1].path}") < said.index("[1/2] waiting: ")
    assert said.index("[1/2] waiting: ") < said.rindex(f"[1/2] {jobs[0].path}\n")
