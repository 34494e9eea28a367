"""Storages of a search: opened or refused with the reason, and whole after a worker was killed."""

from __future__ import annotations

import builtins
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from compactmtl.config.search import SearchConfig
from compactmtl.errors import ArtifactError, ConfigError, MissingDependencyError
from compactmtl.sweep.storage import StorageError, open_storage, shown
from compactmtl.sweep.study import open_study

optuna = pytest.importorskip("optuna", reason="Optuna is not installed")


def test_a_journal_is_read_by_another_that_opens_it(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "search.journal"
    study = optuna.create_study(study_name="a", storage=open_storage(str(path)))
    study.tell(study.ask({"x": optuna.distributions.FloatDistribution(0, 1)}), 1.0)
    again = optuna.load_study(study_name="a", storage=open_storage(str(path), must_exist=True))
    assert [one.value for one in again.trials] == [1.0]


def test_a_line_that_a_kill_left_unfinished_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "search.journal"
    study = optuna.create_study(study_name="a", storage=open_storage(str(path)))
    study.tell(study.ask(), 1.0)
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"op_code": 4, "wor')
    study.tell(study.ask(), 2.0)  # one that has it open goes on
    assert path.read_bytes().startswith(whole) and path.read_bytes().endswith(b"\n")
    again = optuna.load_study(study_name="a", storage=open_storage(str(path)))
    assert [one.value for one in again.trials] == [1.0, 2.0]


DIES = """
import os, signal, sys
from pathlib import Path
from compactmtl.sweep.storage import _JournalLock
_JournalLock(Path(sys.argv[1])).acquire()
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_a_worker_that_dies_with_the_lock_stops_nobody(tmp_path: Path) -> None:
    path = tmp_path / "search.journal"
    study = optuna.create_study(study_name="a", storage=open_storage(str(path)))
    died = subprocess.run([sys.executable, "-c", DIES, str(path)], check=False)
    assert died.returncode == -9
    study.tell(study.ask(), 3.0)
    assert study.best_value == 3.0


def test_what_is_no_journal_is_said(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("this is\nno journal\n")
    with pytest.raises(ArtifactError, match=r"notes\.txt is no journal of Optuna"):
        open_storage(str(path))
    assert path.read_text() == "this is\nno journal\n"


@pytest.mark.parametrize("text", ["a token", '{"a": 1}', '{"op_codes":1}', "{"])
def test_a_file_of_one_unfinished_line_is_left_as_it_is(text: str, tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text(text)
    if text == "{":  # what a worker leaves that was killed at its first word
        optuna.create_study(study_name="a", storage=open_storage(str(path)))
        return
    with pytest.raises(ArtifactError, match=r"notes\.txt is no journal of Optuna"):
        open_storage(str(path))
    assert path.read_text() == text
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_in_the_way_of_a_database_is_said() -> None:
    with pytest.raises(ConfigError) as caught:
        open_storage("sqlite:////no/such/folder/search.db")
    assert "its folder is there" in caught.value.hint
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    with pytest.raises(ConfigError, match="Connection refused") as caught:
        open_storage("postgresql+psycopg://me:secret@127.0.0.1:1/db")
    assert "the server runs there" in caught.value.hint


@pytest.mark.parametrize(
    ("storage", "message"),
    [
        ("sqlite:////no/such/folder/search.db", "cannot be opened: .*unable to open database file"),
        ("sqlite://", "in memory"),
        ("nonsense://x", "cannot be opened: .*nonsense"),
        ("://", "cannot be opened"),
        ("postgresql://host:port/db", "cannot be opened"),
    ],
)
def test_a_storage_that_cannot_be_opened(storage: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        open_storage(storage)


def test_a_database_that_fails_once_it_is_open_says_why(tmp_path: Path) -> None:
    search = SearchConfig.model_validate(
        {
            "parameters": {"train.clip": {"kind": "int", "low": 1, "high": 5}},
            "objectives": [{"name": "macs"}],
        }
    )

    def open_it() -> None:
        url = f"sqlite:///{tmp_path / 'search.db'}"
        open_study(search, "a", url, tmp_path, {"recipe": {}}, must_exist=False)

    open_it()
    with sqlite3.connect(tmp_path / "search.db") as database:
        database.execute("ALTER TABLE study_user_attributes RENAME COLUMN value_json TO lost")
    with pytest.raises(StorageError, match=r"failed: .*no such column: .*value_json"):
        open_it()


@pytest.mark.parametrize("storage", ["search.journal", "sqlite:///search.db"])
def test_nothing_is_made_where_it_must_exist(
    storage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="there is no"):
        open_storage(storage, must_exist=True)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_exit_code_3(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MissingDependencyError, match="MySQLdb"):  # the default driver of such a URL
        open_storage("mysql://localhost/none")
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "optuna":
            raise ImportError("No module named 'optuna'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingDependencyError) as caught:
        open_storage("search.journal")
    assert caught.value.exit_code == 3 and "compactmtl[search]" in caught.value.hint


def test_a_password_is_never_shown() -> None:
    assert "secret" not in shown("postgresql+psycopg://me:secret@host/db")
    assert "secret" not in shown("postgresql+psycopg://me:secret@host:port/db")
    assert shown("runs/search.journal") == "runs/search.journal"
