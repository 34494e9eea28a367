"""A fit that is killed at any stage goes on by the same command, and ends as one that was not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from compactmtl.cli.main import main
from compactmtl.errors import GATE, INTERRUPTED, OK, USAGE
from tests.support.layouts.folder import write_folder
from tests.support.own_networks import NETWORKS, RECIPE

TARGET = """
backend: onnxruntime
latency: {warmup: 1, repeats: 3}
"""
FIT = [
    "fit", "own_networks:Shown", "--recipe", "recipe.yaml", "--target", "t.yaml", "--macs-reduction", "0.4",
    "sparsity.selective.min_channels=4", "train.epochs=4",
]  # fmt: skip
RUN, DENSE = Path("runs/own_networks/t-macs-0.4"), Path("runs/own_networks/dense")

# A fit for each kill, in a process that kills itself at the COUNTth call of a function. They are forked from one that has
# imported what takes seconds, and has run nothing.
KILLED = """
import importlib, json, os, signal, sys, traceback
import compactmtl.fit, compactmtl.report
from compactmtl.cli.main import main

def patched(module, name, count):
    *path, last = name.split(".")
    home, calls = importlib.import_module(module), []
    for one in path:
        home = getattr(home, one)
    former = getattr(home, last)

    def counted(*args, **kwargs):
        calls.append(last)
        if len(calls) == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return former(*args, **kwargs)

    setattr(home, last, counted)

for module, name, count in json.loads(sys.argv[1]):
    pid = os.fork()
    if not pid:
        try:
            patched(module, name, count)
            code = main(sys.argv[2:])
        except BaseException:
            traceback.print_exc()
            code = 1
        os._exit(code)
    print(name, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True, file=sys.stderr)
"""
# In the order of the road: in mid-training, where checkpoints are written, and then each stage's beginning, its middle, and its end
# before it is noted.
KILLS = (
    ("compactmtl.train.loop", "save_last", 3),  # of the dense network's second epoch
    (
        "compactmtl.train.loop",
        "save_last",
        4,
    ),  # the two epochs that were left of it, then one of the shrunk one's
    ("compactmtl.train.loop", "Tracker.end", 1),  # of the shrunk one
    ("compactmtl.runs.compaction", "save_compact", 1),
    ("compactmtl.surgery.artifact", "write_hashed", 1),
    ("compactmtl.fit.stages", "_State.note", 2),  # of compact; the first is of the code
    ("compactmtl.export.verified", "write_bundle", 1),
    ("compactmtl.export.verified", "write_verification", 1),
    ("compactmtl.fit.stages", "_State.note", 2),  # of export
    ("compactmtl.fit.stages", "write_collected", 1),
    ("compactmtl.report.write", "write_text", 2),  # report.json is there, and no page
    ("compactmtl.fit.stages", "_State.note", 2),  # of report
)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "own_networks.py").write_text(NETWORKS)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    (tmp_path / "t.yaml").write_text(TARGET)
    path = list(sys.path)
    yield tmp_path
    sys.path[:] = path
    sys.modules.pop("own_networks", None)


def results(folder: Path) -> dict[str, bytes]:
    """What the weights, the plan and the exported model came to."""
    names = [
        DENSE / "checkpoints/best/weights.safetensors",
        RUN / "checkpoints/last/weights.safetensors",
        RUN / "checkpoints/best/weights.safetensors",
        RUN / "compact/weights.safetensors",
        RUN / "compact/plan.json",
    ]
    return {str(name): (folder / name).read_bytes() for name in names}


@pytest.mark.slow
@pytest.mark.timeout(600)  # twelve commands that are killed, on a machine that is busy
def test_a_killed_fit_ends_bit_equal(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), str(place)])}
    done = subprocess.run(
        [sys.executable, "-c", KILLED, json.dumps(KILLS), *FIT, "--out", "killed"],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    said = done.stderr.splitlines()
    for _, name, _ in KILLS:
        assert f"{name} {-signal.SIGKILL}" in said, (name, done.stdout, done.stderr)
    assert sum(line.endswith(f" {-signal.SIGKILL}") for line in said) == len(KILLS), said
    assert main([*FIT, "--out", "killed"]) == OK
    told = capsys.readouterr().out
    assert "dense: killed/own_networks/dense is finished" in told
    assert "shrink: killed/own_networks/t-macs-0.4 is finished" in told
    assert main(FIT) == OK
    killed = place / "moved"
    killed.mkdir()
    (place / "killed").rename(killed / "runs")
    assert results(killed) == results(place)


@pytest.mark.parametrize(
    ("words", "hint"), [([], "command again to"), (["--overwrite"], "without --overwrite")]
)
def test_ctrl_c_outside_of_training_says_how_to_go_on(
    words: list[str],
    hint: str,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("compactmtl.fit.stages._Walk._measure", stop)
    assert main([*FIT, *words]) == INTERRUPTED
    told = capsys.readouterr().err
    assert "interrupted" in told and hint in told


@pytest.mark.slow
def test_a_finished_stage_is_not_run_again(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(FIT) == OK
    first = {path: path.stat().st_mtime_ns for path in RUN.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert main(FIT) == OK
    told = capsys.readouterr().out
    assert told.count("is finished") == 5
    assert "mac_reduction 0.4: met" in told
    assert {path: path.stat().st_mtime_ns for path in RUN.rglob("*") if path.is_file()} == first
    # What changed is made again, and what is made of it.
    (RUN / "compact/plan.json").write_text("{}")
    assert main(FIT) == OK
    told = capsys.readouterr().out
    assert "compact: removing" in told and told.count("is finished") == 4  # to the same weights
    Path("t.yaml").write_text(TARGET + "onnx: {opset: 19}\n")
    assert main(FIT) == OK
    told = capsys.readouterr().out
    assert told.count("is finished") == 3
    # Another recipe is not trained over a run without a word.
    assert main([*FIT, "train.optimizer.lr=0.1"]) == USAGE
    assert "--overwrite" in capsys.readouterr().err
    # Changed code is told.
    Path("own_networks.py").write_text(NETWORKS + "\n# changed\n")
    assert main(FIT) == OK
    assert "own_networks.py has changed" in capsys.readouterr().out


@pytest.mark.slow
def test_a_failed_gate_fails_the_command_after_its_report(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("t.yaml").write_text(TARGET + "max_megabytes: 0.001\n")
    assert main([*FIT, "--no-dense"]) == GATE
    told = capsys.readouterr()
    assert "over 0.001 MB" in told.err and "marked as failed" in told.err
    assert (RUN / "report.html").is_file() and not DENSE.exists()
    assert json.loads((RUN / "export/t/verification.json").read_text())["passed"] is False
    # It is measured again by the same command.
    Path("t.yaml").write_text(TARGET)
    assert main([*FIT, "--no-dense"]) == OK


def test_what_cannot_be_is_refused_before_anything_is_trained(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, message in (
        (["sparsity.selective.min_channels=64"], "--macs-reduction 0.4 cannot be reached"),
        (["sparsity.selective.min_channels=64"], "lower --macs-reduction, or"),
        (["model.options.widht=3"], "did you mean width?"),
    ):
        assert main([*FIT, *words]) == USAGE
        assert message in capsys.readouterr().err
    assert not Path("runs").exists()


@pytest.mark.slow
def test_a_finished_run_is_read_where_its_data_is_now(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The data moves after training: what is made again reads it at the place that the command names."""
    write_folder(place / "first", count=12, split=True)
    Path("faces.yaml").write_text(
        "data: {name: folder, size: [32, 48], batch_size: 4, workers: 1, cache: disk}\n"
        "tasks: {depth: {kind: depth, head: {kind: fcn, width: 8}}}\n"
        "model: {encoder: {name: resnet10t, options: {channels: [16, 16, 24, 32], stem_width: 16}}}\n"
        "train: {epochs: 2, threads: 1}\nsurgery: {align: 1}\n"
    )
    words = ["fit", "faces.yaml", "--target", "t.yaml", "--macs-reduction", "0.3"]
    words += ["sparsity.selective.min_channels=4"]
    assert main([*words, "data.root=first"]) == OK
    (place / "first").rename(place / "second place")
    Path("t.yaml").write_text(TARGET + "onnx: {opset: 19}\n")
    capsys.readouterr()
    assert main([*words, "data.root=second place", "data.workers=0"]) == OK
    told = capsys.readouterr().out
    assert "dense: runs/faces/dense is finished" in told and "export: t\n" in told
