"""What torchrun says to each process that it starts, and what a process says to it; without torch."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

PLACE = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_ERROR_FILE = "TORCHELASTIC_ERROR_FILE"  # where torchrun looks for what a process died of
_LINGERS = 5.0  # seconds; torchrun looks ten times a second whether a process has ended


def processes(environment: Mapping[str, str] = os.environ) -> int:
    """How many processes torchrun started, this one among them; 1 without it."""
    return int(environment["WORLD_SIZE"]) if all(name in environment for name in PLACE) else 1


def tell_torchrun(reason: str, *, second_hand: bool = False) -> None:
    """Let torchrun's summary have the reason for which this process is about to end. Without torchrun nothing happens.

    The summary calls the process that ended first the root cause. One that ends because another did, `second_hand`, waits until
    torchrun has seen that one, and is then ended by it.
    """
    if processes() == 1:
        return
    wait = _LINGERS if second_hand else 0.0
    if path := os.environ.get(_ERROR_FILE):
        ends = str(int(time.time() + wait))
        # the format that torch.distributed.elastic.multiprocessing.errors reads; it shows py_callstack
        text = {"message": {"message": reason, "extraInfo": {"py_callstack": reason, "timestamp": ends}}}
        with suppress(OSError):  # torchrun then says less
            Path(path).write_text(json.dumps(text), encoding="utf-8")
    time.sleep(wait)
