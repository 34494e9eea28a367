"""Ctrl-C and SIGTERM as a request that the loop meets at the next step."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

from compactmtl.distributed.agree import anyone
from compactmtl.errors import INTERRUPTED, TrainingError


class TrainingInterrupted(TrainingError):
    """Training was asked to stop; `last` is saved and the run can be resumed."""

    exit_code = INTERRUPTED


class StopRequested(Exception):
    """The loop was asked to stop and is at a place where it can."""


class GivenUp(Exception):
    """Training was ended by who watched it, between two epochs; it can be resumed, and is no failure."""


class Interrupt:
    """While entered, the first SIGINT or SIGTERM sets `requested`; a second SIGINT stops at once.

    Outside the main thread, where Python takes no signals, it never becomes requested.
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def stop_where_asked(self) -> None:
        """Raise StopRequested where any process was asked to stop; of several all must come by here."""
        if anyone(self.requested):
            raise StopRequested

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True
