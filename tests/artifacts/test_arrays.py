"""Arrays of files from elsewhere: whole ones are read, and whatever is wrong with others is one of three kinds of error."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from compactmtl.artifacts.arrays import load_array, load_arrays
from tests.support.damaged_npy import HEADERS, npy_of

MODES: tuple[Literal["r", "c"] | None, ...] = (None, "r", "c")


@pytest.mark.parametrize("mode", MODES)
def test_a_whole_array_is_read(mode: Literal["r", "c"] | None, tmp_path: Path) -> None:
    stored = np.arange(12.0).reshape(3, 4)
    np.save(tmp_path / "a.npy", stored)
    np.testing.assert_array_equal(load_array(tmp_path / "a.npy", mode), stored)


def test_an_archive_is_read_by_name_and_is_no_array(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.ones(3), y=np.zeros(2))
    found = load_arrays(tmp_path / "a.npz")
    assert isinstance(found, dict) and list(found) == ["x", "y"]
    for mode in MODES:
        with pytest.raises(ValueError):
            load_array(tmp_path / "a.npz", mode)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", HEADERS)
def test_a_header_that_parsers_stumble_over(
    name: str, mode: Literal["r", "c"] | None, tmp_path: Path
) -> None:
    file = tmp_path / "a.npy"
    file.write_bytes(npy_of(HEADERS[name]))
    with pytest.raises((OSError, EOFError, ValueError)):
        load_array(file, mode)


def test_an_archive_that_claims_to_be_encrypted(tmp_path: Path) -> None:
    file = tmp_path / "a.npz"
    np.savez(file, x=np.ones(3))
    content = bytearray(file.read_bytes())
    for mark, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(mark) + place] |= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match="encrypted"):
        load_arrays(file)
