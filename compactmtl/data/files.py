"""What data sets of files share: the root folder, splits, the store of decoded samples, and the search for damage."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from compactmtl.artifacts.files import expanded
from compactmtl.config.recipe import DataConfig
from compactmtl.data.base import Split, image_fit
from compactmtl.data.cache import Arrays, content_key, hold_out, user_cache
from compactmtl.data.fingerprint import Sources, parts_of
from compactmtl.data.pixels import IMAGE_SUFFIXES
from compactmtl.data.stored import StoredDataset
from compactmtl.errors import DataError
from compactmtl.tasks.base import TargetSpec

_SHOWN = 10  # damaged files that a check names one by one


@dataclass(frozen=True)
class Record:
    """The files of one sample. `name` is the same wherever the data set lies, and decides the split."""

    name: str
    image: Path
    files: tuple[Path, ...] = ()  # those beside the image
    unknown: tuple[str, ...] = field(default=(), kw_only=True)  # targets of which it has no label


R = TypeVar("R", bound=Record)
Read = Callable[[R], Arrays]


@dataclass(frozen=True)
class Files(Generic[R]):
    """The records of one split and how they are read.

    `read` gives a record's arrays: the image uint8 (C, H, W) as `image`, each target by its name at `config.size`, and
    `own_size` of the image; it can be pickled. `folder` is the data set's own, `key` whatever else than files and settings decides the arrays,
    `notes` what of the folder is passed over.
    """

    folder: Path
    records: Sequence[R]
    read: Read[R]
    key: object = None
    notes: Sequence[str] = ()


class FileDataset(StoredDataset, Generic[R]):
    """Samples of one split, read from files and kept as `config.cache` says.

    A disk cache in the user's cache folder is of exactly these files, by their sizes and times, these settings and `key`.
    """

    def __init__(
        self,
        config: DataConfig,
        split: Split,
        specs: Mapping[str, TargetSpec],
        files: Files[R],
    ) -> None:
        if not files.records:
            raise DataError(
                f"{files.folder}: split {split} of {config.name} holds no sample",
                "change data.holdout or add images",
            )
        self.notes = tuple(files.notes)
        self._records, self._read = files.records, files.read

        def cached() -> Path:
            stamps = [(r.name, *(_stamp(f) for f in (r.image, *r.files))) for r in files.records]
            stored = ["image", *specs]
            folder = str(files.folder.resolve())
            key = content_key(folder, stamps, stored, repr(image_fit(config)), config.options, files.key)
            return user_cache() / config.name / key

        super().__init__(config, split, specs, len(files.records), cached)

    def identifier(self, index: int) -> str:
        """The image file's path."""
        return str(self._records[index].image)

    def sources(self, index: int) -> Sources:
        """The sample's name, files and labels, for the data set's fingerprint."""
        record = self._records[index % len(self._records)]
        parts = [part for field in fields(record) for part in parts_of(getattr(record, field.name))]
        files = dict.fromkeys(part for part in parts if isinstance(part, Path) and part.is_file())
        return Sources(record.name, tuple(files), [part for part in parts if isinstance(part, str)])

    def labeled(self, target: str) -> NDArray[np.bool_]:
        """Which samples have a label of a target: bool (N,)."""
        return np.array([target not in record.unknown for record in self._records], np.bool_)

    def _make(self, index: int) -> Arrays:
        return self._read(self._records[index])


def without_labels(records: Sequence[R], targets: Sequence[str], where: str) -> list[str]:
    """Notes on samples that lack a label of these targets, such as those of frames that lack a file."""
    lacking = {target: [one.name for one in records if target in one.unknown] for target in targets}
    return [
        f"{len(names)} of {where} have no {target}, which is unknown there: {some(names)}"
        for target, names in lacking.items()
        if names
    ]


def root_folder(root: str | None, name: str, inner: Sequence[str], marks: Sequence[str], mend: str) -> Path:
    """The data set's folder: `root` itself where it holds one of `marks`, else the first `<root>/<inner>` that does.

    Raises DataError saying what was looked for and, with `mend`, where to get it.
    """
    if root is None:
        raise DataError(f"data.root: {name} needs the folder of its files", f"give root=FOLDER; {mend}")
    top = expanded(root)
    if not top.is_dir():
        what = "is a file, not a folder" if top.exists() else "no such folder"
        raise DataError(f"{top}: {what} (data.root of {name})", mend)
    for folder in (top, *(top / part for part in inner)):
        if any((folder / mark).exists() for mark in marks):
            return folder
    raise DataError(f"{top}: no {name} here; looked for {', '.join(marks)}, also in {', '.join(inner)}", mend)


def images_in(folder: Path) -> list[Path]:
    """The image files of a folder, sorted by name, hidden ones apart; none where there is no such folder.

    Raises DataError where two of them have one name but for the ending.
    """
    if not folder.is_dir():
        return []
    images = sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
    )
    by_stem: dict[str, Path] = {}
    for path in images:
        if (other := by_stem.setdefault(path.stem, path)) != path:
            raise DataError(
                f"{path}: {other.name} has the same name, so which of the two is meant?",
                "take one of the two out",
            )
    return images


def part(records: Sequence[R], shares: Mapping[Split, float], split: Split) -> list[R]:
    """One split of records that come without any: fixed by a hash of the names; `train` is what the others leave."""
    rest = list(records)
    for other, share in shares.items():
        portion = share * len(records) / max(len(rest), 1)
        kept, held = hold_out([record.name for record in rest], portion)
        if other == split:
            return [rest[i] for i in held]
        rest = [rest[i] for i in kept]
    return rest


def held_apart(records: Sequence[R], config: DataConfig, split: Split) -> list[R]:
    """The training records of split `train` or `holdout`; those of other splits as they are."""
    return [records[i] for i in numbers_of([record.name for record in records], config.holdout, split)]


def numbers_of(names: Sequence[str], share: float, split: Split) -> list[int]:
    """Numbers of a split's samples among those it is taken from: `share` of the training ones is its `holdout`."""
    if split not in ("train", "holdout"):
        return list(range(len(names)))
    kept, held = hold_out(names, share)
    return held if split == "holdout" else kept


def source_of(split: Split) -> Split:
    """The split of the data set that a split is taken from."""
    return "train" if split == "holdout" else split


def damaged(records: Iterable[R], read: Read[R], where: str) -> list[str]:
    """What decoding says of the files that cannot be used, the first ten one by one; a mend that they share comes once."""

    def attempt(record: R) -> DataError | None:
        try:
            read(record)
        except DataError as error:
            return error
        return None

    with ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as pool:
        errors = [error for error in pool.map(attempt, records) if error is not None]
    mended: set[str] = set()
    lines: list[str] = []
    for error in errors[:_SHOWN]:
        lines.append(error.message if error.hint in mended else str(error))
        mended.add(error.hint)
    more = [f"... and {len(errors) - _SHOWN} more damaged files in {where}"] if len(errors) > _SHOWN else []
    return lines + more


def some(names: Sequence[str], count: int = 3) -> str:
    """A few names, as examples."""
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")


def _stamp(path: Path) -> tuple[int, int] | None:
    """`size_and_time` of a file; none where it is not there, as of a label that is unknown."""
    return size_and_time(path) if path.is_file() else None


def size_and_time(path: Path) -> tuple[int, int]:
    """What changes when a file does: its bytes and the nanosecond of its last change."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns
