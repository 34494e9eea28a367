"""Maps: read as they are, resized without mixing, damage named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from compactmtl.data.fit import Fit
from compactmtl.data.images import read_image
from compactmtl.data.maps import check_npy, check_png, nearest, read_map, read_npy, relabel
from compactmtl.errors import DataError

side = st.integers(1, 40)


@pytest.mark.slow  # seconds
@settings(max_examples=60, deadline=None)
@given(side, side, side, side)
def test_nearest_takes_the_pixel_under_the_center(h: int, w: int, new_h: int, new_w: int) -> None:
    values = np.arange(h * w).reshape(h, w)
    got = nearest(values[None], (new_h, new_w))[0]
    for i, j in ((0, 0), (new_h - 1, new_w - 1), (new_h // 2, new_w // 2)):
        # In whole numbers: the center (2 i + 1) / (2 new_h) of the picture's height lies in this row.
        row, column = (2 * i + 1) * h // (2 * new_h), (2 * j + 1) * w // (2 * new_w)
        assert got[i, j] == values[row, column]
    assert got.flags["C_CONTIGUOUS"]


@pytest.mark.parametrize("size", [(5, 7), (40, 60), (11, 3), (20, 30)])
def test_nearest_is_pillows(size: tuple[int, int]) -> None:
    values = np.random.default_rng(0).integers(0, 256, (20, 30), np.uint8)
    want = np.asarray(Image.fromarray(values).resize(size[::-1], Image.Resampling.NEAREST))
    # Half-way centers (an even factor's) round to either side.
    assert (nearest(values, size) == want).mean() > 0.9


def test_an_image_in_memory_is_resized_as_one_in_a_file(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    Image.fromarray(image).save(tmp_path / "a.png")
    for size in ((20, 30), (8, 12), (33, 40)):
        got = Fit(size).picture(np.ascontiguousarray(image.transpose(2, 0, 1)))
        assert np.array_equal(got, read_image(tmp_path / "a.png", size))


@pytest.mark.parametrize(
    ("values", "suffix"),
    [
        (np.array([[0, 33], [255, 7]], np.uint8), "png"),
        (np.array([[0, 65535], [300, 7]], np.uint16), "png"),
        (np.array([[0, 2_600_102], [33, 7]], np.int32), "tif"),
    ],
)
def test_whole_numbers_are_read_as_they_are(tmp_path: Path, values: np.ndarray, suffix: str) -> None:
    Image.fromarray(values).save(tmp_path / f"a.{suffix}")
    assert np.array_equal(read_map(tmp_path / f"a.{suffix}"), values)


def test_a_palettes_indices_are_read_and_not_its_colors(tmp_path: Path) -> None:
    values = np.array([[0, 1], [2, 1]], np.uint8)
    image = Image.new("P", (2, 2))
    image.putpalette([200, 0, 0, 0, 200, 0, 0, 0, 200])
    image.putdata(values.flatten().tolist())
    image.save(tmp_path / "a.png")
    assert np.array_equal(read_map(tmp_path / "a.png"), values)


def test_damaged_and_missing_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    noise = np.random.default_rng(0).integers(0, 256, (60, 60), np.uint8)
    Image.fromarray(noise).save(path)
    assert check_png(path) is None
    path.write_bytes(path.read_bytes()[:-40])
    assert check_png(path) == f"{path}: cut short"
    with pytest.raises(DataError, match=r"a\.png: not a whole image"):
        read_map(path)
    path.write_text("<html>")
    assert check_png(path) == f"{path}: not a PNG image"
    path.unlink()
    assert check_png(path) == f"{path}: no such file"
    with pytest.raises(DataError, match=r"a\.png: no such file"):
        read_map(path)


def test_arrays_of_other_forms_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    np.save(path, np.zeros((4, 5, 1)))
    assert read_npy(path, 2).shape == (4, 5)
    with pytest.raises(DataError, match="expected an array of 1 dimensions"):
        read_npy(path, 1)
    np.save(path, np.array(["a", "b"]))
    with pytest.raises(DataError, match="not one array of numbers"):
        read_npy(path, 1)
    np.save(path, np.array([object()]), allow_pickle=True)
    with pytest.raises(DataError, match="not a whole"):  # an object array would run code
        read_npy(path, 1)
    np.save(path, np.zeros((100, 100)))
    path.write_bytes(path.read_bytes()[:-1])
    fault = check_npy(path)
    assert fault is not None
    assert "not a whole .npy array" in fault
    with pytest.raises(DataError, match="not a whole"):
        read_npy(path, 2)


def test_labels_without_a_place_in_the_table_are_refused() -> None:
    table = np.array([255, 0, 1], np.uint8)
    assert relabel(np.array([[0, 1, 2]], np.int32), table, "x").tolist() == [[255, 0, 1]]
    for wrong in (3, -1):
        with pytest.raises(DataError, match=f"x: label {wrong} is none of 0 to 2"):
            relabel(np.array([[0, wrong]]), table, "x")
