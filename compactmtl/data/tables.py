"""Tables of labels: a CSV file with a row an image, and which images its rows are of."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from compactmtl.data.description import FolderTarget
from compactmtl.data.files import some
from compactmtl.data.names import Names, name_of
from compactmtl.errors import DataError

UNKNOWN_CLASS = -100  # torch's own default for a class that counts nowhere
_MEND = "see docs/how-to/own-data.md for the folder format"
_SEPARATORS = (",", ";", "\t")
_WHOLE = re.compile(r"[0-9]+")
_FLOAT_OF_WHOLE = re.compile(r"[0-9]+\.0+")
_NUMBER = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")

Values = tuple[float, ...]


@dataclass(frozen=True)
class Row:
    """One line of a table: the image as it is written there, and its label as numbers."""

    line: int
    image: str
    values: Values


@dataclass(frozen=True)
class Table:
    """The rows of a CSV file by image name."""

    path: Path
    rows: Mapping[str, Row]

    def matched(self, images: Collection[str], folder: Path) -> tuple[dict[str, Values], list[str]]:
        """The label of each image that has a row, and notes on rows without an image and images without a row.

        Raises DataError, naming the line, where no row is of an image, two are of one, or one may be of several.
        """
        names = Names(images, folder)
        rows: dict[str, Row] = {}
        strays: list[Row] = []
        for name, row in self.rows.items():
            try:
                image = names.find(name)
            except DataError as error:
                raise DataError(f"{self.path}:{row.line}: {error.message}", error.hint) from None
            if image is None:
                strays.append(row)
            elif image in rows:
                raise DataError(
                    f"{self.path}:{row.line}: image {row.image} is listed twice, in line {rows[image].line} too",
                    "take one of the lines out",
                )
            else:
                rows[image] = row
        if strays:
            count = "none" if not rows else f"{len(self.rows) - len(strays)}"
            said = (
                f"{self.path}:{strays[0].line}: no image {strays[0].image!r}; {count} of the table's {len(self.rows)} "
                "rows name an image"
            )
            hint = names.meant(strays[0].image)
            if not rows:
                raise DataError(said, hint)
            return _values(rows), [f"{said}; {hint}", *self._without(images, rows)]
        return _values(rows), self._without(images, rows)

    def _without(self, images: Collection[str], labeled: Collection[str]) -> list[str]:
        bare = [image for image in images if image not in labeled]
        return [f"{self.path.name}: {len(bare)} images have no row: {some(bare)}"] if bare else []


def unknown_label(target: FolderTarget) -> Values:
    """What stands for a label that is not there."""
    if target.kind == "multilabel":
        return (-1.0,) * len(target.classes)
    return (float(UNKNOWN_CLASS) if target.kind == "class" else math.nan,)


def is_known(target: FolderTarget, values: Values) -> bool:
    """Whether an image's label says anything."""
    if target.kind == "multilabel":
        return any(value >= 0 for value in values)
    return values[0] != UNKNOWN_CLASS if target.kind == "class" else math.isfinite(values[0])


def read_table(path: Path, target: FolderTarget) -> Table:
    """A CSV file with a header, its values separated by commas, semicolons or tabs.

    `image,value` holds a class's name (or its number, where no class is named by a number), or a scalar; a multi-label
    table has a column for each class, with 1 or 0. An empty cell is an unknown label, and so is a class's `ignore_index`.
    Raises DataError, naming the line, for what does not parse.
    """
    lines = _read_lines(path)
    header = ["image", *target.classes] if target.kind == "multilabel" else ["image", "value"]
    columns = lines[0][1] if lines else []
    if columns[:1] != ["image"] or sorted(columns) != sorted(header):
        raise DataError(
            f"{path}:1: columns {', '.join(columns) or 'none'}, expected {', '.join(header)}", _MEND
        )
    order = [columns.index(word) for word in header]
    rows: dict[str, Row] = {}
    for line, words in lines[1:]:
        if len(words) != len(header):
            raise DataError(f"{path}:{line}: {len(words)} values, expected {len(header)}", _MEND)
        image, *cells = (words[place] for place in order)
        name = name_of(image)
        if not name:
            raise DataError(
                f"{path}:{line}: the row names no image", "give the image's name, or take the row out"
            )
        if name in rows:
            raise DataError(
                f"{path}:{line}: image {image} is listed twice, in line {rows[name].line} too",
                "take one of the lines out",
            )
        rows[name] = Row(line, image, tuple(_value(cell, target, f"{path}:{line}") for cell in cells))
    if not rows:
        raise DataError(f"{path}: the table has no rows", "give a row an image, or take the target out")
    return Table(path, rows)


def read_numbers(path: Path, count: int) -> Table:
    """A CSV file with the column `image` and `count` further ones of any names, which hold an image's vector.

    Raises DataError, naming the line, for what does not parse; every number is needed.
    """
    lines = _read_lines(path)
    columns = lines[0][1] if lines else []
    if columns[:1] != ["image"] or len(columns) != count + 1:
        raise DataError(
            f"{path}:1: columns {', '.join(columns) or 'none'}, expected image and {count} more, one for each number",
            "name the columns as you like, or set channels of the input in data.inputs",
        )
    rows: dict[str, Row] = {}
    for line, (image, *cells) in lines[1:]:
        name = name_of(image)
        if len(cells) != count:
            raise DataError(f"{path}:{line}: {len(cells)} numbers, expected {count}", _MEND)
        if name in rows or not name:
            said = f"image {image} is listed twice" if name else "the row names no image"
            raise DataError(f"{path}:{line}: {said}", "give each image one row")
        if wrong := [cell for cell in cells if not _is_number(cell)]:
            raise DataError(
                f"{path}:{line}: {wrong[0]!r} is not a number", "give a finite value with a decimal point"
            )
        rows[name] = Row(line, image, tuple(map(float, cells)))
    return Table(path, rows)


def _is_number(word: str) -> bool:
    return _NUMBER.fullmatch(word) is not None and math.isfinite(float(word))


def _read_lines(path: Path) -> list[tuple[int, list[str]]]:
    """Line number and trimmed cells of every line that holds anything."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such table", _MEND) from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: not UTF-8 text ({error.reason} at byte {error.start})", "save it as CSV in UTF-8"
        ) from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})", "name a CSV file") from error
    first = next((line for line in text.splitlines() if line.strip()), "")
    # The header's first word is known, so what follows it separates.
    after = first.strip().lstrip('"').removeprefix("image").lstrip('" ')[:1]
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=after if after in _SEPARATORS else ",", strict=True
    )
    try:
        return [(reader.line_num, cells) for row in reader if any(cells := [word.strip() for word in row])]
    except csv.Error as error:
        raise DataError(
            f"{path}:{reader.line_num}: not a row of a CSV file ({error})", "mend the quotes"
        ) from error


def _value(word: str, target: FolderTarget, where: str) -> float:
    if target.kind == "class":
        return _class(word, target, where)
    if target.kind == "multilabel":
        if word not in ("1", "0", "-1", ""):
            floats = " (a spreadsheet wrote it as a real number)" if _FLOAT_OF_WHOLE.fullmatch(word) else ""
            raise DataError(
                f"{where}: {word!r} is neither 1, 0 nor empty{floats}", "1 present, 0 absent, empty unknown"
            )
        return float(word or -1)
    if not word:
        return math.nan
    if not _is_number(word):
        comma = "; a decimal point is needed, not a comma" if "," in word else ""
        raise DataError(
            f"{where}: {word!r} is not a number", f"give a finite value, or nothing for unknown{comma}"
        )
    return float(word)


def _class(word: str, target: FolderTarget, where: str) -> float:
    if not word or (target.ignore_index is not None and word == str(target.ignore_index)):
        return UNKNOWN_CLASS
    if word in target.classes:
        return float(target.classes.index(word))
    numbers = [name for name in target.classes if _NUMBER.fullmatch(name)]
    if _WHOLE.fullmatch(word) and not numbers and int(word) < len(target.classes):
        return float(word)
    hint = f"the classes are {_shown(target.classes)}; an empty cell is an unknown class"
    if numbers:
        hint = f"{hint}; as {numbers[0]!r} is a name, a number in the table is a name and never a position"
    if _FLOAT_OF_WHOLE.fullmatch(word):
        hint = f"{word!r} is a whole number that was written as a real one: write {word.partition('.')[0]}; {hint}"
    elif near := get_close_matches(word, target.classes, 1) or _same_letters(word, target.classes):
        hint = f"did you mean {near[0]!r}? {hint}"
    raise DataError(f"{where}: no class {word!r}", hint)


def _same_letters(word: str, classes: Sequence[str]) -> list[str]:
    return [name for name in classes if name.casefold() == word.casefold()]


def _shown(classes: Sequence[str]) -> str:
    return some(classes, 20)


def _values(rows: Mapping[str, Row]) -> dict[str, Values]:
    return {image: row.values for image, row in rows.items()}
