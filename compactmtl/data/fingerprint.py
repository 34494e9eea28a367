"""What a data set holds, in a few bytes a sample: to tell whether it is still the one that a run began with.

A sample's digest covers its name, the values of its labels that are not files, and each file's size and content,
wherever the data set lies and whenever its files were written. Of a large file the content is its first and last
32 KiB; of a data set of more than 4,096 samples the contents of that many are read, chosen by a hash of their names.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

from compactmtl.artifacts.files import expanded
from compactmtl.data.base import VisionDataset

MOST_READ = 4096  # samples whose files are opened
_END = 2**15  # bytes read at each end of a large file
_LONG = 2000  # characters of a sample's values above which not all samples' are hashed
_SHOWN = 3

Fingerprint = dict[str, str]  # digest by the sample's name


@dataclass(frozen=True)
class Sources:
    """What one sample is made of: a name that does not depend on where the data set lies, its files, all else."""

    name: str
    files: tuple[Path, ...] = ()
    values: object = None


class HasSources(Protocol):
    """A data set that knows its samples' files."""

    def sources(self, index: int) -> Sources: ...


def fingerprint(dataset: VisionDataset, root: str | None = None) -> Fingerprint:
    """A digest for each sample of a split, in the split's order.

    A data set without `sources` is known by its identifiers alone, and by their files where they are paths; `root` is
    the folder that they may lie in.
    """
    sources = [sources_of(dataset, index, root) for index in range(len(dataset))]
    ranked = sorted(range(len(sources)), key=lambda i: hashlib.sha256(sources[i].name.encode()).digest())
    read = set(ranked[:MOST_READ])
    sample = [len(repr(sources[i].values)) for i in ranked[:64]]
    all_values = sum(sample) <= _LONG * len(sample)
    with ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as pool:
        digests = pool.map(
            lambda i: _digest(sources[i], content=i in read, values=all_values or i in read),
            range(len(sources)),
        )
        named: Fingerprint = {}
        for one, digest in zip(sources, digests, strict=True):
            named[_free(one.name, named)] = digest
    return named


def differences(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """What changed from one fingerprint of a split to another, in words; empty where nothing did."""
    parts = []
    for names, what in (
        ([name for name in now if name not in before], "new"),
        ([name for name in before if name not in now], "gone"),
        ([name for name in now if name in before and now[name] != before[name]], "changed"),
    ):
        if names:
            more = ", …" if len(names) > _SHOWN else ""
            parts.append(f"{len(names)} {what} ({', '.join(names[:_SHOWN])}{more})")
    if not parts and list(before) != list(now):
        parts.append("the same samples in another order")
    if parts and len(before) != len(now):
        parts.insert(0, f"{len(before)} samples then, {len(now)} now")
    return parts


def parts_of(value: Any) -> Iterator[Path | str]:
    """The paths in a value made of mappings and sequences as they are, and all else as text."""
    if isinstance(value, Path):
        yield value
    elif isinstance(value, Mapping):
        for key, child in value.items():
            yield repr(key)
            yield from parts_of(child)
    elif isinstance(value, list | tuple):
        for child in value:
            yield from parts_of(child)
    else:
        yield repr(value)


def sources_of(dataset: VisionDataset, index: int, root: str | None = None) -> Sources:
    """What one sample of a data set is made of, as far as the data set tells."""
    if hasattr(dataset, "sources"):
        return cast(HasSources, dataset).sources(index)
    name = dataset.identifier(index)
    path = Path(name)
    if not path.is_absolute() or not path.is_file():
        return Sources(name)
    inside = root is not None and path.is_relative_to(expanded(root).absolute())
    short = path.relative_to(expanded(str(root)).absolute()).as_posix() if inside else path.name
    return Sources(short, (path,))


def _digest(sources: Sources, *, content: bool, values: bool) -> str:
    digest = hashlib.sha256(repr(sources.values if values else None).encode())
    for path in sources.files:
        try:
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                digest.update(size.to_bytes(8, "little"))
                if content:
                    digest.update(file.read(_END))
                    file.seek(max(size - _END, min(size, _END)))
                    digest.update(file.read())
        except OSError:  # reading the sample will name it
            digest.update(b"unreadable")
    return digest.hexdigest()[:16]


def _free(name: str, taken: Mapping[str, str]) -> str:
    if name not in taken:
        return name
    number = 2
    while f"{name} ({number})" in taken:
        number += 1
    return f"{name} ({number})"
