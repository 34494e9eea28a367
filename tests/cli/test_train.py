"""`train` and `compact` as a user types them: what they print, leave behind, and say when they can't."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from compactmtl.cli.compact import table
from compactmtl.cli.main import main

HERE = Path(__file__).parent
TINY = str(HERE.parent / "train" / "tiny.yaml")
EVERYTHING = str(HERE.parent / "train" / "everything.yaml")

Failing = Callable[..., tuple[int, str]]


@pytest.fixture
def failing(capsys: pytest.CaptureFixture[str]) -> Failing:
    """failing(*words) -> exit code and what stderr says; checks that there is a mend and no traceback."""

    def call(*words: str) -> tuple[int, str]:
        capsys.readouterr()
        code = main(list(words))
        error = capsys.readouterr().err
        assert error.startswith("error: ") and "Traceback" not in error
        assert len(error.strip().splitlines()) > 1, "an error says how to mend it"
        return code, error

    return call


@pytest.mark.slow  # seconds
def test_train_compact_and_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], failing: Failing
) -> None:
    out = str(tmp_path / "runs")
    assert main(["train", EVERYTHING, "--out", out]) == 0
    printed = capsys.readouterr().out
    run = tmp_path / "runs" / "everything"
    assert "epoch 1/3" in printed and "epoch 3/3" in printed and "images/s" in printed
    assert f"next: compactmtl compact {run}" in printed

    assert main(["compact", str(run), "--evaluate"]) == 0
    printed = capsys.readouterr().out
    surgery = json.loads((run / "compact" / "surgery.json").read_text())
    assert f"{surgery['macs']['before']:,}" in printed and f"{surgery['macs']['after']:,}" in printed
    assert "proof: largest difference" in printed
    assert "segmentation miou" in printed and "(difference " in printed
    assert f"next: compactmtl export {run}" in printed

    code, error = failing("train", EVERYTHING, "--out", out)
    assert code == 2 and "holds a run already" in error and "--resume" in error
    assert main(["train", EVERYTHING, "--out", out, "--resume"]) == 0
    assert "nothing to resume" in capsys.readouterr().out
    code, error = failing("train", EVERYTHING, "seed=1", "--out", out, "--resume")
    assert code == 2 and "seed: 0 and 1" in error
    code, error = failing("compact", str(run), "--align", "0")
    assert code == 2 and "--align 0" in error


def test_one_task_alone_in_two_smoke_steps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path)
    assert main(["train", TINY, "--task", "depth", "--smoke", "--out", out]) == 0
    run = tmp_path / "tiny-depth-smoke"
    assert f"run: {run}" in capsys.readouterr().out
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    (epoch,) = [line for line in log if line["event"] == "epoch"]
    assert epoch["step"] == 2
    assert list(epoch["val"]) == ["depth"]


def test_a_dry_run_says_what_training_takes_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", TINY, "train.epochs=2", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    for line in ("input", "output depth", "parameters", "MACs", "memory", "step", "8 (4 an epoch)"):
        assert line in printed
    assert "4 × 11 × 32 × 48" in printed
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train", "scenes/compat"], "scenes/compact"),
        (["train", TINY, "train.epoch=3"], "epochs"),
        (["train", TINY, "train.epochs=many"], "train.epochs"),
        (["train", TINY, "tasks.pose.kind=depth"], "pose"),
        (["train", TINY, "--resume", "--overwrite"], "exclude"),
        (["train", "utkface/dense", "data.root=nowhere"], "nowhere"),
        (["compact", "nowhere"], "nowhere is not a run"),
    ],
)
def test_user_errors_exit_2_with_a_mend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: Failing, words: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, error = failing(*words)
    assert code == 2
    assert said in error
    assert not (tmp_path / "runs").exists()


def test_a_missing_device_exits_3(tmp_path: Path, failing: Failing) -> None:
    code, error = failing("train", TINY, "train.device=cuda:99", "--out", str(tmp_path))
    assert code == 3 and "cuda:99" in error


def test_an_empty_data_set_exits_2(tmp_path: Path, failing: Failing) -> None:
    (tmp_path / "UTKFace" / "train").mkdir(parents=True)
    code, error = failing("train", "utkface/small", f"data.root={tmp_path}", "--out", str(tmp_path / "runs"))
    assert code == 2 and str(tmp_path) in error


@pytest.mark.parametrize("out", ["/proc/runs", "/dev/null/runs"])
def test_an_output_folder_that_cannot_be_written_is_named(failing: Failing, out: str) -> None:
    """/proc refuses new folders even to root, and /dev/null is no folder."""
    code, error = failing("train", TINY, "--out", out)
    assert code == 2 and out.rpartition("/")[0] in error


Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start() -> Iterator[Start]:
    """start(*words, limit=None): the command in a process of its own, which ends with the test.

    `limit` is the largest file in bytes that it may write: more is an error, as on a full disk.
    """
    with ExitStack() as stack:

        def begin(*words: str, limit: int | None = None) -> subprocess.Popen[str]:
            def restrict() -> None:
                if limit is not None:
                    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

            process = subprocess.Popen(
                [sys.executable, "-m", "compactmtl", *words],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                preexec_fn=restrict,
                env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            return process

        yield begin


def wait_for_epochs(process: subprocess.Popen[str], log: Path, count: int) -> None:
    while not log.exists() or log.read_text().count('"event": "epoch"') < count:
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_saves_says_how_to_go_on_and_exits_130(
    tmp_path: Path, start: Start, number: signal.Signals
) -> None:
    words = ("train", TINY, "train.epochs=5000", "--out", str(tmp_path))
    log = tmp_path / "tiny" / "log.jsonl"
    process = start(*words)
    wait_for_epochs(process, log, 1)
    process.send_signal(number)
    _, error = process.communicate()
    assert process.returncode == 130
    assert "interrupted in epoch" in error and "--resume" in error and "Traceback" not in error
    assert (tmp_path / "tiny" / "checkpoints" / "last" / "state.pt").exists()

    epochs = log.read_text().count('"event": "epoch"')
    process = start(*words, "--resume")
    wait_for_epochs(process, log, epochs + 1)
    process.send_signal(number)
    output, _ = process.communicate()
    assert process.returncode == 130
    assert f"resuming in epoch {epochs + 1}" in output


@pytest.mark.slow
def test_a_full_disk_exits_2_naming_the_path_and_loses_nothing(tmp_path: Path, start: Start) -> None:
    process = start("train", TINY, "train.max_steps=4", "--out", str(tmp_path))
    assert process.wait() == 0
    # the weights fit, the larger state of the optimizer does not
    weights = (tmp_path / "tiny" / "checkpoints" / "last" / "weights.safetensors").stat().st_size
    process = start("train", TINY, "--out", str(tmp_path), "--name", "full", limit=weights + 1000)
    _, error = process.communicate()
    assert process.returncode == 2
    assert error.startswith("error: ") and "Traceback" not in error
    checkpoints = tmp_path / "full" / "checkpoints"
    assert str(checkpoints) in error
    assert (checkpoints / "best" / "weights.safetensors").stat().st_size == weights
    assert start("train", TINY, "--out", str(tmp_path), "--name", "full", "--resume").wait() == 0


@pytest.mark.parametrize("key", ["not_pruned", "kept_whole"])  # the second in files of earlier versions
def test_the_table_says_when_nothing_could_go(key: str) -> None:
    surgery = {
        "parameters": {"before": 10, "after": 10},
        "macs": {"before": 100, "after": 100},
        "layers": [
            {
                "name": "a",
                "type": "conv",
                "before": [4, 3],
                "after": [4, 3],
                "macs": {"before": 100, "after": 100},
            }
        ],
        "proof": {"max_relative_error": 0.0, "tolerance": 1e-4, "dtype": "float64", "cases": []},
        key: [{"name": "b", "reason": "no rule for aten.foo"}],
        "seconds": 0.1,
    }
    printed = table(surgery)
    assert "no channel could be removed" in printed
    assert "b: no rule for aten.foo" in printed
