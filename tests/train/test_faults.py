"""What the machine or the recipe is at fault for is said so; a bug of ours stays one."""

from __future__ import annotations

import io
import itertools
import multiprocessing
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from compactmtl.artifacts.lock import writing
from compactmtl.cli.main import main
from compactmtl.config import Resolved
from compactmtl.data.loader import BatchView
from compactmtl.errors import ConfigError, MachineError, machine_fault
from compactmtl.train import dry_run, train
from compactmtl.train.session import Session
from tests.support.interrupting import trained_in_two_parts

Make = Callable[..., Resolved]
ONE_PIXEL = ("data.batch_size=1", "data.size=[16,16]", "model.encoder.output_stride=32")


def start_training(resolved: Resolved, folder: Path) -> None:
    train(resolved, folder, console=Console(quiet=True))


def start_nothing(resolved: Resolved, folder: Path) -> None:
    dry_run(resolved.recipe)


@pytest.mark.parametrize("start", [start_training, start_nothing])
def test_statistics_of_one_value_name_the_layer_and_both_mends(
    tmp_path: Path, tiny: Make, start: Callable[[Resolved, Path], None]
) -> None:
    resolved = tiny(*ONE_PIXEL)
    with pytest.raises(
        ConfigError, match=r"the layer encoder\.\S+ normalizes by .* one value per channel"
    ) as caught:
        start(resolved, tmp_path / "run")
    assert caught.value.exit_code == 2
    assert "data.batch_size, which is 1" in caught.value.hint and "data.size" in caught.value.hint


@pytest.mark.slow
def test_a_last_batch_of_one_is_left_out(tmp_path: Path, tiny: Make) -> None:
    """13 samples in fours: the thirteenth would be alone."""
    words = ("data.size=[16,16]", "model.encoder.output_stride=32", "train.epochs=1", "data.options.train=13")
    run = train(tiny(*words), tmp_path / "run", console=Console(quiet=True))
    assert run.log()[1]["step"] == 3


@pytest.mark.parametrize(
    ("error", "says", "mend"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total"),
            "2.00 GiB",
            "batch",
        ),
        (
            RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"),
            "device's memory",
            "batch",
        ),
        (
            RuntimeError(
                "[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory: you"
            ),
            "machine's memory is full",
            "batch",
        ),
        (MemoryError(), "machine's memory is full: MemoryError", "data.workers"),
        (OSError(12, "Cannot allocate memory"), "machine's memory is full", "data.cache=none"),
        (
            RuntimeError(
                "Caught RuntimeError in DataLoader worker process 0.\nunable to write to file </torch_12_3>"
            ),
            "/dev/shm",
            "data.workers=0",
        ),
        (
            RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that"),
            "/dev/shm",
            "--shm-size",
        ),
        (
            RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly"),
            "loads data died",
            "data.workers=0",
        ),
    ],
)
def test_faults_of_the_machine_are_told_with_a_mend(error: Exception, says: str, mend: str) -> None:
    fault = machine_fault(error)
    assert isinstance(fault, MachineError)
    assert fault.exit_code == 3
    assert says in fault.message and mend in fault.hint
    assert "\n" not in fault.message


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("shape '[2]' is invalid for input of size 3"),
        ValueError("Bus error"),
        OSError(2, "No such file"),
    ],
)
def test_a_bug_stays_a_bug(error: Exception) -> None:
    assert machine_fault(error) is None


def test_a_real_allocation_that_fails_is_known() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**62, dtype=torch.uint8)
    assert machine_fault(caught.value) is not None


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step for which the memory does not suffice."""

    def forward(self: Session, batch: object) -> tuple[dict[str, Tensor], Tensor]:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB. GPU 0 has")

    monkeypatch.setattr(Session, "forward", forward)


def test_training_says_the_batch_and_the_size(tmp_path: Path, tiny: Make, full: None) -> None:
    with pytest.raises(MachineError, match=r"9\.00 GiB .data\.batch_size is 4, data\.size 32x48"):
        train(tiny(), tmp_path / "run", console=Console(quiet=True))


def test_the_command_line_tells_a_fault_of_the_machine_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(args: object) -> int:
        raise MemoryError("Unable to allocate 8.00 GiB for an array")

    monkeypatch.setattr("compactmtl.cli.doctor.run", run)
    assert main(["doctor"]) == 3
    error = capsys.readouterr().err
    assert "Unable to allocate 8.00 GiB" in error and "bug" not in error and "Traceback" not in error


@pytest.mark.slow
def test_a_loader_process_that_dies_is_told(
    tmp_path: Path, tiny: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = os.getpid()

    def die(self: BatchView, keys: object) -> object:
        if os.getpid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("in the parent")

    monkeypatch.setattr(BatchView, "__getitem__", die)
    with pytest.raises(MachineError, match=r"a process that loads data died.*data\.workers 1"):
        train(tiny("data.workers=1"), tmp_path / "run", console=Console(quiet=True))


@pytest.mark.slow
@pytest.mark.parametrize("broken", [ConnectionResetError, EOFError])
def test_a_loader_process_that_dies_while_a_batch_is_fetched_is_told(
    tmp_path: Path, tiny: Make, monkeypatch: pytest.MonkeyPatch, broken: type[Exception]
) -> None:
    """Its connection breaks before the signal of its death arrives."""
    fetch: Any = _MultiProcessingDataLoaderIter._try_get_data

    def breaking(self: Any, *args: Any) -> Any:
        if self._rcvd_idx == 2:
            os.kill(self._workers[0].pid, signal.SIGKILL)
            raise broken
        return fetch(self, *args)

    monkeypatch.setattr(_MultiProcessingDataLoaderIter, "_try_get_data", breaking)
    with pytest.raises(MachineError, match=r"a process that loads data died.*data\.workers 2"):
        train(tiny("data.workers=2"), tmp_path / "run", console=Console(quiet=True))


@pytest.mark.slow
def test_a_data_sets_own_error_of_a_connection_stays_its_own(
    tmp_path: Path, tiny: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(self: BatchView, keys: object) -> object:
        raise ConnectionResetError(104, "the server hung up")

    monkeypatch.setattr(BatchView, "__getitem__", unreachable)
    with pytest.raises(ConnectionResetError, match="the server hung up"):
        train(tiny("data.workers=1"), tmp_path / "run", console=Console(quiet=True))


@pytest.mark.slow
def test_a_run_whose_loader_process_is_killed_goes_on_bit_equal(
    tmp_path: Path, tiny: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In mid-epoch, as the system does when memory runs out."""
    resolved = tiny("data.workers=2")
    whole = train(tiny(), tmp_path / "whole", console=Console(quiet=True))
    update = Session.update

    def killing(self: Session, loss: Tensor) -> None:
        update(self, loss)
        if self.position.step == 6:  # of four an epoch
            pid = min(child.pid or 0 for child in multiprocessing.active_children())
            os.kill(pid, signal.SIGKILL)

    with monkeypatch.context() as patched:
        patched.setattr(Session, "update", killing)
        with pytest.raises(MachineError, match=r"a process that loads data died.*data\.workers 2"):
            train(resolved, tmp_path / "run", console=Console(quiet=True))
    assert not multiprocessing.active_children()
    run = train(resolved, tmp_path / "run", resume=True, console=Console(quiet=True))
    one, other = (
        load_file(each.path / "checkpoints" / "last" / "weights.safetensors") for each in (run, whole)
    )
    assert all(torch.equal(one[key], other[key]) for key in other)


@pytest.mark.slow
def test_a_clock_that_jumps_disturbs_neither_log_nor_remaining_time_nor_lock(
    tmp_path: Path, tiny: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each look at the wall clock finds it a day earlier or two later than the one before."""
    whole = train(tiny(), tmp_path / "whole", console=Console(quiet=True))
    now, moves = [1.6e9], itertools.cycle((-86_400.0, 2 * 86_400.0, -2 * 86_400.0))

    def jumping() -> float:
        now[0] += next(moves)
        return now[0]

    monkeypatch.setattr(time, "time", jumping)
    monkeypatch.setattr(time, "time_ns", lambda: int(jumping() * 1e9))
    monkeypatch.setattr("compactmtl.train.tracking.EVERY", 0.0)
    console = Console(file=io.StringIO(), width=200)
    run = trained_in_two_parts(tiny(), tmp_path / "run", console, 6)
    assert isinstance(console.file, io.StringIO)
    remaining = re.findall(r"(\S+) s left", console.file.getvalue())
    assert remaining and all(0 <= float(one) < 90 for one in remaining)
    for event, same in zip(
        [one for one in run.log() if one["event"] == "epoch"],
        [one for one in whole.log() if one["event"] == "epoch"],
        strict=True,
    ):
        assert 0 < event["seconds"] < 90
        assert event["train"] == same["train"]
    assert not (run.path / ".lock").exists()
    with writing(run.path, "test"):
        pass


def test_batches_are_shared_in_the_loader_process_where_a_failure_is_told(
    tmp_path: Path, tiny: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the thread that sends them a full /dev/shm would only be printed, and training would wait for ever."""

    def full(self: Tensor) -> Tensor:
        raise RuntimeError("unable to write to file </torch_1_2>: No space left on device (28)")

    monkeypatch.setattr(Tensor, "share_memory_", full)
    with pytest.raises(MachineError, match=r"/dev/shm.*data\.workers 1"):
        train(tiny("data.workers=1"), tmp_path / "run", console=Console(quiet=True))
