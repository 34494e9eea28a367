"""Files of torch.save: plain ones are read, damaged and dangerous ones are told apart, no code of theirs runs."""

from __future__ import annotations

import io
import pickle  # noqa: TID251  (written here, and not read)
import random
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from compactmtl.artifacts.states import CodeError, read_state


class Dangerous:
    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self._path,)


def saved() -> bytes:
    stream = io.BytesIO()
    torch.save({"weight": torch.arange(6.0).reshape(2, 3), "step": 3, "name": "ä" * 20}, stream)
    return stream.getvalue()


def with_pickle(change: Callable[[bytes], bytes]) -> bytes:
    """The file with other bytes as its pickle."""
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(saved())) as old, zipfile.ZipFile(stream, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            new.writestr(name, change(data) if name.endswith("data.pkl") else data)
    return stream.getvalue()


def test_a_plain_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    path.write_bytes(saved())
    for source in (path, io.BytesIO(saved())):
        state = read_state(source)
        assert torch.equal(state["weight"], torch.arange(6.0).reshape(2, 3)) and state["step"] == 3


def test_a_file_that_would_run_code_runs_none(tmp_path: Path) -> None:
    touched = tmp_path / "touched"
    with pytest.raises(CodeError):
        read_state(io.BytesIO(with_pickle(lambda data: pickle.dumps(Dangerous(touched), protocol=2))))
    assert not touched.exists()


def test_text_that_is_none_is_damage() -> None:
    """Found by fuzzing."""
    with pytest.raises(ValueError, match="utf-8"):
        read_state(io.BytesIO(with_pickle(lambda data: data.replace("ä".encode(), b"\x89a"))))


def test_whatever_is_damaged_is_told_as_one_of_the_two() -> None:
    draw = random.Random(0)
    refused = 0
    for _ in range(400):

        def change(data: bytes) -> bytes:
            out = bytearray(data)
            for _ in range(draw.randint(1, 4)):
                out[draw.randrange(len(out))] = draw.randrange(256)
            return bytes(out[: draw.randint(len(out) // 2, len(out))])

        try:
            read_state(io.BytesIO(with_pickle(change)))
        except (CodeError, ValueError):
            refused += 1
    assert refused > 200


def test_a_file_that_is_not_there_is_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="none"):
        read_state(tmp_path / "none.pt")
