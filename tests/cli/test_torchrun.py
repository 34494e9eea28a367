"""Under torchrun: a process that is killed ends the training with the reason, which then goes on; what is refused."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from compactmtl.cli.main import main
from compactmtl.distributed.environment import processes, tell_torchrun
from compactmtl.distributed.launch import launched
from compactmtl.distributed.peers import first_ended, telling
from compactmtl.distributed.processes import reached
from compactmtl.errors import ConfigError, DataError, MachineError
from tests.support.layouts.folder import write_folder

RECIPE = Path(__file__).parents[1] / "train" / "together.yaml"
SECONDS = 200


def command(folder: Path, *options: str, recipe: Path = RECIPE) -> list[str]:
    run = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "compactmtl"]
    words = ["train", str(recipe), "train.epochs=8", "--out", str(folder), "--name", "run", *options]
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


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 60)
def test_the_process_that_fails_says_why_and_so_do_the_others_and_torchrun(tmp_path: Path) -> None:
    """An image that one process meets, the other does not."""
    folder = write_folder(tmp_path / "data", count=48, size=(32, 48), split=True)
    damaged = folder / "images" / "train" / "030.jpg"  # not of the first, at which all look before they train
    damaged.write_bytes(damaged.read_bytes()[:200])
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"data: {{name: folder, root: {folder}, size: [32, 48], batch_size: 12, cache: none}}\n"
        "tasks: {depth: {kind: depth, head: {kind: fcn, width: 8}}}\n"
        "model: {encoder: {name: resnet10t, options: {channels: [16, 16, 24, 32], stem_width: 16}}}\n"
        "train: {epochs: 2, threads: 1, channels_last: false}\n"
    )
    ended = subprocess.run(
        command(tmp_path, recipe=recipe), capture_output=True, text=True, timeout=SECONDS, check=False
    )
    said = ended.stderr
    assert ended.returncode != 0
    assert f"error: {damaged}: not a whole image" in said
    other = re.search(r"error: process (\d) of 2 stops because process (\d) on \S+ did: (\S+):", said)
    assert other is not None, said
    assert {other[1], other[2]} == {"0", "1"}
    assert other[3] == str(damaged)
    root = said.partition("Root Cause (first observed failure)")[2]
    assert re.search(r"rank +: (\d)", root)[1] == other[2], said  # type: ignore[index]
    assert f"{damaged}: not a whole image" in root


def test_a_process_that_only_follows_ends_after_the_one_at_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchrun's root cause is the one with the earliest time, in whole seconds; of those without a file that of its look."""
    place(monkeypatch)
    waited: list[float] = []
    monkeypatch.setattr("compactmtl.distributed.environment.time.sleep", waited.append)
    times = {}
    for name, second_hand in (("fault", False), ("follows", True)):
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / name))
        tell_torchrun("a reason", second_hand=second_hand)
        failure = ProcessFailure(local_rank=0, pid=1, exitcode=2, error_file=str(tmp_path / name))
        assert "a reason" in ChildFailedError(name, {0: failure}).format_msg()  # type: ignore[no-untyped-call]
        times[name] = failure.timestamp
    assert waited[0] == 0 and waited[1] >= 2
    assert times["follows"] - times["fault"] >= 2


class Store:
    """A store of torch's, of one process."""

    def __init__(self) -> None:
        self._values: dict[str, bytes] = {}

    def check(self, keys: list[str], /) -> bool:
        return all(key in self._values for key in keys)

    def get(self, key: str, /) -> bytes:
        return self._values[key]

    def compare_set(self, key: str, expected: str, desired: str, /) -> bytes:
        if self._values.get(key, b"").decode() == expected:
            self._values[key] = desired.encode()
        return self._values[key]


def test_what_a_process_says_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store()
    with pytest.raises(DataError), telling(store, 1):
        raise DataError("a.jpg: not a whole image")
    with pytest.raises(ConfigError), telling(store, 3):
        raise ConfigError("later")
    with pytest.raises(MachineError) as caught, telling(store, 0), reached():
        raise RuntimeError("Connection closed by peer")
    assert "because process 1 on " in caught.value.message
    assert caught.value.message.endswith("did: a.jpg: not a whole image")
    assert caught.value.second_hand
    with pytest.raises(MachineError, match="another one has ended") as unknown, reached():
        raise RuntimeError("Connection closed by peer")
    assert unknown.value.second_hand


def test_who_follows_does_not_pass_for_the_first() -> None:
    store = Store()
    with pytest.raises(MachineError), telling(store, 0), reached():
        raise RuntimeError("Connection closed by peer")
    with telling(store, 1):
        assert first_ended() is None


def test_a_store_that_hangs_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """It lay on a machine that fell silent."""
    done = threading.Event()

    class Silent(Store):
        def check(self, keys: list[str], /) -> bool:
            return not done.wait(20)

    monkeypatch.setattr("compactmtl.distributed.peers._PATIENCE", 0.05)
    with telling(Silent(), 0):
        start = time.monotonic()
        assert first_ended() is None
        assert time.monotonic() - start < 10
    done.set()


def test_a_loader_s_death_is_no_other_process_s() -> None:
    """torch raises it in whatever the process is doing."""
    with pytest.raises(RuntimeError, match="DataLoader worker"), reached():
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")


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
