"""Data sets in worker processes that are started anew: every kind can be handed over, and caches are mapped, not copied."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from compactmtl.config.recipe import DataConfig
from compactmtl.data import DATASETS, build_loader, load_dataset
from compactmtl.data import memory as memory_module
from compactmtl.data.cache import DiskStore, Layout, MemoryStore, open_store
from compactmtl.data.memory import SharedBlock, available_memory
from compactmtl.errors import ConfigError, DataError
from compactmtl.tasks import TargetSpec
from tests.support.layouts.celebamask import write_celebamask

LAYOUTS = Path(__file__).parents[1] / "support" / "layouts"
# Data sets that are generated, and those of which `write_<name>` of a file of their name writes a small copy.
WRITE: dict[str, Callable[[Path], object] | None] = {
    "scenes": None,
    **{
        name: getattr(import_module(f"tests.support.layouts.{name}"), f"write_{name}")
        for name in DATASETS
        if (LAYOUTS / f"{name}.py").is_file()
    },
    "celebamask": lambda root: write_celebamask(root, count=10, side=8),
}


def config(name: str, tmp_path: Path, **fields: Any) -> DataConfig:
    write = WRITE[name]
    given: dict[str, Any] = {"name": name, "size": (16, 24)} | fields
    if write is None:
        given["options"] = {"train": 3, "val": 2}
    else:
        write(tmp_path)
        given["root"] = str(tmp_path)
    return DataConfig.model_validate(given)


def same(first: Any, second: Any) -> bool:
    return torch.equal(first["image"], second["image"]) and all(
        torch.equal(value.nan_to_num(), second["targets"][name].nan_to_num())
        for name, value in first["targets"].items()
    )


def square(index: int) -> dict[str, np.ndarray]:
    return {"a": np.full((50, 50), index, np.float32)}


@pytest.mark.parametrize("cache", ["none", "memory", "disk"])
@pytest.mark.parametrize("name", WRITE)
def test_every_data_set_comes_back_from_a_pickle(name: str, cache: str, tmp_path: Path) -> None:
    dataset = load_dataset(config(name, tmp_path, cache=cache), "train")
    again = ForkingPickler.loads(ForkingPickler.dumps(dataset))
    assert len(again) == len(dataset) > 0
    assert same(dataset[0], again[0])


@pytest.mark.parametrize("mode", ["memory", "disk"])
def test_a_store_is_handed_over_as_where_it_lies(mode: Any, tmp_path: Path) -> None:
    store = open_store(mode, 100, {"a": Layout((50, 50), "float32")}, square, tmp_path / "k")
    store.fill()
    assert len(ForkingPickler.dumps(store)) < 2000  # a copy of its samples would be a million bytes
    again = ForkingPickler.loads(ForkingPickler.dumps(store))
    assert (again.read(7)["a"] == 7).all()
    again.read(7)["a"][:] = 0
    assert (store.read(7)["a"] == 7).all()


def test_a_block_whose_owner_is_gone_begins_with_zeros(monkeypatch: pytest.MonkeyPatch) -> None:
    block = SharedBlock.new((3,), "uint8")
    block.array[:] = 9
    monkeypatch.setattr(block, "_owner", 2**22 + 7)  # no process has this number
    assert ForkingPickler.loads(ForkingPickler.dumps(block)).array.tolist() == [0, 0, 0]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere blocks have no files")
def test_blocks_close_their_files() -> None:
    def count() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    before = count()
    for _ in range(20):
        store = MemoryStore(4, {"a": Layout((50, 50), "float32")}, square)
        ForkingPickler.loads(ForkingPickler.dumps(store))
    del store
    assert count() <= before + 2


@pytest.fixture
def spawning() -> Iterator[None]:
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method("spawn", force=True)
    yield
    multiprocessing.set_start_method(before, force=True)


@pytest.mark.slow
def test_a_worker_that_is_started_anew_gives_the_same_and_fills_the_cache_of_all(
    tmp_path: Path, spawning: None
) -> None:
    data = config("scenes", tmp_path, cache="memory", batch_size=4)
    own = list(build_loader(load_dataset(data, "train"), data, train=True, seed=0))
    dataset = load_dataset(data, "train")
    other = list(build_loader(dataset, data.model_copy(update={"workers": 1}), train=True, seed=0))
    assert len(own) == len(other) == 1
    assert same(own[0], other[0])
    if sys.platform == "linux":
        assert dataset._store._ready.all()  # type: ignore[attr-defined]  # rendered there, seen here


class Unpicklable:
    split = "train"

    def __init__(self) -> None:
        self.specs: Mapping[str, TargetSpec] = {}
        self.function = lambda: 0

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Any:
        raise NotImplementedError

    def identifier(self, index: int) -> str:
        return str(index)


def test_what_cannot_be_handed_over_is_said_before_a_worker_starts(spawning: None) -> None:
    data = DataConfig(name="mine:Unpicklable", size=(8, 8), workers=1)
    with pytest.raises(ConfigError, match=r"data\.workers: mine:Unpicklable cannot be handed"):
        build_loader(Unpicklable(), data, train=True, seed=0)
    build_loader(Unpicklable(), data.model_copy(update={"workers": 0}), train=True, seed=0)


def test_a_memory_cache_larger_than_free_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compactmtl.data.cache.available_memory", lambda: 10 * 50 * 50 * 4)
    MemoryStore(10, {"a": Layout((50, 50), "float32")}, square)
    with pytest.raises(DataError, match=r"data\.cache: memory needs .* GiB for 11 samples") as caught:
        MemoryStore(11, {"a": Layout((50, 50), "float32")}, square)
    assert "data.cache: disk" in caught.value.hint


def test_a_disk_cache_larger_than_the_disk_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = type("Usage", (), {"free": 1000})()
    monkeypatch.setattr("compactmtl.data.cache.shutil.disk_usage", lambda _: room)
    with pytest.raises(DataError, match="are free"):
        DiskStore(tmp_path / "k", 11, {"a": Layout((50, 50), "float32")}, square)
    assert list(tmp_path.iterdir()) == []


def test_a_cache_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match="cannot be written there") as caught:
        DiskStore(tmp_path / "file" / "k", 2, {"a": Layout((50, 50), "float32")}, square)
    assert "XDG_CACHE_HOME" in caught.value.hint


def test_free_memory_is_the_least_of_the_machine_and_the_control_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 99 kB\nMemAvailable:   2000 kB\n")
    for name, text in (("max", "1000000"), ("current", "900000"), ("stat", "anon 1\ninactive_file 50000\n")):
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(memory_module, "_MEMINFO", tmp_path / "meminfo")
    limits = ((tmp_path / "max", tmp_path / "current", tmp_path / "stat"),)
    monkeypatch.setattr(memory_module, "_LIMITS", limits)
    assert available_memory() == 150000
    (tmp_path / "max").write_text("max\n")
    assert available_memory() == 2000 * 1024
    (tmp_path / "meminfo").unlink()
    assert available_memory() is None


def test_a_block_above_the_limit_of_files_is_memory_of_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_file: int, _size: int) -> None:
        raise OSError(27, "File too large")

    monkeypatch.setattr("os.ftruncate", refuse)
    block = SharedBlock.new((3, 5), "float32")
    block.array[1] = 2
    assert block.array.sum() == 10
