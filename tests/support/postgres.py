"""A PostgreSQL server of a test's own: Debian's, in a folder that goes when the test ends."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

_USERS = ("postgres", "nobody")  # the server refuses to run as root


def _programs() -> Path | None:
    """The folder of initdb and pg_ctl: of the highest version that Debian has installed, else on the path."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if found:
        return found[-1].parent
    elsewhere = shutil.which("initdb")
    return None if elsewhere is None else Path(elsewhere).parent


def _user() -> str | None:
    """Whom the server runs as: the test's own user, but never root."""
    if os.getuid():
        return pwd.getpwuid(os.getuid()).pw_name
    for name in _USERS:
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name).pw_name
    return None


@contextlib.contextmanager
def postgres() -> Iterator[str]:
    """The URL of a fresh database; the test is skipped, with the reason, where there is no server or no driver."""
    programs, user = _programs(), _user()
    if programs is None or user is None:
        pytest.skip(
            f"PostgreSQL: {'initdb is not installed' if programs is None else 'no user to run it as'}"
        )
    pytest.importorskip("psycopg", reason="PostgreSQL: psycopg is not installed")
    folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))  # a socket's path must be short
    if not os.getuid():
        shutil.chown(folder, user)
    become = {} if os.getuid() else {"user": user}
    data = folder / "data"

    def call(*words: object) -> None:
        done = subprocess.run(
            [str(word) for word in words],
            capture_output=True,
            text=True,
            cwd=folder,
            check=False,
            timeout=120,
            **become,  # type: ignore[call-overload]
        )
        if done.returncode:
            raise RuntimeError(f"{words[0]}: {done.stdout}{done.stderr}")

    try:
        call(programs / "initdb", "-D", data, "-U", "tester", "-A", "trust", "--no-sync")
        options = f"-c listen_addresses= -c unix_socket_directories={folder} -c fsync=off"
        call(programs / "pg_ctl", "-D", data, "-l", folder / "log", "-w", "-o", options, "start")
        try:
            yield f"postgresql+psycopg://tester@/postgres?host={folder}"
        finally:
            call(programs / "pg_ctl", "-D", data, "-m", "immediate", "-w", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
