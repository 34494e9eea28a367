"""One writer a folder, whatever becomes of the process that holds it."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from compactmtl.artifacts.lock import writing
from compactmtl.errors import ArtifactError, HeldError

HOLD = """
import os, sys, time
from compactmtl.artifacts.lock import writing
with writing(sys.argv[1], "train"):
    if "child" in sys.argv and os.fork() == 0:  # as a loader process, which outlives a killed parent for a while
        time.sleep(60)
        os._exit(0)
    print("held", flush=True)
    sys.stdin.read()
"""
Hold = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def hold() -> Iterator[Hold]:
    """hold(folder, *words): a process that holds the folder's lock until its input ends."""
    with ExitStack() as stack:

        def begin(folder: Path, *words: str) -> subprocess.Popen[str]:
            process = subprocess.Popen(
                [sys.executable, "-c", HOLD, str(folder), *words],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
            stack.callback(end, process)
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            return process

        def end(process: subprocess.Popen[str]) -> None:
            with suppress(ProcessLookupError):  # it and its children have ended
                os.killpg(process.pid, signal.SIGKILL)
            for pipe in (process.stdin, process.stdout):
                assert pipe is not None
                pipe.close()
            process.wait()

        yield begin


def test_the_second_process_is_told_who_holds_the_folder(tmp_path: Path, hold: Hold) -> None:
    process = hold(tmp_path / "run")
    with pytest.raises(HeldError) as caught, writing(tmp_path / "run", "export"):
        pass
    assert caught.value.exit_code == 2
    assert f"process {process.pid} on " in caught.value.message
    assert "(train, since 20" in caught.value.message
    assert str(tmp_path / "run") in caught.value.message


def test_asking_does_not_free_the_lock(tmp_path: Path, hold: Hold) -> None:
    hold(tmp_path / "run")
    for _ in range(3):
        with pytest.raises(HeldError), writing(tmp_path / "run", "export"):
            pass


def test_a_holder_that_ends_frees_the_folder_and_leaves_nothing(tmp_path: Path, hold: Hold) -> None:
    process = hold(tmp_path / "run")
    process.communicate("")
    assert not (tmp_path / "run").exists()
    with writing(tmp_path / "run", "train"):
        (tmp_path / "run" / "recipe.yaml").touch()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["recipe.yaml"]


@pytest.mark.parametrize("words", [(), ("child",)])
def test_a_killed_holder_frees_the_folder_though_its_children_live(
    tmp_path: Path, hold: Hold, words: tuple[str, ...]
) -> None:
    process = hold(tmp_path / "run", *words)
    process.kill()
    process.wait()
    assert (tmp_path / "run" / ".lock").exists()  # what is left of it holds nothing
    with writing(tmp_path / "run", "train"):
        pass


def test_the_thread_that_holds_it_may_take_it_again_and_keeps_it(tmp_path: Path) -> None:
    with writing(tmp_path / "run", "sweep"):
        with writing(tmp_path / "run", "train"):
            pass
        with writing(tmp_path / "run" / ".." / "run", "export"):
            pass
        assert try_in_process(tmp_path / "run") == "held"
    assert try_in_process(tmp_path / "run") == "free"


def test_another_thread_is_refused(tmp_path: Path) -> None:
    found: list[BaseException] = []

    def other() -> None:
        try:
            with writing(tmp_path, "export"):
                pass
        except HeldError as error:
            found.append(error)

    with writing(tmp_path, "train"):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert try_in_process(tmp_path) == "held"  # being refused has not freed it
    assert "another thread of this process (train" in str(found[0])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_child_holds_nothing(tmp_path: Path) -> None:
    with writing(tmp_path, "train"):
        pid = os.fork()
        if pid == 0:
            try:
                with writing(tmp_path, "train"):
                    os._exit(0)
            except HeldError:
                os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
        assert try_in_process(tmp_path) == "held"  # the child's end has not freed it


def test_waiting_takes_the_folder_when_it_is_free(tmp_path: Path, hold: Hold) -> None:
    process = hold(tmp_path / "run")
    timer = threading.Timer(0.2, process.kill)
    timer.start()
    with writing(tmp_path / "run", "train", wait=30):
        pass


def test_a_failing_start_removes_the_folders_it_made_and_no_other(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    with pytest.raises(RuntimeError), writing(tmp_path / "runs" / "a" / "b", "train"):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == [tmp_path / "runs"]


def test_a_lock_file_that_its_holder_removed_is_not_taken_for_the_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the opening and the locking of the file its holder ends, and another takes the folder."""
    lock = fcntl.lockf
    replaced: list[int] = []

    def late(descriptor: int, flags: int) -> None:
        if not replaced:
            replaced.append(1)
            (tmp_path / ".lock").unlink()
            (tmp_path / ".lock").touch()
        lock(descriptor, flags)

    monkeypatch.setattr(fcntl, "lockf", late)
    with writing(tmp_path, "train"):
        assert try_in_process(tmp_path) == "held"


def test_a_file_system_without_locks_is_refused_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(descriptor: int, flags: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", no_locks)
    with (
        pytest.raises(ArtifactError, match="this file system has no locks"),
        writing(tmp_path / "run", "x"),
    ):
        pass
    assert not (tmp_path / "run").exists()


def try_in_process(folder: Path) -> str:
    """Whether another process could write the folder: held or free."""
    code = (
        "import sys\nfrom compactmtl.artifacts.lock import writing\nfrom compactmtl.errors import HeldError\n"
        "try:\n    with writing(sys.argv[1], 'test'): print('free')\nexcept HeldError: print('held')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()
