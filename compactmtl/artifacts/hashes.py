"""hashes.json: the SHA-256 of every file of an artifact, and of what the artifact was made from.

It is written last, so a folder that has it is whole. Every reader checks the files that it reads: one that was
truncated, changed, lost or taken from another artifact is an ArtifactError that names it.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compactmtl.artifacts.files import parse_json, sha256_file, write_bytes, write_text
from compactmtl.artifacts.layout import HASHES
from compactmtl.errors import ArtifactError, CompactWarning

VERSION = 1


@dataclass(frozen=True)
class Hashes:
    """What hashes.json says: SHA-256 by file name, and of the artifact's sources by a word such as `checkpoint`."""

    files: dict[str, str]
    sources: dict[str, str] = field(default_factory=dict)


def write_hashed(folder: Path, files: Mapping[str, bytes], sources: Mapping[str, str] | None = None) -> None:
    """Write files into `folder`, then hashes.json over them. Raises OSError naming the file."""
    for name, data in files.items():
        write_bytes(folder / name, data)
    write_hashes(folder, {name: sha256(data) for name, data in files.items()}, sources)


def write_hashes(
    folder: Path, files: Mapping[str, str] | None = None, sources: Mapping[str, str] | None = None
) -> None:
    """Write hashes.json: of `files` as they were hashed, or of every file that is in `folder`."""
    if files is None:
        files = {path.name: sha256_file(path) for path in sorted(folder.iterdir()) if _is_part(path)}
    body = {"version": VERSION, "files": dict(files), "sources": dict(sources or {})}
    write_text(folder / HASHES, json.dumps({**body, "sha256": _own(body)}, indent=2) + "\n")


def read_hashes(folder: Path, mend: str) -> Hashes | None:
    """What hashes.json of `folder` says; None where the artifact was written before there were any.

    Raises ArtifactError, with `mend` as its hint, where it is damaged.
    """
    path = folder / HASHES
    try:
        content: Any = parse_json(path.read_bytes())
        body = {key: content[key] for key in ("version", "files", "sources")}
        if content["sha256"] != _own(body):
            raise ValueError("its own hash is off")
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{path} is damaged: {error}", mend) from error
    if body["version"] != VERSION:
        raise ArtifactError(
            f"{path} is of version {body['version']}, this compactmtl reads {VERSION}",
            f"use the version of compactmtl that wrote it, or {mend}",
        )
    return Hashes(body["files"], body["sources"])


def read_checked(folder: Path, name: str, mend: str) -> bytes:
    """The file `name` of an artifact, held against hashes.json.

    Raises ArtifactError, with `mend` as its hint, where it is missing or is not the file that was written. An artifact
    without hashes.json is read with a CompactWarning.
    """
    hashes = read_hashes(folder, mend)
    path = folder / name
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} is missing", mend) from error
    if hashes is None:
        note_unhashed(folder)
    else:
        _compare(path, hashes, sha256(data), mend)
    return data


def check_files(folder: Path, hashes: Hashes, mend: str, names: Iterable[str] | None = None) -> None:
    """Hold files of `folder`, all that are listed by default, against their hashes.

    Raises ArtifactError, with `mend` as its hint, naming the first that is missing or another.
    """
    for name in hashes.files if names is None else names:
        path = folder / name
        if not path.is_file():
            raise ArtifactError(f"{path} is missing", mend)
        _compare(path, hashes, sha256_file(path), mend)


def note_unhashed(folder: Path) -> None:
    """Say that an artifact of an older version cannot be checked."""
    warnings.warn(
        f"{folder} has no {HASHES}: an older version wrote it, so damage to its files would go unnoticed",
        CompactWarning,
        stacklevel=3,
    )


def sha256(data: bytes) -> str:
    """Hexadecimal SHA-256 of bytes."""
    return hashlib.sha256(data).hexdigest()


def _compare(path: Path, hashes: Hashes, current: str, mend: str) -> None:
    expected = hashes.files.get(path.name)
    if expected is None:
        raise ArtifactError(f"{path} is not among the files that {path.parent / HASHES} lists", mend)
    if current != expected:
        raise ArtifactError(
            f"{path} is damaged or was exchanged: its hash is not the one that was written with it", mend
        )


def _own(body: Mapping[str, Any]) -> str:
    return sha256(json.dumps(body, sort_keys=True).encode())


def _is_part(path: Path) -> bool:
    return path.is_file() and path.name != HASHES and not path.name.startswith(".")
