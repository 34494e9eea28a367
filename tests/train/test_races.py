"""Two commands on one run: the second is told who holds it; a killed one loses nothing."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from rich.console import Console
from safetensors.torch import load_file
from torch import equal

from compactmtl.artifacts.lock import writing
from compactmtl.artifacts.versions import resolve
from compactmtl.cli.main import main
from compactmtl.config import resolve_recipe
from compactmtl.errors import ArtifactError, HeldError
from compactmtl.export import export_run
from compactmtl.train import Run, compact_run, train
from tests.support import forked
from tests.support.real_runs import write_run

TINY = Path(__file__).with_name("tiny.yaml")
KILLS = 20
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start() -> Iterator[Start]:
    """start(*words): the command line in a process of its own, killed at the test's end."""
    with ExitStack() as stack:

        def begin(*words: str) -> subprocess.Popen[str]:
            process = subprocess.Popen(
                [sys.executable, "-m", "compactmtl", *words],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            return process

        yield begin


class Other:
    """A process that holds a run's lock, as a training does."""

    CODE = (
        "import sys\nfrom compactmtl.artifacts.lock import writing\n"
        "with writing(sys.argv[1], 'train'):\n    print('held', flush=True)\n    sys.stdin.read()\n"
    )

    def __init__(self, folder: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", self.CODE, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.process.stdout.readline()

    def __enter__(self) -> int:
        return self.process.pid

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"
    }


@pytest.mark.parametrize("words", [["--resume"], ["--overwrite"]])
def test_a_second_training_of_a_live_run_exits_2_and_touches_nothing(
    tmp_path: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "run")
    before = files(run.path)
    with Other(run.path) as pid:
        code = main(["train", str(tmp_path / "run.yaml"), "--out", str(tmp_path), "--name", "run", *words])
    assert code == 2
    assert f"is being written by process {pid} on " in capsys.readouterr().err
    assert files(run.path) == before


@pytest.mark.parametrize(
    "words", [["compact"], ["export", "--target", "onnxruntime-cpu"], ["report"], ["probe"]]
)
def test_what_writes_into_a_run_under_training_exits_2_and_touches_nothing(
    tmp_path: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "run")
    before = files(run.path)
    verb, *rest = words
    with Other(run.path) as pid:
        assert main([verb, str(run.path), *rest]) == 2
    assert f"is being written by process {pid} on " in capsys.readouterr().err
    assert files(run.path) == before


def test_reading_a_run_under_training_is_free(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    with Other(run.path):
        run.load_plain()
        with pytest.raises(HeldError):
            compact_run(run)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


@pytest.mark.parametrize("damage", [flip, cut, Path.unlink])
@pytest.mark.parametrize("name", ["weights.safetensors", "state.json", "hashes.json"])
def test_a_damaged_best_checkpoint_is_noticed_by_every_reader(
    tmp_path: Path, damage: Callable[[Path], None], name: str
) -> None:
    run = write_run(tmp_path / "run")
    damage(run.path / "checkpoints" / "best" / name)
    for read in (compact_run, Run.load_plain):
        with pytest.raises(ArtifactError, match=name):
            read(run)
    assert not (run.path / "compact").exists()


@pytest.mark.slow
@pytest.mark.parametrize("damage", [flip, cut, Path.unlink])
@pytest.mark.parametrize("name", ["weights.safetensors", "plan.json", "surgery.json", "hashes.json"])
def test_a_damaged_compact_model_is_noticed_and_never_exported(
    compacted: Run, tmp_path: Path, damage: Callable[[Path], None], name: str
) -> None:
    run = Run.open(shutil.copytree(compacted.path, tmp_path / "run", symlinks=True))
    damage(run.path / "compact" / name)
    with pytest.raises(
        ArtifactError, match=name if name != "hashes.json" or damage is not Path.unlink else "source"
    ):
        run.load_compact()


@pytest.fixture(scope="module")
def compacted(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = write_run(tmp_path_factory.mktemp("compacted") / "run")
    compact_run(run)
    return run


def test_a_checkpoint_of_the_older_layout_is_read_with_a_note(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    best = run.path / "checkpoints" / "best"
    version = resolve(best)
    best.unlink()
    version.rename(best)
    (best / "hashes.json").unlink()
    with pytest.warns(UserWarning, match="an older version wrote it"):
        run.load_plain()


@pytest.mark.slow
def test_of_two_trainings_that_begin_at_once_one_trains(tmp_path: Path, start: Start) -> None:
    words = ("train", str(TINY), "train.epochs=2", "--out", str(tmp_path), "--name", "run")
    both = [start(*words) for _ in range(2)]
    outcomes = [(process.communicate(), process.returncode) for process in both]
    assert sorted(code for _, code in outcomes) == [0, 2]
    ((_, error),) = [texts for texts, code in outcomes if code == 2]
    assert "is being written by process" in error or "holds a run already" in error
    assert Run.open(tmp_path / "run").finished


@pytest.mark.slow
@pytest.mark.timeout(600)  # on a machine that is busy
def test_a_training_that_is_killed_at_twenty_moments_resumes_bit_equal(tmp_path: Path) -> None:
    recipe, longer = (
        TINY.with_name("everything.yaml"),
        "train.epochs=24",
    )  # so that no kill comes after the end
    resolved = resolve_recipe(recipe, [longer])
    whole = train(resolved, tmp_path / "whole", console=Console(quiet=True))
    moments = random.Random(0)
    epoch_seconds = min(event["seconds"] for event in whole.log() if event["event"] == "epoch")
    log = tmp_path / "run" / "log.jsonl"
    words = ["train", str(recipe), longer, "--out", str(tmp_path), "--name", "run"]
    for attempt in range(KILLS):
        before = log.stat().st_size if log.exists() else 0
        process = forked.start([*words, *(["--resume"] if attempt else [])])
        while not log.exists() or log.stat().st_size <= before:
            assert process.is_alive(), process.exitcode
            time.sleep(0.005)
        time.sleep(moments.uniform(0, 1.5 * epoch_seconds))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, "too fast for a test of kills: make the recipe longer"
        process.close()
        for name in ("last", "best"):
            if resolve(tmp_path / "run" / "checkpoints" / name).is_dir():
                load_file(tmp_path / "run" / "checkpoints" / name / "weights.safetensors")
    run = train(resolved, tmp_path / "run", resume=True, console=Console(quiet=True))
    for name in ("last", "best"):
        one, other = (
            load_file(each.path / "checkpoints" / name / "weights.safetensors") for each in (run, whole)
        )
        assert all(equal(one[key], other[key]) for key in other)
    left = [path.name for path in run.path.rglob(".*")]
    assert left == []  # of all that was being written when a kill came


@pytest.mark.slow
def test_the_lock_is_gone_when_a_command_ends(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    compact_run(run)
    assert not (run.path / ".lock").exists()
    with writing(run.path, "test"), pytest.raises(ArtifactError, match="nothing"):
        raise ArtifactError("nothing", "")
    assert not (run.path / ".lock").exists()


def test_an_export_refuses_a_run_whose_lock_another_thread_holds(tmp_path: Path) -> None:
    from compactmtl.backends import load_target

    run = write_run(tmp_path / "run")
    with Other(run.path), pytest.raises(HeldError):
        export_run(run, "onnxruntime-cpu", load_target("onnxruntime-cpu"))
