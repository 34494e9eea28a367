"""The later stages on a disk that is full or read-only: an error that names it, what was there stays, no half of anything."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from compactmtl.cli.main import main
from compactmtl.runs import Run
from tests.support.real_runs import compact_half, write_run
from tests.support.small_disk import SmallDisk, small_disk

pytestmark = pytest.mark.slow
TINY = Path(__file__).parents[1] / "train" / "tiny.yaml"
TARGET = "backend: onnxruntime\nlatency: {warmup: 1, repeats: 3}\n"
SWEEP = """
recipe: {tiny}
baseline: plain
seeds: [0]
overrides: [train.epochs=1, train.max_steps=2]
entries:
  plain: {{}}
  ours: {{overrides: [overparam.kind=svd]}}
"""


@pytest.fixture(scope="module")
def compacted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compacted")
    (folder / "t.yaml").write_text(TARGET)
    run = compact_half(write_run(folder / "run"))
    assert main(["export", str(run.path), "--target", str(folder / "t.yaml")]) == 0
    assert main(["report", str(run.path)]) == 0
    return folder


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path / "disk", 64) as mounted:
        yield mounted


def place(disk: SmallDisk, compacted: Path) -> Run:
    shutil.copytree(compacted, disk.path, symlinks=True, dirs_exist_ok=True)
    return Run.open(disk.path / "run")


def files(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def command(verb: str, disk: SmallDisk) -> list[str]:
    target = ["--target", str(disk.path / "t.yaml")] if verb == "export" else []
    return [verb, str(disk.path / "run"), *target]


@pytest.mark.parametrize("leave", [0, 12 << 10])
@pytest.mark.parametrize("verb", ["compact", "export", "report"])
def test_a_full_disk(
    verb: str, leave: int, disk: SmallDisk, compacted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = place(disk, compacted)
    before = files(run.path)
    disk.fill(leave)
    assert main(command(verb, disk)) == 2
    error = capsys.readouterr().err
    assert f"error: {disk.path}" in error and "No space left on device" in error and "Traceback" not in error
    if verb == "report":  # each of its files is replaced by itself
        assert files(run.path).keys() == before.keys()
    else:
        assert files(run.path) == before
    disk.empty()
    run.load_compact()
    assert main(command(verb, disk)) == 0


@pytest.mark.parametrize("verb", ["compact", "export", "report", "probe", "train"])
def test_a_read_only_disk(
    verb: str, disk: SmallDisk, compacted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = place(disk, compacted)
    before = files(run.path)
    disk.read_only()
    words = command(verb, disk)
    if verb == "train":
        words = ["train", str(compacted / "run.yaml"), "--out", str(disk.path), "--name", "run", "--resume"]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert f"error: {disk.path}" in error and "Read-only file system" in error and "Traceback" not in error
    assert files(run.path) == before


def test_a_sweep_whose_disk_fills_up_goes_on_by_the_same_command(
    disk: SmallDisk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from compactmtl.train import loop
    from compactmtl.train.resume import save_last

    (tmp_path / "mine.yaml").write_text(SWEEP.format(tiny=TINY))
    words = ["sweep", str(tmp_path / "mine.yaml"), "--out", str(disk.path / "runs")]
    calls: list[object] = []

    def filling(*args: object) -> None:
        calls.append(args)
        if len(calls) == 2:  # of the second run
            disk.fill()
        save_last(*args)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(loop, "save_last", filling)
        assert main(words) == 2
    assert "No space left on device" in capsys.readouterr().err
    disk.empty()
    assert main(words) == 0
    assert "no finished run" not in (disk.path / "runs" / "sweep.md").read_text()
