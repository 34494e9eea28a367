"""Arrays of files: masks of every type by every rule of data.resize, every byte order, and what no value can be."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from PIL import Image

from compactmtl.data.fit import Fit
from compactmtl.data.formats import read_mask
from compactmtl.data.images import read_image
from compactmtl.data.maps import read_map
from compactmtl.data.npy import npy_mask, npy_normals, npy_picture, npy_positive
from compactmtl.errors import DataError
from compactmtl.tasks.placement import Resize

TYPES = [kind + size for kind, sizes in (("u", "1248"), ("i", "1248"), ("f", "248")) for size in sizes]
RULES = get_args(Resize)
LABELS = np.array([[0, 1, 2, 3], [3, 2, 1, 0]])  # (2, 4), of four classes
# By hand: (4, 4) of it. A stretch doubles the rows; a letterbox has a row of padding above and below; a crop shows the
# middle columns, doubled both ways.
EXPECTED = {
    "stretch": [[0, 1, 2, 3], [0, 1, 2, 3], [3, 2, 1, 0], [3, 2, 1, 0]],
    "letterbox": [[9, 9, 9, 9], [0, 1, 2, 3], [3, 2, 1, 0], [9, 9, 9, 9]],
    "crop": [[1, 1, 2, 2], [1, 1, 2, 2], [2, 2, 1, 1], [2, 2, 1, 1]],
}


def save(path: Path, values: Any) -> Path:
    np.save(path, values)
    return path


@pytest.mark.parametrize("how", RULES)
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("kind", TYPES)
def test_a_mask_of_every_type_by_every_rule(tmp_path: Path, kind: str, order: str, how: Resize) -> None:
    path = save(tmp_path / "0.npy", LABELS.astype(f"{order}{kind}"))
    found = npy_mask(path, Fit((4, 4), how), 4, 9)
    assert found.dtype == np.uint8
    assert found.tolist() == EXPECTED[how]


@pytest.mark.parametrize("how", RULES)
def test_a_mask_of_bools_by_every_rule(tmp_path: Path, how: Resize) -> None:
    found = npy_mask(save(tmp_path / "0.npy", LABELS > 1), Fit((4, 4), how), 2, 9)
    assert found.tolist() == np.choose(np.array(EXPECTED[how]).clip(0, 4), [0, 0, 1, 1, 9]).tolist()


@pytest.mark.parametrize("how", RULES)
@pytest.mark.parametrize("kind", ["u1", "u2", "i4", "f4"])
def test_a_value_that_is_no_class_is_refused_by_every_rule(tmp_path: Path, kind: str, how: Resize) -> None:
    wrong = np.full((2, 4), 255 if kind != "f4" else 1.5)
    with pytest.raises(DataError, match=r"holds the value (255|1\.5), expected -1 \(unlabeled\) to 3"):
        npy_mask(save(tmp_path / "0.npy", wrong.astype(kind)), Fit((4, 4), how), 4, 255)


@pytest.mark.parametrize("ignore", [None, 255, 9])
@pytest.mark.parametrize("how", RULES)
@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.int32, np.bool_])
def test_a_picture_of_a_mask_by_every_rule(
    tmp_path: Path, kind: Any, how: Resize, ignore: int | None
) -> None:
    labels = LABELS if kind is not np.bool_ else LABELS % 2
    Image.fromarray(labels.astype(kind)).save(
        tmp_path / "mask.png" if kind is not np.int32 else tmp_path / "mask.tif"
    )
    (path,) = tmp_path.iterdir()
    found = read_mask(path, Fit((4, 4), how), 4, ignore)
    padding = 255 if ignore is None else ignore
    one = np.array(EXPECTED[how])
    inside = one if kind is not np.bool_ else one % 2
    assert found.tolist() == np.where(one == 9, padding, inside).tolist()


@pytest.mark.parametrize(
    ("kind", "unknown", "given"),
    [
        ("u1", -1, "int16"), ("u1", 255, "uint8"), ("i1", 255, "int16"), ("u2", -1, "int32"), ("b1", 255, "uint8"),
        ("b1", 0, "bool"), ("f4", -1, "float32"), ("f4", np.nan, "float32"), ("u1", np.nan, "float16"), ("i8", 0, "int64"),
    ],
)  # fmt: skip
def test_padding_holds_the_value_that_was_asked_for(kind: str, unknown: float, given: str) -> None:
    found = Fit((4, 4), "letterbox").map(np.ones((2, 4), kind), unknown)
    assert found.dtype == given
    np.testing.assert_array_equal(found[0], np.full(4, unknown))
    np.testing.assert_array_equal(found[1:3], 1)
    # Where nothing is padded the type stays.
    assert Fit((4, 4)).map(np.ones((2, 4), kind), unknown).dtype == kind


PICTURE = np.array([[0, 257, 65535], [128, 129, 32896]], np.uint16)


@pytest.mark.parametrize("order", "<>")
def test_a_picture_of_16_bits_in_either_byte_order(tmp_path: Path, order: str) -> None:
    gray = save(tmp_path / "gray.npy", PICTURE.astype(f"{order}u2"))
    expected = [[0, 1, 255], [0, 1, 128]]  # value / 257, rounded
    assert read_image(gray, Fit((2, 3), channels=1))[0].tolist() == expected
    bands = save(tmp_path / "bands.npy", np.stack([PICTURE] * 5).astype(f"{order}u2"))
    assert read_image(bands, Fit((2, 3), channels=5)).tolist() == [expected] * 5


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("kind", ["u2", "u4", "i2", "i4", "f2", "f4", "f8"])
def test_a_range_is_of_numbers_in_either_byte_order(tmp_path: Path, kind: str, order: str) -> None:
    path = save(tmp_path / "0.npy", np.array([[0, 50, 100, 120]], f"{order}{kind}"))
    found = read_image(path, Fit((1, 4), channels=1, range=(0.0, 100.0)))
    assert found[0].tolist() == [[0, 128, 255, 255]]


@pytest.mark.parametrize("kind", ["b1", "i1", ">i2", "<u4", ">u4", ">f4", "c8", "M8[s]", "S2", "U2", "V4"])
def test_numbers_without_a_range_are_refused_by_their_type(tmp_path: Path, kind: str) -> None:
    path = save(tmp_path / "0.npy", np.zeros((2, 3), kind))
    with pytest.raises(DataError, match="of which no range of brightness is known"):
        read_image(path, Fit((2, 3), channels=1))


def test_big_endian_tiff_and_pgm_are_read_as_they_are_meant(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    tifffile.imwrite(tmp_path / "big.tif", np.stack([PICTURE] * 5), byteorder=">", photometric="minisblack")
    assert read_image(tmp_path / "big.tif", Fit((2, 3), channels=5))[4].tolist() == [[0, 1, 255], [0, 1, 128]]
    tifffile.imwrite(tmp_path / "map.tif", PICTURE, byteorder=">")
    found = read_map(tmp_path / "map.tif")
    assert found.tolist() == PICTURE.tolist() and found.dtype.isnative


@pytest.mark.parametrize("order", "<>")
def test_maps_of_either_byte_order_are_of_this_machine(tmp_path: Path, order: str) -> None:
    size = Fit((2, 2), "letterbox")
    values = np.array([[0.25, 1.0], [np.nan, -2.0]])
    path = save(tmp_path / "depth.npy", values.astype(f"{order}f8"))
    found = npy_positive(path, size)
    assert found.dtype == np.dtype("=f4") and found.dtype.isnative
    assert found[0].tolist() == [[0.25, 1.0], [0.0, 0.0]]
    image = save(tmp_path / "image.npy", np.full((2, 2, 3), 0.2, f"{order}f4"))
    pixels, info = npy_picture(image, size)
    assert (pixels == 51).all() and info.size == (2, 2)
    normal = save(tmp_path / "normal.npy", np.broadcast_to([0.0, 0.0, -2.0], (2, 2, 3)).astype(f"{order}f4"))
    assert npy_normals(normal, size)[2].tolist() == [[-1.0, -1.0], [-1.0, -1.0]]


def test_normals_that_are_coded_as_a_picture_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "normal.npy", np.full((2, 2, 3), 128, np.uint8))
    with pytest.raises(DataError, match="normals need real numbers from -1 to 1, found uint8"):
        npy_normals(path, (2, 2))
