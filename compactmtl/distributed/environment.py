"""What torchrun says to each process that it starts, read without torch."""

from __future__ import annotations

import os
from collections.abc import Mapping

PLACE = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def processes(environment: Mapping[str, str] = os.environ) -> int:
    """How many processes torchrun started, this one among them; 1 without it."""
    return int(environment["WORLD_SIZE"]) if all(name in environment for name in PLACE) else 1
