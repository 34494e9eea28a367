"""Memory, file handles and threads stay where they are; and the soak would notice if they did not."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import pytest

from tools.soak import MOST, Look, course, cycles, look, main, train_long

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


def looks(megabytes: list[float], files: int = 10, threads: int = 2, more: int = 0) -> list[Look]:
    """Looks of these sizes; `more` files and threads in the second half."""
    half = len(megabytes) // 2
    return [
        Look(size, files + more * (number >= half), threads + more * (number >= half))
        for number, size in enumerate(megabytes)
    ]


def test_caches_that_fill_at_first_are_no_leak() -> None:
    found = course("cycles", 16, 1.0, looks([100, 150, 180, 195, *[200.0] * 12]))
    assert found.growth == 0
    assert found.faults(MOST) == []


def test_a_leak_is_told_with_its_size() -> None:
    found = course("cycles", 40, 1.0, looks([100.0 + 2 * number for number in range(40)]))
    assert found.growth == 40
    assert found.faults(MOST) == ["cycles: memory grew by 40.0 MiB over half of 40, 2048 KiB for each"]


def test_files_and_threads_that_stay_open_are_told() -> None:
    found = course("steps", 16, 1.0, looks([100.0] * 16, more=3))
    assert found.faults(MOST) == [
        "steps: open files were 10 and became 13",
        "steps: threads were 2 and became 5",
    ]
    assert found.open_at_end


def test_a_look_sees_what_is_held(tmp_path: Path) -> None:
    before = look()
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    with (tmp_path / "file").open("w"):
        block = bytearray(64 << 20)
        block[::4096] = b"x" * len(block[::4096])
        during = look()
    done.set()
    thread.join()
    assert during.megabytes - before.megabytes > 60
    assert (during.files, during.threads) == (before.files + 1, before.threads + 1)
    del block
    assert look().megabytes - before.megabytes < 10


def test_too_few_to_judge_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--steps", "30"], ["--steps", "45"], ["--cycles", "3"]):
        with pytest.raises(SystemExit) as stop:
            main(words)
        assert stop.value.code == 2


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_short_soak_stays_within_the_bound(tmp_path: Path) -> None:
    trained = train_long(tmp_path / "run", 160, workers=1)
    assert trained.faults(MOST) == [], trained.line()
    made = cycles(tmp_path / "run", 16)
    assert made.faults(MOST) == [], made.line()
