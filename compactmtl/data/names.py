"""Which files of a folder are images, what their names are, and what a name that is none was likely meant to be."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path, PurePosixPath

from compactmtl.data.bands import BAND_SUFFIXES
from compactmtl.errors import DataError

_LEFT_BY_SYSTEMS = ("thumbs.db", "desktop.ini", "icon\r", "__macosx", "@eadir", "$recycle.bin")
_FEW = 5000  # names among which a similar one is looked for


@dataclass(frozen=True)
class Listing:
    """Files below a folder by their path in it without the ending, and those of other endings."""

    folder: Path
    files: Mapping[str, Path]
    others: tuple[Path, ...] = ()


def name_of(word: str) -> str:
    """The name of an image that a table or list gives as a path, with the ending of an image or without."""
    word = unicodedata.normalize("NFC", word)
    path = PurePosixPath(word)
    return path.with_suffix("").as_posix() if path.suffix.lower() in BAND_SUFFIXES else word


def list_files(folder: Path, suffixes: Collection[str], mend: str) -> Listing:
    """The files below `folder` that end in `suffixes`, links and linked folders followed, hidden ones apart.

    Names are compared as text: a name that another system wrote in composed or decomposed letters is one name.
    Raises DataError where there is no such folder, or where two files have one name.
    """
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "no such folder"
        raise DataError(f"{folder}: {what}", mend)
    files: dict[str, Path] = {}
    others: list[Path] = []
    for path in sorted(_walk(folder)):
        if path.suffix.lower() not in suffixes:
            others.append(path)
            continue
        name = unicodedata.normalize("NFC", path.relative_to(folder).with_suffix("").as_posix())
        if name in files:
            raise DataError(
                f"{path}: {files[name].name} has the same name, so which of the two is meant?",
                "rename one of the two, or take it out",
            )
        files[name] = path
    return Listing(folder, files, tuple(others))


def _walk(folder: Path) -> Iterator[Path]:
    for here, folders, files in os.walk(folder, followlinks=True):
        place = Path(here)
        folders[:] = [name for name in folders if not _hidden(name) and not _leads_up(place / name)]
        yield from (place / name for name in files if not _hidden(name))


def _leads_up(folder: Path) -> bool:
    """Whether it is a link to a folder above itself, which would be walked without an end."""
    return folder.is_symlink() and folder.parent.resolve().is_relative_to(folder.resolve())


def _hidden(name: str) -> bool:
    """Whether a system or program left it there: .DS_Store, ._photo.jpg, Thumbs.db."""
    return name.startswith(".") or name.lower() in _LEFT_BY_SYSTEMS


class Names:
    """The names of images, and how others write them."""

    def __init__(self, names: Iterable[str], folder: Path) -> None:
        self._names = dict.fromkeys(names)
        self._folder = folder  # where the images lie

    def find(self, name: str) -> str | None:
        """The image of this name, or of this file name alone where one folder has it.

        Raises DataError, without a place, where several folders have it.
        """
        if name in self._names:
            return name
        several = self._by_file.get(name, ())
        if len(several) > 1:
            raise DataError(
                f"{name!r} names {len(several)} images: {', '.join(several[:3])}",
                "give the folder with the name",
            )
        return several[0] if several else None

    def meant(self, word: str) -> str:
        """What a name that no image has was likely meant to be, as a hint; empty where nothing comes near."""
        name = name_of(word.replace("\\", "/"))
        why = ["write / between folders"] if "\\" in word else []
        parts = [part for part in name.split("/") if part]
        for start in range(len(parts)):
            tail = "/".join(parts[start:])
            if near := self._near(tail):
                if tail != name:
                    why.append(f"leave out {name[: len(name) - len(tail)]!r}")
                return " ".join([f"did you mean {near[0]!r}?", "; ".join([*why, *near[1]])]).rstrip()
        # Two numbers are never alike: the image of one is not that of the other.
        if len(self._names) <= _FEW and not name.isdecimal():
            within = [one for one in self._names if name.startswith(one) or name.endswith(one)]
            if close := sorted(within, key=len)[-1:] or get_close_matches(name, list(self._names), 1):
                return f"did you mean {close[0]!r}? names have to be equal"
        return f"an image is named by its path in {self._folder.name}/, such as {next(iter(self._names))!r}"

    def _near(self, name: str) -> tuple[str, list[str]] | None:
        if name in self._names:
            return name, []
        if len(several := self._by_file.get(name, ())) == 1:
            return several[0], []
        if len(numbers := self._by_number.get(_number(name) or "", ())) == 1:
            return numbers[0], ["the zeros in front were lost, as spreadsheets do: keep the column as text"]
        if len(folded := self._by_letters.get(name.casefold(), ())) == 1:
            return folded[0], ["capital and small letters differ"]
        return None

    @cached_property
    def _by_file(self) -> Mapping[str, Sequence[str]]:
        return _grouped((name.rpartition("/")[2], name) for name in self._names if "/" in name)

    @cached_property
    def _by_number(self) -> Mapping[str, Sequence[str]]:
        return _grouped((number, name) for name in self._names if (number := _number(name)))

    @cached_property
    def _by_letters(self) -> Mapping[str, Sequence[str]]:
        return _grouped((name.casefold(), name) for name in self._names)


def _number(name: str) -> str | None:
    """A name that is a number without the zeros in front, in its folder; a spreadsheet may have written 7 as 7.0."""
    folder, slash, last = name.removesuffix(".0").rpartition("/")
    return f"{folder}{slash}{int(last)}" if last.isascii() and last.isdecimal() else None


def _grouped(pairs: Iterator[tuple[str, str]]) -> Mapping[str, Sequence[str]]:
    groups: dict[str, list[str]] = {}
    for key, name in pairs:
        groups.setdefault(key, []).append(name)
    return groups
