"""Under torchrun: a process that is killed ends the training with the reason, which then goes on; what is refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from compactmtl.cli.main import main
from compactmtl.distributed.environment import processes
from compactmtl.distributed.launch import launched
from compactmtl.errors import ConfigError

RECIPE = Path(__file__).parents[1] / "train" / "together.yaml"
SECONDS = 200


def command(folder: Path, *options: str) -> list[str]:
    run = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "compactmtl"]
    words = ["train", str(RECIPE), "train.epochs=8", "--out", str(folder), "--name", "run", *options]
    return [sys.executable, *run, *words]


def children(pid: int) -> list[int]:
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def rank_of(pid: int) -> str | None:
    environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return next((one.decode().partition("=")[2] for one in environment if one.startswith(b"RANK=")), None)


def epochs(folder: Path) -> list[int]:
    log = folder / "run" / "log.jsonl"
    events = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    return [event["epoch"] for event in events if event["event"] == "epoch"]


@pytest.mark.slow
@pytest.mark.timeout(2 * SECONDS + 60)
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds the processes in /proc")
def test_a_killed_process_ends_all_with_the_reason_and_they_go_on(tmp_path: Path) -> None:
    started = subprocess.Popen(
        command(tmp_path), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    deadline = time.monotonic() + SECONDS
    while not epochs(tmp_path) and started.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    assert started.poll() is None, started.stderr.read() if started.stderr else ""
    (victim,) = [pid for pid in children(started.pid) if rank_of(pid) == "1"]
    os.kill(victim, signal.SIGKILL)
    _, said = started.communicate(timeout=SECONDS)
    assert started.returncode != 0
    assert "error: process 0 of 2 stops: another one has ended or no longer answers" in said
    assert "SIGKILL" in said  # torchrun's
    before = epochs(tmp_path)
    assert before and max(before) < 8
    resumed = subprocess.run(
        command(tmp_path, "--resume"), capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert resumed.returncode == 0, resumed.stderr
    assert resumed.stdout.count("run: ") == 1
    assert epochs(tmp_path) == list(range(1, 9))


def place(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {
        "RANK": "0",
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "1",
    }
    for name, value in given.items():
        monkeypatch.setenv(name, value)


def test_other_commands_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert processes({"WORLD_SIZE": "4"}) == 1  # not torchrun's
    place(monkeypatch)
    assert main(["targets", "list"]) == 2
    assert "`compactmtl targets` runs in one process, and torchrun started 2" in capsys.readouterr().err
    assert main(["train", str(RECIPE), "--dry-run"]) == 2
    assert "`compactmtl train --dry-run` runs in one process" in capsys.readouterr().err


@pytest.mark.parametrize("device", ["cuda:1", "mps"])
def test_a_device_that_processes_cannot_share(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    place(monkeypatch)
    with pytest.raises(ConfigError, match=f"{device} cannot be shared by 2 processes"), launched(device):
        pass


def test_without_torchrun_nothing_is_started() -> None:
    with launched("mps"):
        pass
