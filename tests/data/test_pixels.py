"""Every kind of picture file follows its stated rule or is refused by name, and all eight orientations come upright."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from compactmtl.data.images import read_image, read_picture
from compactmtl.data.maps import read_map, turned_vectors
from compactmtl.data.pixels import IMAGE_SUFFIXES, turned
from compactmtl.errors import DataError

ORIENTATIONS = range(1, 9)


def exif(orientation: int) -> Image.Exif:
    found = Image.Exif()
    found[0x0112] = orientation
    return found


def colors(height: int = 6, width: int = 9) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".pgm"])
def test_sixteen_bits_of_gray_are_scaled_by_257(suffix: str, tmp_path: Path) -> None:
    gray = np.linspace(0, 65535, 48 * 32).astype(np.uint16).reshape(32, 48)
    Image.fromarray(gray).save(tmp_path / f"a{suffix}")
    pixels = read_image(tmp_path / f"a{suffix}")
    assert (pixels == pixels[0]).all()
    assert np.abs(pixels[0] - gray / 257).max() <= 0.5


def test_sixteen_bits_of_big_endian_tiff_are_the_same(tmp_path: Path) -> None:
    gray = (np.arange(12 * 8) * 600).astype(np.uint16).reshape(8, 12)
    Image.frombytes("I;16B", (12, 8), gray.astype(">u2").tobytes()).save(tmp_path / "a.tif")
    assert np.abs(read_image(tmp_path / "a.tif")[1] - gray / 257).max() <= 0.5


@pytest.mark.parametrize(
    ("mode", "suffix", "want"),
    [
        ("1", ".png", lambda c: np.asarray(Image.fromarray(c).convert("1").convert("RGB"))),
        ("L", ".png", lambda c: np.asarray(Image.fromarray(c).convert("L").convert("RGB"))),
        ("RGBA", ".png", lambda c: c),
        ("LA", ".png", lambda c: np.asarray(Image.fromarray(c).convert("L").convert("RGB"))),
        ("P", ".png", lambda c: np.asarray(Image.fromarray(c).convert("P").convert("RGB"))),
        ("P", ".bmp", lambda c: np.asarray(Image.fromarray(c).convert("P").convert("RGB"))),
        ("CMYK", ".tif", lambda c: c),
    ],
)
def test_other_modes_show_the_colors_that_are_stored(mode, suffix, want, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    drawn = Image.fromarray(colors()).convert(mode)
    if mode in ("RGBA", "LA"):
        drawn.putalpha(Image.fromarray(np.zeros((6, 9), np.uint8)))  # transparent, and yet its color counts
    drawn.save(tmp_path / f"a{suffix}")
    np.testing.assert_array_equal(read_image(tmp_path / f"a{suffix}").transpose(1, 2, 0), want(colors()))


def test_transparency_of_a_palette_changes_no_color(tmp_path: Path) -> None:
    palette = Image.fromarray(colors()).convert("P")
    palette.save(tmp_path / "plain.png")
    palette.save(tmp_path / "clear.png", transparency=bytes(range(256)))
    np.testing.assert_array_equal(read_image(tmp_path / "plain.png"), read_image(tmp_path / "clear.png"))


@pytest.mark.parametrize("mode", ["F", "I", "LAB"])
def test_a_mode_without_a_range_is_refused_by_name(mode: str, tmp_path: Path) -> None:
    Image.new(mode, (9, 6)).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match=rf"a\.tif: pixels of Pillow's mode '{mode}'") as caught:
        read_image(tmp_path / "a.tif")
    assert "16 bits" in caught.value.hint


def test_a_file_of_several_pictures_is_refused(tmp_path: Path) -> None:
    page = Image.fromarray(colors())
    other = Image.fromarray(255 - colors())
    for name in ("a.tif", "a.gif"):
        page.save(tmp_path / name, save_all=True, append_images=[other])
        with pytest.raises(DataError, match="holds 2 pictures"):
            read_image(tmp_path / name)
        with pytest.raises(DataError, match="holds 2 pictures"):
            read_map(tmp_path / name)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".webp"])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_photo_of_every_orientation_is_shown_as_a_viewer_shows_it(
    orientation: int, suffix: str, tmp_path: Path
) -> None:
    path = tmp_path / f"a{suffix}"
    Image.fromarray(colors()).save(path, exif=exif(orientation))
    with Image.open(path) as image:
        want = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    found, info = read_picture(path)
    np.testing.assert_array_equal(found.transpose(1, 2, 0), want)
    assert info.size == want.shape[:2] == ((9, 6) if orientation >= 5 else (6, 9))
    assert info.orientation == orientation


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_uncompressed_gray_tiff_of_every_orientation_keeps_its_pixels(
    orientation: int, tmp_path: Path
) -> None:
    for number, gray in enumerate((colors()[..., 0], colors()[..., 0].astype(np.uint16) * 257)):
        path = tmp_path / f"{number}.tif"
        Image.fromarray(gray).save(path, exif=exif(orientation))
        want = turned(gray, orientation)
        np.testing.assert_array_equal(read_map(path), want)
        np.testing.assert_array_equal(read_image(path)[0], want if number == 0 else want // 257)


@given(st.sampled_from(ORIENTATIONS), st.integers(3, 7), st.integers(3, 7), st.integers(0, 99))
def test_vectors_turn_with_their_pixels(orientation: int, height: int, width: int, seed: int) -> None:
    """The gradient of a turned map is the turned gradient of the map."""

    def gradient(values: np.ndarray) -> np.ndarray:
        down, along = np.gradient(values)
        return np.stack([along, down, values])

    heights = np.random.default_rng(seed).random((height, width))
    carried = np.stack([turned(channel, orientation) for channel in gradient(heights)])
    np.testing.assert_allclose(
        turned_vectors(carried, orientation), gradient(turned(heights, orientation)), atol=1e-12
    )


def test_damage_anywhere_in_a_file_is_the_files_fault(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for suffix in (".png", ".jpg", ".tif", ".gif", ".bmp", ".webp"):
        path = tmp_path / f"a{suffix}"
        Image.fromarray(colors(24, 24)).save(path)
        whole = path.read_bytes()
        for _ in range(30):
            broken = bytearray(whole[: int(rng.integers(1, len(whole) + 1))])
            for place in rng.integers(0, len(broken), 4):
                broken[place] = int(rng.integers(0, 256))
            path.write_bytes(bytes(broken))
            with suppress(DataError):  # and no other exception
                read_image(path)


def test_endings_are_those_of_single_pictures() -> None:
    Image.init()
    assert set(IMAGE_SUFFIXES) <= set(Image.registered_extensions())
    assert not {".pdf", ".eps", ".mpg", ".wmf"} & set(IMAGE_SUFFIXES)
