"""Decoding is robust and says which file is at fault; normalization inverts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from compactmtl.data.base import Preprocessing
from compactmtl.data.images import denormalize, normalize, read_image
from compactmtl.errors import DataError


def gradient(height: int = 8, width: int = 12) -> Image.Image:
    ramp = np.linspace(0, 255, height * width * 3).reshape(height, width, 3)
    return Image.fromarray(ramp.astype(np.uint8))


def test_pixels_come_back_in_channel_order(tmp_path: Path) -> None:
    gradient().save(tmp_path / "a.png")
    pixels = read_image(tmp_path / "a.png")
    assert pixels.shape == (3, 8, 12)
    np.testing.assert_array_equal(pixels.transpose(1, 2, 0), np.asarray(gradient()))


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "CMYK", "1", "I;16"])
def test_every_mode_becomes_rgb(mode: str, tmp_path: Path) -> None:
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    if mode == "I;16":
        Image.fromarray(np.zeros((8, 12), np.uint16)).save(path)
    else:
        gradient().convert(mode).save(path)
    pixels = read_image(path, (4, 6))
    assert pixels.shape == (3, 4, 6)
    assert pixels.dtype == np.uint8


def test_a_turned_photo_stands_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera lay on its side
    gradient().save(tmp_path / "a.jpg", exif=exif)
    assert read_image(tmp_path / "a.jpg").shape == (3, 12, 8)


def test_size_is_height_and_width(tmp_path: Path) -> None:
    gradient().save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png", (16, 6)).shape == (3, 16, 6)


@pytest.mark.parametrize("damage", ["text", "empty", "cut", "folder", "missing"])
def test_a_damaged_image_is_named(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "face.jpg"
    gradient(64, 64).save(path)
    match damage:
        case "text":
            path.write_text("not an image")
        case "empty":
            path.write_bytes(b"")
        case "cut":
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        case "folder":
            path.unlink()
            path.mkdir()
        case "missing":
            path.unlink()
    with pytest.raises(DataError) as caught:
        read_image(path)
    assert str(path) in caught.value.message
    assert caught.value.hint


def test_normalization_inverts() -> None:
    images = torch.randint(0, 256, (2, 3, 5, 7), dtype=torch.uint8)
    facts = Preprocessing((5, 7))
    assert torch.equal(denormalize(normalize(images, facts), facts), images)


def test_normalization_is_the_documented_formula() -> None:
    facts = Preprocessing((1, 1))
    got = normalize(torch.full((1, 3, 1, 1), 51, dtype=torch.uint8), facts).flatten()
    want = [(0.2 - mean) / std for mean, std in zip(facts.mean, facts.std, strict=True)]
    torch.testing.assert_close(got, torch.tensor(want))
