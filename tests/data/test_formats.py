"""Masks, depth and normals from files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from compactmtl.data.formats import coded_normals, metres, read_depth, read_mask, read_normals, unit_normals
from compactmtl.errors import DataError


def save(path: Path, pixels: np.ndarray, mode: str | None = None) -> Path:
    image = Image.fromarray(pixels)
    if mode == "P":
        image.putpalette(list(range(255, -1, -1)) * 3)
    image.save(path)
    return path


def test_a_palette_mask_gives_its_indices(tmp_path: Path) -> None:
    labels = np.array([[0, 1], [2, 255]], np.uint8)
    path = save(tmp_path / "a.png", labels, "P")
    np.testing.assert_array_equal(read_mask(path, None, 3, 255), labels)


def test_a_mask_is_never_mixed(tmp_path: Path) -> None:
    labels = np.array([[0, 2], [2, 0]], np.uint8).repeat(8, 0).repeat(8, 1)
    path = save(tmp_path / "a.png", labels)
    for size in ((4, 4), (7, 5), (33, 64)):
        small = read_mask(path, size, 3)
        assert small.shape == size
        assert set(np.unique(small)) == {0, 2}
    np.testing.assert_array_equal(read_mask(path, (2, 2), 3), [[0, 2], [2, 0]])


@pytest.mark.parametrize(
    ("labels", "match"),
    [
        (np.array([[0, 3]], np.uint8), "value 3, expected 0 to 2 or 255"),
        (np.array([[7, 9, 254]], np.uint8), "values 7, 9, 254"),
        (np.zeros((2, 2, 3), np.uint8), "3 channels"),
    ],
)
def test_a_wrong_mask_is_named(labels: np.ndarray, match: str, tmp_path: Path) -> None:
    path = save(tmp_path / "wrong.png", labels)
    with pytest.raises(DataError, match=match) as caught:
        read_mask(path, None, 3, 255)
    assert "wrong.png" in caught.value.message
    assert caught.value.hint


def test_depth_is_in_metres_and_unknown_where_the_sensor_saw_nothing(tmp_path: Path) -> None:
    path = save(tmp_path / "d.png", np.array([[0, 65535, 1500], [250, 4000, 65534]], np.uint16))
    whole = np.array([[[0, 0, 1.5], [0.25, 4, 65.534]]])
    np.testing.assert_allclose(read_depth(path, (2, 3), 1000), whole, rtol=1e-6)  # float32
    near = np.array([[[0, 0, 3], [0.5, 0, 0]]])
    np.testing.assert_allclose(read_depth(path, (2, 3), 500, limit=5), near, rtol=1e-6)
    assert metres(np.zeros((4, 4), np.uint16), (2, 2), 1000).dtype == np.float32


def test_depth_of_8_bits_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="16-bit"):
        read_depth(save(tmp_path / "d.png", np.ones((2, 2), np.uint8)), (2, 2), 1000)


def test_normals_survive_coding(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    normals = rng.normal(size=(3, 9, 11))
    normals /= np.linalg.norm(normals, axis=0)
    normals[:, 2, 3] = 0
    path = save(tmp_path / "n.png", coded_normals(normals).transpose(1, 2, 0))
    back = read_normals(path, (9, 11))
    assert not back[:, 2, 3].any()
    lengths = np.linalg.norm(back, axis=0)
    assert np.delete(lengths.ravel(), 2 * 11 + 3) == pytest.approx(1, abs=1e-6)
    # Half a step of 8 bits in each of three axes: sqrt(3)/255 rad is 0.4 degrees.
    assert np.abs(back - normals).max() < 0.008
    assert not unit_normals(np.zeros((3, 1, 1), np.uint8)).any()
    with pytest.raises(DataError, match="RGB"):
        read_normals(save(tmp_path / "gray.png", np.ones((2, 2), np.uint8)), (2, 2))


def test_a_missing_or_broken_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "half.png").write_bytes(
        save(tmp_path / "w.png", np.ones((64, 64), np.uint8)).read_bytes()[:60]
    )
    for name in ("half.png", "none.png"):
        with pytest.raises(DataError, match=name):
            read_mask(tmp_path / name, None, 3)
