"""Images of any number of channels: gray, RGBA, TIFF of bands, .npy arrays, and what is refused."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from compactmtl.data.bands import read_pixels
from compactmtl.data.fit import Fit, as_rgb
from compactmtl.data.images import read_picture
from compactmtl.errors import DataError
from compactmtl.export.in_bundle import picture
from compactmtl.export.in_bundle import pixels as program

RNG = np.random.default_rng(0)
COLORS = RNG.integers(0, 256, (6, 9, 4), np.uint8)
BANDS = RNG.integers(0, 256, (6, 9, 5), np.uint8)
KINDS = {1: "gray", 3: "RGB", 4: "RGBA"}


def read(path: Path, channels: int, limits: tuple[float, float] | None = None) -> np.ndarray:
    """As (H, W, channels); the program of a bundle has to read the same."""
    pixels, info = read_pixels(path, channels, limits=limits)
    assert pixels.dtype == np.uint8 and pixels.shape == (channels, *info.size)
    want = {"colors": KINDS.get(channels, "bands"), "channels": channels, "values": limits}
    np.testing.assert_array_equal(program.read(path, want).transpose(2, 0, 1), pixels)
    return pixels.transpose(1, 2, 0)


def refused(path: Path, channels: int, match: str) -> None:
    with pytest.raises(DataError, match=match) as caught:
        read_pixels(path, channels)
    assert path.name in caught.value.message and caught.value.hint
    with pytest.raises(ValueError) as told:
        program.read(path, {"colors": KINDS.get(channels, "bands"), "channels": channels, "values": None})
    assert str(told.value) == caught.value.message


def save(path: Path, values: np.ndarray, **options: Any) -> Path:
    if path.suffix == ".npy":
        np.save(path, values)
    elif path.suffix == ".tif":
        tifffile.imwrite(path, values, **options)
    else:
        Image.fromarray(values).save(path, **options)
    return path


def test_gray_is_kept_and_colors_become_gray_as_pillow_weighs_them(tmp_path: Path) -> None:
    gray = save(tmp_path / "gray.png", COLORS[..., 0])
    np.testing.assert_array_equal(read(gray, 1)[..., 0], COLORS[..., 0])
    color = save(tmp_path / "color.png", COLORS[..., :3])
    exact = COLORS[..., :3] @ np.array([0.299, 0.587, 0.114])
    assert np.abs(read(color, 1)[..., 0] - exact).max() <= 1  # Pillow's integers
    assert read(gray, 3).shape[-1] == 3


def test_sixteen_bits_of_gray_are_divided_by_257(tmp_path: Path) -> None:
    deep = np.linspace(0, 65535, 54).round().astype(np.uint16).reshape(6, 9)
    expected = np.floor(deep / 257 + 0.5)
    for name in ("deep.png", "deep.tif", "deep.npy"):
        np.testing.assert_array_equal(read(save(tmp_path / name, deep), 1)[..., 0], expected, name)


def test_rgba_keeps_alpha_and_is_asked_for(tmp_path: Path) -> None:
    np.testing.assert_array_equal(read(save(tmp_path / "a.png", COLORS), 4), COLORS)
    np.testing.assert_array_equal(read(save(tmp_path / "a.tif", COLORS, photometric="rgb"), 4), COLORS)
    for name, values in (("rgb.png", COLORS[..., :3]), ("l.png", COLORS[..., 0])):
        refused(save(tmp_path / name, values), 4, "no fourth channel")
    palette = Image.fromarray(COLORS[..., :3]).convert("P")
    palette.save(tmp_path / "clear.png", transparency=bytes(range(256)))
    assert len(np.unique(read(tmp_path / "clear.png", 4)[..., 3])) > 1


@pytest.mark.parametrize(
    "options",
    [
        {"photometric": "minisblack", "planarconfig": "contig"},
        {"photometric": "minisblack", "planarconfig": "separate"},
        {"photometric": "minisblack"},
    ],
)
def test_bands_of_a_tiff_come_in_their_order(tmp_path: Path, options: dict[str, Any]) -> None:
    separate = options.get("planarconfig") != "contig"  # of the last, pages one behind another
    values = BANDS.transpose(2, 0, 1) if separate else BANDS
    path = save(tmp_path / "bands.tif", np.ascontiguousarray(values), **options)
    np.testing.assert_array_equal(read(path, 5), BANDS)
    refused(path, 6, "shape")


def test_arrays_have_their_channels_last_or_first(tmp_path: Path) -> None:
    np.testing.assert_array_equal(read(save(tmp_path / "last.npy", BANDS), 5), BANDS)
    first = np.ascontiguousarray(BANDS.transpose(2, 0, 1))
    np.testing.assert_array_equal(read(save(tmp_path / "first.npy", first), 5), BANDS)
    square = RNG.integers(0, 256, (5, 7, 5), np.uint8)
    np.testing.assert_array_equal(read(save(tmp_path / "both.npy", square), 5), square)
    deep = BANDS.astype(np.uint16) * 257
    np.testing.assert_array_equal(read(save(tmp_path / "deep.npy", deep), 5), BANDS)


def test_what_says_no_range_or_is_no_image_is_refused(tmp_path: Path) -> None:
    refused(save(tmp_path / "real.npy", BANDS.astype(np.float32)), 5, "float32.*no range")
    refused(save(tmp_path / "real.tif", BANDS.astype(np.float32), planarconfig="contig"), 5, "float32")
    refused(save(tmp_path / "five.png", COLORS), 5, "5 channels")
    refused(tmp_path / "none.npy", 5, "no such file")
    (tmp_path / "text.npy").write_text("no array")
    refused(tmp_path / "text.npy", 5, "not a whole")
    path = save(tmp_path / "cut.tif", BANDS, photometric="minisblack", planarconfig="contig")
    path.write_bytes(path.read_bytes()[:150])
    refused(path, 5, "not a whole image")
    np.save(tmp_path / "object.npy", np.array([{}], object), allow_pickle=True)
    refused(tmp_path / "object.npy", 1, "not a whole")


def test_a_range_says_what_becomes_black_and_white(tmp_path: Path) -> None:
    deep = np.array([[0, 7000, 7001, 8000, 9000, 65535]], np.uint16)
    expected = [0, 0, 0, 128, 255, 255]  # 7001 is 0.1275 of a step
    for name in ("deep.png", "deep.tif", "deep.npy"):
        path = save(tmp_path / name, deep)
        assert read(path, 1, (7000, 9000)).ravel().tolist() == expected, name
    real = np.array([[-1.0, 0.0, 0.25, 0.5, 1.0, np.nan, np.inf, -np.inf]], np.float32)
    expected = [0, 0, 128, 255, 255, 0, 255, 0]
    for name in ("real.tif", "real.npy"):
        assert read(save(tmp_path / name, real), 1, (0.0, 0.5)).ravel().tolist() == expected, name
    five = read(save(tmp_path / "five.npy", np.repeat(real[..., None], 5, -1)), 5, (0.0, 0.5))
    assert (five == np.array(expected)[:, None]).all()
    signed = np.array([[-40, 0, 40]], np.int16)  # degrees
    assert read(save(tmp_path / "signed.npy", signed), 1, (-40, 40)).ravel().tolist() == [0, 128, 255]
    shown = save(tmp_path / "shown.png", COLORS[..., 0])  # 8 bits stay
    np.testing.assert_array_equal(read(shown, 1, (7000, 9000))[..., 0], COLORS[..., 0])


def test_a_range_is_of_all_bits_of_colors(tmp_path: Path) -> None:
    deep = COLORS[..., :3].astype(np.uint16) * 30
    expected = np.floor(deep / 7650 * 255 + 0.5)
    path = save(tmp_path / "deep.tif", deep, photometric="rgb")
    np.testing.assert_array_equal(read(path, 3, (0, 7650)), expected)
    assert read(path, 3).max() <= 30  # without a range as Pillow gives it
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in deep)
    png = b"\x89PNG\r\n\x1a\n"
    for kind, content in (
        (b"IHDR", struct.pack(">IIBBBBB", 9, 6, 16, 2, 0, 0, 0)), (b"IDAT", zlib.compress(rows)), (b"IEND", b""),
    ):  # fmt: skip
        png += (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )
    (tmp_path / "deep.png").write_bytes(png)
    assert read(tmp_path / "deep.png", 3).max() <= 30
    with pytest.raises(DataError, match=r"deep\.png: holds colors of 16 bits"):
        read_pixels(tmp_path / "deep.png", 3, limits=(0, 7650))
    with pytest.raises(ValueError, match="upper 8"):
        program.read(tmp_path / "deep.png", {"colors": "RGB", "channels": 3, "values": (0, 7650)})


@pytest.mark.parametrize("how", ["stretch", "letterbox", "crop"])
@pytest.mark.parametrize("channels", [1, 3, 4, 5])
def test_a_bundles_program_prepares_the_same_input(tmp_path: Path, channels: int, how: Any) -> None:
    name = "it.npy" if channels == 5 else "it.png"
    values = {1: COLORS[..., 0], 3: COLORS[..., :3], 4: COLORS, 5: BANDS}[channels]
    path = save(tmp_path / name, values)
    fit = Fit((8, 7), how, channels, tuple(range(20, 20 + channels)))
    expected, _ = read_picture(path, fit)
    resize = {"height": 8, "width": 7, "how": how, "fill": list(fit.fill) if how == "letterbox" else None}
    want = {
        "colors": KINDS.get(channels, "bands"), "channels": channels, "values": None, "resize": resize, "normalize": None,
        "layout": "NCHW", "shape": (1, channels, 8, 7), "dtype": "uint8",
    }  # fmt: skip
    np.testing.assert_array_equal(picture.prepare(program.read(path, want), want)[0], expected)


def test_bands_are_shown_as_colors() -> None:
    bands = BANDS.transpose(2, 0, 1)
    np.testing.assert_array_equal(as_rgb(bands), bands[:3])
    np.testing.assert_array_equal(as_rgb(bands[:2]), np.stack([bands[0]] * 3))


@pytest.mark.parametrize("kind", [">u2", "<u2"])
def test_arrays_of_another_machine_are_read_alike_here_and_by_the_program_of_a_bundle(
    tmp_path: Path, kind: str
) -> None:
    deep = (BANDS.astype(np.uint16) * 257).astype(kind)
    np.testing.assert_array_equal(read(save(tmp_path / "deep.npy", deep), 5), BANDS)
    half = np.floor(BANDS / 2 + 0.5)  # twice the range, rounded half up
    np.testing.assert_array_equal(read(save(tmp_path / "deep.npy", deep), 5, (0, 2 * 65535)), half)
