"""Readers of files that come from elsewhere take whole ones, and refuse damaged ones with an error of ours."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest

from compactmtl.errors import MISSING
from tools.fuzz import main
from tools.fuzzing.readers import READERS, feed

DAMAGES = 40
WORDS = (
    b"null",
    b"1e999",
    b"-1",
    b"1000000000000",
    b"NaN",
    b"[]",
    b"{}",
    b'""',
    b"true",
    b"'",
    b"../x",
    b"\x00",
    b"\xff",
)
TEXT = (".yaml", ".json", ".csv")


def damaged(data: bytes, text: bool, draw: random.Random) -> bytes:
    """The bytes with one to three faults: a piece cut out, doubled or moved, bytes changed, a word in a value's place."""
    out = bytearray(data)
    for _ in range(draw.randint(1, 3)):
        start = draw.randrange(len(out) + 1)
        end = min(len(out), start + draw.choice((1, 2, 8, 60, 1000)))
        fault = draw.choice(("cut", "double", "bytes", "end", *(["word"] * 4 if text else [])))
        if fault == "cut":
            del out[start:end]
        elif fault == "double":
            out[end:end] = out[start:end]
        elif fault == "bytes":
            out[start:end] = draw.randbytes(end - start)
        elif fault == "end":
            del out[max(1, start) :]
        else:
            marks = [i for i, byte in enumerate(out) if byte in b":,["] or [0]
            place = draw.choice(marks) + 1
            stop = next((i for i in range(place, len(out)) if out[i] in b",]}\n"), len(out))
            out[place:stop] = b" " + draw.choice(WORDS)
    return bytes(out)


@pytest.mark.parametrize("name", READERS)
def test_whole_files_are_taken(name: str, tmp_path: Path) -> None:
    seeds = list(READERS[name].seeds())
    assert seeds
    for number, seed in enumerate(seeds[:3]):
        folder = tmp_path / str(number)
        folder.mkdir()
        if name not in (
            "recipe",
            "sweep",
        ):  # those that begin with another's path can be read in their place alone
            assert feed(READERS[name], seed, folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_damaged_files_are_taken_or_refused(name: str, tmp_path: Path) -> None:
    """Any other exception fails the test. `tools/fuzz.py` goes on for longer."""
    reader = READERS[name]
    seeds = list(reader.seeds())
    draw = random.Random(name)
    refused = 0
    for _ in range(DAMAGES):
        data = damaged(draw.choice(seeds), reader.suffix in TEXT, draw)
        try:
            refused += not feed(reader, data, tmp_path)
        except Exception as error:
            raise AssertionError(f"{type(error).__name__} for {data!r}"[:3000]) from error
    assert refused


@pytest.mark.parametrize("name", [name for name, reader in READERS.items() if reader.suffix in TEXT])
@pytest.mark.parametrize(
    "data",
    [
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b"1" * 100_000,
        b"\xff\xfe\x00",
        b"",
        b"1e999",
        b'{"version": 1e999, "images": [{"id": 1e999}], "categories": [], "annotations": []}',
    ],
    ids=["lists", "mappings", "digits", "no text", "nothing", "infinity", "infinite id"],
)
def test_documents_that_exhaust_readers_are_refused(name: str, data: bytes, tmp_path: Path) -> None:
    assert not feed(READERS[name], data, tmp_path)


def test_a_tool_that_is_missing_is_no_find(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["fuzz", "table", "--out", str(tmp_path)])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main() == MISSING
    said = capsys.readouterr()
    assert "atheris" in said.err and not said.out and not list(tmp_path.iterdir())


def test_no_limit_is_no_number(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["fuzz", "table", "--seconds", "0"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert "at least 1" in capsys.readouterr().err


def test_a_file_to_replay_must_be_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["fuzz", "plan", "--replay", "no/such/file"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert "no/such/file: there is no such file" in capsys.readouterr().err
