"""Measurements are kept by device and conditions, and damage costs nothing but time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from compactmtl.errors import CompactWarning
from compactmtl.latency import Point, Store
from compactmtl.latency.store import MOST, VERSION

CONDITIONS = {"device": "a CPU", "precision": "fp32", "threads": 1}


def test_what_was_added_is_read_again(tmp_path: Path) -> None:
    Store(CONDITIONS, tmp_path).add([("conv", Point(16, 3, 0.5, 4e6)), ("dw", Point(8, None, 0.1))])
    again = Store(CONDITIONS, tmp_path)
    assert again.points("conv") == [Point(16, 3, 0.5, 4e6)] and again.points("dw") == [Point(8, None, 0.1)]
    assert again.points("other") == []


@pytest.mark.parametrize("change", [{"device": "another"}, {"precision": "int8"}, {"threads": 2}])
def test_other_conditions_share_nothing(change: dict[str, object], tmp_path: Path) -> None:
    Store(CONDITIONS, tmp_path).add([("conv", Point(16, 3, 0.5))])
    assert Store({**CONDITIONS, **change}, tmp_path).points("conv") == []


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"version": 9}', '{"version": 2, "conditions": {}, "layers": 3}']
)
def test_a_damaged_file_is_measured_again(text: str, tmp_path: Path) -> None:
    store = Store(CONDITIONS, tmp_path)
    store.path.write_text(text)
    assert Store(CONDITIONS, tmp_path).points("conv") == []


@pytest.mark.parametrize(
    "point",
    [
        [16, 3, "NaN", 4e6],
        ["Infinity", 3, 0.5, 4e6],
        [16, 3, 0.5, "Infinity"],
        [16, 3, 0.0, 4e6],
        [0, 3, 0.5, 4e6],
        [16, 0, 0.5, 4e6],
    ],
)
def test_a_number_that_no_clock_gives_is_measured_again(point: list[object], tmp_path: Path) -> None:
    store = Store(CONDITIONS, tmp_path)
    store.add([("conv", Point(16, 3, 0.5, 4e6))])
    document = json.loads(store.path.read_text())
    document["layers"]["conv"] = [point]
    store.path.write_text(json.dumps(document).replace('"NaN"', "NaN").replace('"Infinity"', "Infinity"))
    assert Store(CONDITIONS, tmp_path).points("conv") == []


def test_layers_that_are_none_are_measured_again(tmp_path: Path) -> None:
    store = Store(CONDITIONS, tmp_path)
    store.path.write_text(json.dumps({"version": VERSION, "conditions": CONDITIONS, "layers": 3}))
    assert Store(CONDITIONS, tmp_path).points("conv") == []


def test_the_newest_points_of_a_layer_are_kept(tmp_path: Path) -> None:
    store = Store(CONDITIONS, tmp_path)
    store.add([("conv", Point(1, 1, float(number))) for number in range(MOST + 5)])
    assert [point.ms for point in store.points("conv")] == [float(number) for number in range(5, MOST + 5)]


def test_a_folder_that_cannot_be_written_is_said_and_measuring_goes_on(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    store = Store(CONDITIONS, file / "below")
    with pytest.warns(CompactWarning, match="cannot be kept"):
        store.add([("conv", Point(1, 1, 1.0))])
    assert store.points("conv") == [Point(1, 1, 1.0)] and store.table("any") is None


def test_what_a_network_took_is_kept(tmp_path: Path) -> None:
    Store(CONDITIONS, tmp_path).keep_milliseconds("one", 1.5)
    Store(CONDITIONS, tmp_path).keep_milliseconds("two", 2.5)
    again = Store(CONDITIONS, tmp_path)
    assert (again.milliseconds("one"), again.milliseconds("two"), again.milliseconds("three")) == (
        1.5,
        2.5,
        None,
    )
