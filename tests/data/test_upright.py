"""Maps lie on their images: put upright with them, of their size, or refused with both files named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from compactmtl.config.recipe import DataConfig
from compactmtl.data import check_dataset, load_dataset
from compactmtl.data.formats import read_depth, read_mask, read_normals
from compactmtl.data.images import read_picture
from compactmtl.data.maps import read_map
from compactmtl.errors import DataError

ORIENTATIONS = range(1, 9)
HEIGHT, WIDTH = 16, 24


def exif(orientation: int) -> Image.Exif:
    found = Image.Exif()
    found[0x0112] = orientation
    return found


def scene() -> np.ndarray:
    """Labels that no mirror image or turn leaves as they are, uint8 (H, W)."""
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    labels[:4] = 1
    labels[:, :3] = 1
    labels[4:8, 3:9] = 1
    return labels


def write(tmp_path: Path, orientation: int, drawn: str, *, suffix: str = ".png") -> tuple[Path, Path]:
    """A photo stored under an orientation, bright where its map is 1, and the map: tagged, upright or as stored."""
    photo, label = tmp_path / "photo.png", tmp_path / f"label{suffix}"
    Image.fromarray(255 * scene()).save(photo, exif=exif(orientation))
    stored = Image.fromarray(scene())
    if drawn == "tagged":
        stored.save(label, exif=exif(orientation))
    elif drawn == "stored":
        stored.save(label)
    else:
        with Image.open(photo) as image:
            upright = np.asarray(ImageOps.exif_transpose(image)) // 255
        Image.fromarray(upright).save(label)
    return photo, label


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("drawn", ["tagged", "upright", "stored"])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_mask_lies_on_its_photo(orientation: int, drawn: str, suffix: str, tmp_path: Path) -> None:
    photo, label = write(tmp_path, orientation, drawn, suffix=suffix)
    pixels, info = read_picture(photo, (20, 20))
    said: Any = None if drawn == "tagged" else drawn
    mask = read_mask(label, (20, 20), 2, None, info, said)
    agreed = (pixels[0] > 127) == (mask == 1)
    assert agreed.mean() > 0.9  # the image is interpolated at edges, the mask is not


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_where_nothing_says_what_a_mask_was_drawn_on_its_size_must(orientation: int, tmp_path: Path) -> None:
    photo, label = write(tmp_path, orientation, "upright")
    info = read_picture(photo)[1]
    if orientation in (2, 3, 4):
        with pytest.raises(DataError, match="cannot be decided") as caught:
            read_mask(label, None, 2, None, info)
        assert "drawn: upright" in caught.value.hint
    else:
        read_mask(label, None, 2, None, info)
    if orientation >= 5:
        photo, label = write(tmp_path, orientation, "stored")
        with pytest.raises(DataError, match=r"24x16 pixels .*photo\.png is 16x24; .* on the stored pixels"):
            read_mask(label, None, 2, None, read_picture(photo)[1])


@pytest.mark.parametrize("size", [(HEIGHT, WIDTH - 1), (2 * HEIGHT, 2 * WIDTH), (WIDTH, HEIGHT), (48, 20)])
def test_a_mask_of_another_size_names_both_files_and_sizes(size: tuple[int, int], tmp_path: Path) -> None:
    photo, label = write(tmp_path, 1, "upright")
    Image.fromarray(np.zeros(size, np.uint8)).save(label)
    with pytest.raises(DataError) as caught:
        read_mask(label, (8, 8), 2, None, read_picture(photo)[1])
    for said in (str(label), f"{size[1]}x{size[0]}", str(photo), f"{WIDTH}x{HEIGHT}"):
        assert said in caught.value.message


def test_depth_may_be_of_another_resolution_but_not_of_another_shape(tmp_path: Path) -> None:
    photo, label = write(tmp_path, 1, "upright")
    info = read_picture(photo)[1]
    for size in ((HEIGHT // 2, WIDTH // 2), (3 * HEIGHT, 3 * WIDTH), (7, 10)):
        Image.fromarray(np.full(size, 1000, np.uint16)).save(label)
        assert (read_depth(label, (8, 8), 1000, None, info) == 1).all()
    Image.fromarray(np.full((48, 20), 1000, np.uint16)).save(label)
    with pytest.raises(DataError, match=r"20x48 pixels .* is 24x16"):
        read_depth(label, (8, 8), 1000, None, info)


def test_normals_of_a_turned_photo_point_where_they_did(tmp_path: Path) -> None:
    photo, label = write(tmp_path, 6, "upright")  # to be turned clockwise
    right = np.broadcast_to(np.array([255, 128, 128], np.uint8), (HEIGHT, WIDTH, 3))
    Image.fromarray(np.ascontiguousarray(right)).save(label)
    normals = read_normals(label, (8, 8), read_picture(photo)[1], "stored")
    down = np.array([0, 1, 0])[:, None, None]
    np.testing.assert_allclose(normals, np.broadcast_to(down, (3, 8, 8)), atol=0.01)  # 8 bits of coding


def test_one_bit_a_pixel_is_zero_and_one(tmp_path: Path) -> None:
    for suffix in (".png", ".tif", ".bmp"):
        path = tmp_path / f"a{suffix}"
        Image.fromarray(scene().astype(bool)).save(path)
        found = read_map(path)
        np.testing.assert_array_equal(found if suffix != ".bmp" else found // found.max(), scene())
    np.testing.assert_array_equal(read_mask(tmp_path / "a.png", None, 2), scene())


def write_set(root: Path, orientation: int, more: str = "") -> DataConfig:
    for folder in ("images", "seg"):
        (root / folder).mkdir(parents=True)
    for number in range(6):
        photo, label = write(root, orientation, "stored")
        photo.rename(root / "images" / f"{number}.png")
        label.rename(root / "seg" / f"{number}.png")
    (root / "dataset.yaml").write_text(f"targets:\n  seg: {{kind: mask, classes: [dark, bright]}}\n{more}")
    return DataConfig(name="folder", size=(20, 20), root=str(root), cache="none")


@pytest.mark.parametrize("orientation", [2, 3, 6])
def test_a_folder_says_once_what_its_maps_were_drawn_on(orientation: int, tmp_path: Path) -> None:
    problems = check_dataset(write_set(tmp_path / "a", orientation)).problems
    assert any("seg/0.png" in text and "images/0.png" in text for text in problems)
    said = write_set(tmp_path / "b", orientation, "drawn: stored\n")
    assert check_dataset(said).problems == []
    sample = load_dataset(said, "train")[0]
    agreed = (sample["image"][0] > 127) == (sample["targets"]["seg"] == 1)
    assert float(agreed.float().mean()) > 0.9
