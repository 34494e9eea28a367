"""Tables: what a cell may hold, how a file may be written, and which image a row is of."""

from __future__ import annotations

import math
import unicodedata
from pathlib import Path

import pytest
from pydantic import ValidationError

from compactmtl.data.description import FolderTarget
from compactmtl.data.names import Names, list_files, name_of
from compactmtl.data.pixels import IMAGE_SUFFIXES
from compactmtl.data.tables import UNKNOWN_CLASS, Table, read_table
from compactmtl.errors import DataError

WEATHER = FolderTarget(kind="class", classes=("sun", "rain"))
RATING = FolderTarget(kind="class", classes=("1", "2", "3"))
HEIGHT = FolderTarget(kind="scalar")
THINGS = FolderTarget(kind="multilabel", classes=("ball", "box"))
IMAGES = [f"{number:03d}" for number in range(10)]


def table(tmp_path: Path, text: str | bytes, target: FolderTarget = WEATHER) -> Table:
    path = tmp_path / "w.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return read_table(path, target)


def values(read: Table) -> list[float]:
    return [row.values[0] for row in read.rows.values()]


def matched(read: Table, images: list[str] = IMAGES) -> tuple[dict[str, tuple[float, ...]], list[str]]:
    return read.matched(images, Path("images"))


def test_names_positions_and_unknown_classes(tmp_path: Path) -> None:
    found = table(tmp_path, "image,value\na,sun\nb,1\nc,\nd, rain \n")
    assert values(found) == [0, 1, UNKNOWN_CLASS, 1]


def test_where_a_class_is_named_by_a_number_a_number_is_a_name(tmp_path: Path) -> None:
    assert values(table(tmp_path, "image,value\na,1\nb,3\n", RATING)) == [0, 2]
    with pytest.raises(DataError, match=r"w\.csv:3: no class '0'") as caught:
        table(tmp_path, "image,value\na,1\nb,0\n", RATING)
    assert "never a position" in caught.value.hint


@pytest.mark.parametrize("target", [RATING, WEATHER])
def test_an_ignore_index_is_an_unknown_class(target: FolderTarget, tmp_path: Path) -> None:
    ignoring = target.model_copy(update={"ignore_index": 255})
    first = target.classes[0]
    assert values(table(tmp_path, f"image,value\na,{first}\nb,255\n", ignoring)) == [0, UNKNOWN_CLASS]


def test_an_ignore_index_cannot_be_a_class() -> None:
    assert FolderTarget(kind="class", classes=("1", "2"), ignore_index=0).ignore_index == 0
    for classes, index in ((("1", "2"), 2), (("sun", "rain"), 1)):
        with pytest.raises(ValidationError, match="is one of the classes"):
            FolderTarget(kind="class", classes=classes, ignore_index=index)


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "depth", "ignore_index": 0},
        {"kind": "scalar", "classes": ("a", "b")},
        {"kind": "class", "classes": ("a", "b"), "units_per_metre": 10},
        {"kind": "depth", "unit": "mm"},
        {"kind": "class", "classes": ("a", "")},
    ],
)
def test_a_key_that_would_do_nothing_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        FolderTarget.model_validate(wrong)


@pytest.mark.parametrize(
    ("cell", "hint"),
    [
        ("Sun", "did you mean 'sun'"),
        ("snow", "the classes are sun, rain"),
        ("1.0", "write 1"),
        ("2", "sun, rain"),
    ],
)
def test_a_class_that_is_none_says_what_was_meant(cell: str, hint: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"w\.csv:2: no class '{cell}'") as caught:
        table(tmp_path, f"image,value\na,{cell}\n")
    assert hint in caught.value.hint


@pytest.mark.parametrize("cell", ["nan", "inf", "1e999", "1_000", "12 cm", "١"])
def test_a_scalar_is_a_finite_number_or_empty(cell: str, tmp_path: Path) -> None:
    known, unknown = values(table(tmp_path, "image,value\na,-1.5e2\nb,\n", HEIGHT))
    assert known == -150 and math.isnan(unknown)
    with pytest.raises(DataError, match=r"w\.csv:2: .* is not a number"):
        table(tmp_path, f"image,value\na,{cell}\n", HEIGHT)


@pytest.mark.parametrize(
    "text",
    [
        b"\xef\xbb\xbfimage,value\r\na,sun\r\nb,rain\r\n",
        b"image;value\na;sun\nb;rain\n",
        b"image\tvalue\na\tsun\nb\train",
        b'"image","value"\n"a","sun"\n\n"b","rain"\n , \n',
        b" image , value \n a , sun \n b , rain \n",
        b"image,value\ra,sun\rb,rain\r",
    ],
    ids=["BOM and CRLF", "semicolons", "tabs", "quotes and empty lines", "spaces", "CR"],
)
def test_spreadsheets_write_tables_in_many_ways(text: bytes, tmp_path: Path) -> None:
    found = table(tmp_path, text)
    assert list(found.rows) == ["a", "b"] and values(found) == [0, 1]


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("image,value\n", "has no rows"),
        ("", "columns none"),
        ("image,value\n,sun\n", ":2: the row names no image"),
        ("image,value\na,sun\na.png,sun\n", ":3: image a.png is listed twice, in line 2 too"),
        ('image,value\n"a\nb",sun\nc,snow\n', ":4: no class 'snow'"),
        ('image,value\na,"sun\n', "not a row of a CSV file"),
    ],
)
def test_what_does_not_parse_is_named_by_line(text: str, match: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=match):
        table(tmp_path, text)


def test_a_table_in_another_encoding_says_so(tmp_path: Path) -> None:
    for text in ("image,value\ncafé,sun\n".encode("latin-1"), "image,value\na,sun\n".encode("utf-16")):
        with pytest.raises(DataError, match="not UTF-8 text") as caught:
            table(tmp_path, text)
        assert "UTF-8" in caught.value.hint


@pytest.mark.parametrize(
    ("write", "hint"),
    [
        (lambda n: f"images/{n:03d}.jpg", "leave out 'images/'"),
        (lambda n: f"/home/me/images/{n:03d}.jpg", "leave out '/home/me/images/'"),
        (lambda n: f"images\\{n:03d}.jpg", "write / between folders; leave out 'images/'"),
        (lambda n: f"{n}", "the zeros in front were lost"),
        (lambda n: f"{n}.jpg", "the zeros in front were lost"),
        (lambda n: f"{n}.0", "the zeros in front were lost"),
    ],
)
def test_a_table_that_names_no_image_says_what_was_meant(write, hint: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    rows = "".join(f"{write(n)},sun\n" for n in range(10))
    with pytest.raises(DataError, match=r"w\.csv:2: no image .* none of the table's 10 rows") as caught:
        matched(table(tmp_path, f"image,value\n{rows}"))
    assert "did you mean '000'?" in caught.value.hint and hint in caught.value.hint


def test_capital_letters_and_misspellings_are_hinted_at() -> None:
    names = Names(["Street_a", "street_b", "kitchen/one"], Path("images"))
    assert "did you mean 'Street_a'? capital" in names.meant("street_A.jpg")
    assert names.meant("streetb").startswith("did you mean 'street_b'?")
    assert "did you mean 'street_b'?" in names.meant("street_b_mask.png")
    assert "'kitchen/one'" in names.meant("kitchen\\one.png")
    assert "such as" in Names(["007"], Path("images")).meant("123")


def test_rows_without_an_image_and_images_without_a_row_are_noted_with_the_first(tmp_path: Path) -> None:
    rows = "".join(f"{'img' if n < 3 else ''}{n:03d}.jpg,sun\n" for n in range(9))
    found, notes = matched(table(tmp_path, f"image,value\n{rows}"))
    assert sorted(found) == IMAGES[3:9]
    assert "w.csv:2: no image 'img000.jpg'; 6 of the table's 9 rows name an image" in notes[0]
    assert notes[1] == "w.csv: 4 images have no row: 000, 001, 002, ..."


def test_a_file_name_alone_serves_where_one_folder_has_it(tmp_path: Path) -> None:
    images = ["train/a", "train/b", "val/b"]
    found, _ = matched(table(tmp_path, "image,value\na,sun\ntrain/b,rain\nval/b,sun\n"), images)
    assert found == {"train/a": (0,), "train/b": (1,), "val/b": (0,)}
    with pytest.raises(DataError, match=r"w\.csv:3: 'b' names 2 images: train/b, val/b"):
        matched(table(tmp_path, "image,value\na,sun\nb,rain\n"), images)
    with pytest.raises(DataError, match=r"w\.csv:3: image train/a is listed twice, in line 2 too"):
        matched(table(tmp_path, "image,value\na,sun\ntrain/a,sun\n"), images)


def test_a_name_is_one_in_composed_and_decomposed_letters(tmp_path: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    (tmp_path / f"{decomposed}.jpg").write_bytes(b"")
    listing = list_files(tmp_path, IMAGE_SUFFIXES, "")
    assert list(listing.files) == [composed] == [name_of(f"{decomposed}.JPG")]
    (tmp_path / f"{composed}.jpg").write_bytes(b"")
    with pytest.raises(DataError, match="has the same name"):
        list_files(tmp_path, IMAGE_SUFFIXES, "")


def test_a_listing_follows_links_passes_over_what_systems_leave_and_counts_the_rest(tmp_path: Path) -> None:
    images, elsewhere = tmp_path / "images", tmp_path / "elsewhere"
    for folder in (images, elsewhere, images / ".hidden", images / "__MACOSX"):
        folder.mkdir()
    for name in ("a.JPG", "b.tiff", "c.webp", ".DS_Store", "Thumbs.db", "._a.jpg", "notes.txt", "d.heic"):
        (images / name).write_bytes(b"")
    (images / ".hidden" / "x.jpg").write_bytes(b"")
    (images / "__MACOSX" / "y.jpg").write_bytes(b"")
    (elsewhere / "z.bmp").write_bytes(b"")
    (images / "linked").symlink_to(elsewhere)
    (images / "around").symlink_to(images)
    (images / "link.png").symlink_to(images / "a.JPG")
    listing = list_files(images, IMAGE_SUFFIXES, "")
    assert sorted(listing.files) == ["a", "b", "c", "link", "linked/z"]
    assert [path.name for path in listing.others] == ["d.heic", "notes.txt"]


def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    for name in ("a.jpg", "a.png"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(DataError, match=r"a\.png: a\.jpg has the same name") as caught:
        list_files(tmp_path, IMAGE_SUFFIXES, "")
    assert caught.value.hint
