"""Stores give what was made, make it once, and notice when a file is not theirs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compactmtl.data.cache import (
    Arrays,
    DirectStore,
    DiskStore,
    Layout,
    MemoryStore,
    Store,
    content_key,
    hold_out,
    open_store,
)
from compactmtl.errors import DataError

LAYOUTS = {"a": Layout((2, 3), "uint8"), "b": Layout((), "float32")}


class Maker:
    """Counts how often each sample is made."""

    def __init__(self) -> None:
        self.made: list[int] = []

    def __call__(self, index: int) -> Arrays:
        self.made.append(index)
        return {"a": np.full((2, 3), index, np.uint8), "b": np.float32(index / 2)}  # type: ignore[dict-item]


def contents(store: Store) -> list[tuple[int, float]]:
    return [(int(store.read(i)["a"][1, 2]), float(store.read(i)["b"])) for i in range(4)]


@pytest.mark.parametrize("mode", ["memory", "disk", "none"])
def test_what_is_read_is_what_was_made(mode: str, tmp_path: Path) -> None:
    make = Maker()
    store = open_store(mode, 4, LAYOUTS, make, tmp_path / "k")  # type: ignore[arg-type]
    assert contents(store) == contents(DirectStore(Maker())) == [(0, 0.0), (1, 0.5), (2, 1.0), (3, 1.5)]
    assert (len(make.made) == 4) == (mode != "none")


def test_memory_makes_only_what_is_asked_for() -> None:
    make = Maker()
    store = MemoryStore(4, LAYOUTS, make)
    store.read(2)
    store.read(2)
    assert make.made == [2]
    store.fill()
    assert sorted(make.made) == [0, 1, 2, 3]


def test_disk_is_built_once(tmp_path: Path) -> None:
    first, second = Maker(), Maker()
    DiskStore(tmp_path / "k", 4, LAYOUTS, first)
    store = DiskStore(tmp_path / "k", 4, LAYOUTS, second)
    assert (len(first.made), second.made) == (4, [])
    assert contents(store)[3] == (3, 1.5)
    assert [path.name for path in tmp_path.iterdir()] == ["k"]


def test_a_failure_while_building_leaves_nothing_behind(tmp_path: Path) -> None:
    def fail(index: int) -> Arrays:
        raise DataError("damaged")

    with pytest.raises(DataError, match="damaged"):
        DiskStore(tmp_path / "k", 4, LAYOUTS, fail)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["cut", "missing", "other shape"])
def test_a_damaged_cache_says_which_folder_to_remove(damage: str, tmp_path: Path) -> None:
    folder = tmp_path / "k"
    DiskStore(folder, 4, LAYOUTS, Maker())
    match damage:
        case "cut":
            (folder / "a.npy").write_bytes((folder / "a.npy").read_bytes()[:20])
        case "missing":
            (folder / "a.npy").unlink()
        case "other shape":
            np.save(folder / "a.npy", np.zeros((4, 5), np.uint8))
    with pytest.raises(DataError) as caught:
        DiskStore(folder, 4, LAYOUTS, Maker())
    assert str(folder) in caught.value.hint


def test_keys_follow_contents() -> None:
    assert content_key([("a", 1)], (2, 3)) == content_key([("a", 1)], (2, 3))
    assert content_key([("a", 1)]) != content_key([("a", 2)])


names = st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=40, unique=True)


@given(names, st.floats(0, 1), st.randoms())
def test_hold_out_is_a_partition_that_ignores_order(
    identifiers: list[str], share: float, random: object
) -> None:
    kept, held = hold_out(identifiers, share)
    assert sorted(kept + held) == list(range(len(identifiers)))
    assert kept
    if share > 0 and len(identifiers) > 1:
        assert held
        assert abs(len(held) - share * len(identifiers)) <= 1
    turned = identifiers[::-1]
    assert {turned[i] for i in hold_out(turned, share)[1]} == {identifiers[i] for i in held}
