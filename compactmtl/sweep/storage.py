"""The storages of Optuna that a search can use, opened: a journal file, or a database by its URL."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compactmtl.artifacts.layout import LOCK
from compactmtl.artifacts.lock import writing
from compactmtl.errors import ArtifactError, ConfigError, MissingDependencyError, first_line

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

PATIENCE = 120.0  # seconds that another process's short turn at a storage is waited for
_BEGINS = b'{"op_code":'  # every line of a journal
_DRIVERS = "for PostgreSQL psycopg, for MySQL PyMySQL, with a URL that names it: postgresql+psycopg://, mysql+pymysql://"


def require_optuna() -> None:
    """Raise MissingDependencyError where Optuna cannot be imported."""
    try:
        import optuna
    except ImportError as error:
        raise MissingDependencyError(
            f"Optuna cannot be imported: {error}", "pip install 'compactmtl[search]'"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # each trial is told in our own lines


def is_url(storage: str) -> bool:
    """Whether a storage is a database by its URL; else it is the path of a journal file."""
    return "://" in storage


def shown(storage: str) -> str:
    """A storage as it may be printed: a URL without its password."""
    if not is_url(storage):
        return storage
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        return make_url(storage).render_as_string(hide_password=True)
    except (ArgumentError, ValueError):  # what it is made of is not known, nor where a password would stand
        return storage.partition("://")[0] + "://…"


class StorageError(ArtifactError):
    """A storage that was opened fails: no fault of the trial that it is asked about."""


@contextmanager
def storage_errors(name: str) -> Iterator[None]:
    """Raise StorageError where a storage that was opened fails, such as a server that has gone."""
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (StorageInternalError, SQLAlchemyError) as error:
        reason = error.__cause__ or error  # Optuna's own words are the same whatever the database says
        raise StorageError(
            f"the storage {name} failed: {first_line(reason)}", "give the same command again to go on"
        ) from error


def open_storage(storage: str, *, must_exist: bool = False) -> BaseStorage:
    """Open a storage; with `must_exist` nothing is made where there is none.

    Raises MissingDependencyError without Optuna or the database's driver, ConfigError where it cannot be opened,
    ArtifactError for a file that is no journal, OSError where a journal cannot be written.
    """
    require_optuna()
    return _database(storage, must_exist) if is_url(storage) else _journal(Path(storage), must_exist)


def _journal(path: Path, must_exist: bool) -> BaseStorage:
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    if must_exist and not path.is_file():
        raise ConfigError(
            f"there is no journal {path}", "start the search, or name its storage with --storage"
        )
    _check_journal(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    lock: Any = _JournalLock(path)
    try:
        return JournalStorage(JournalFileBackend(str(path), lock_obj=lock))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(
            f"{path} is no journal of Optuna, or it is damaged: {error}", "name another file with --storage"
        ) from error


def _check_journal(path: Path) -> None:
    """Raise ArtifactError for a file that begins as no journal does, before its last line could be taken for an unfinished one."""
    try:
        with path.open("rb") as file:
            begins = file.read(len(_BEGINS))
    except FileNotFoundError:
        return
    if not _BEGINS.startswith(begins):  # shorter where a worker was killed at its first words
        raise ArtifactError(f"{path} is no journal of Optuna", "name another file with --storage")


class _JournalLock:
    """One writer of a journal at a time, by a lock that ends with its process.

    Optuna's own locks are files: a worker that is killed while it holds one stops all others, or is overrun after half a
    minute. A line that a killed worker left unfinished is cut off before the next is written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._folder = path.with_name(f".{path.name}{LOCK}")
        self._folder.mkdir(exist_ok=True)  # one that stays: none is removed under another process
        self._held: AbstractContextManager[None] | None = None

    def acquire(self) -> bool:
        held = writing(self._folder, "a line of the journal", wait=PATIENCE)
        held.__enter__()
        self._held = held
        _cut_unfinished(self._path)
        return True

    def release(self) -> None:
        held, self._held = self._held, None
        if held is not None:
            held.__exit__(None, None, None)


def _cut_unfinished(path: Path) -> None:
    with path.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        if not size:
            return
        file.seek(size - 1)
        if file.read(1) != b"\n":
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)


def _database(url: str, must_exist: bool) -> BaseStorage:
    from optuna.exceptions import OptunaError
    from optuna.storages import RDBStorage
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import NoSuchModuleError, OperationalError, SQLAlchemyError
    from sqlalchemy.pool import NullPool

    name = shown(url)
    hint = "write it like sqlite:///search.db or postgresql+psycopg://user@host/name, or name a file for a journal"
    try:
        parts = make_url(url)
        lite = parts.get_backend_name() == "sqlite"
        if must_exist and lite and not Path(parts.database or "").is_file():
            raise ConfigError(
                f"there is no database {parts.database}",
                "start the search, or name its storage with --storage",
            )
        if lite and (parts.database or ":memory:") == ":memory:":
            raise ConfigError(f"{name} is kept in memory, where no other worker finds it", hint)
        # A connection for each turn: those that a pool keeps may have been closed by the server during a training.
        options: dict[str, Any] = {"poolclass": NullPool}
        if lite:  # it locks the whole file for a writer
            options["connect_args"] = {"timeout": PATIENCE}
        return RDBStorage(url, engine_kwargs=options)
    except ImportError as error:
        raise MissingDependencyError(
            f"the storage {name} needs a package that cannot be imported: {error.__cause__ or error}",
            f"install it: {_DRIVERS}",
        ) from error
    except NoSuchModuleError as error:
        raise ConfigError(f"the storage {name} cannot be opened: {error}", hint) from error
    except (SQLAlchemyError, OptunaError, RuntimeError, ValueError) as error:
        if isinstance(error, OperationalError):  # the URL is understood, and the database does not let in
            hint = (
                "see that its folder is there and can be written"
                if lite
                else "see that the server runs there, lets this user in and has this database"
            )
        raise ConfigError(f"the storage {name} cannot be opened: {first_line(error)}", hint) from error
