"""Why a process of a training ended, told to the others through the store at which they met.

A process that fails closes its connections, and the others only see that one is closed. So it writes the reason down first.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Protocol

from compactmtl.errors import CompactError

_KEY = "compactmtl/ended"
_PATIENCE = 3.0  # seconds: the store may lie on a machine that is gone


class Store(Protocol):
    """What is used of torch's stores."""

    def check(self, keys: list[str], /) -> bool: ...

    def get(self, key: str, /) -> bytes: ...

    def compare_set(self, key: str, expected: str, desired: str, /) -> bytes: ...


_store: Store | None = None


@dataclass(frozen=True)
class Ended:
    """The first process that ended for a reason of its own: its number, its machine, the reason."""

    rank: int
    host: str
    reason: str


@contextmanager
def telling(store: Store, rank: int) -> Iterator[None]:
    """What leaves the block as an error of this process's own is told to the others; the first one of all is kept."""
    global _store
    _store = store
    try:
        yield
    except BaseException as error:
        if not (isinstance(error, CompactError) and error.second_hand):
            reason = error.message if isinstance(error, CompactError) else f"{type(error).__name__}: {error}"
            _tell(store, Ended(rank, socket.gethostname(), reason.strip()))
        raise
    finally:
        _store = None


def first_ended() -> Ended | None:
    """Who ended first and why; None where none could say so, as one that was killed, or the store is gone with its machine."""
    store = _store
    if store is None:
        return None
    found: list[Ended] = []

    def ask() -> None:
        with suppress(RuntimeError, ValueError, KeyError, TypeError):  # torch's DistError is a RuntimeError
            if store.check([_KEY]):
                found.append(Ended(**json.loads(store.get(_KEY))))

    _within_patience(ask)
    return found[0] if found else None


def _tell(store: Store, ended: Ended) -> None:
    text = json.dumps({"rank": ended.rank, "host": ended.host, "reason": ended.reason})

    def write() -> None:
        with suppress(RuntimeError):
            store.compare_set(_KEY, "", text)  # only where nothing is there yet

    _within_patience(write)


def _within_patience(work: Callable[[], None]) -> None:
    """Run in a thread that is left behind where it hangs."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(_PATIENCE)
