"""Files that torch.save wrote, read without running any code of theirs."""

from __future__ import annotations

from pathlib import Path
from pickle import UnpicklingError  # noqa: TID251  (what torch raises for a file that would run code)
from typing import IO, Any

from compactmtl.errors import first_line


class CodeError(Exception):
    """A file that holds more than plain values and tensors, and could run code."""


def read_state(source: Path | IO[bytes]) -> Any:
    """What a file of torch holds, on the CPU.

    Raises CodeError where it is more than plain values and tensors, OSError where it cannot be read, and ValueError where it
    is damaged: on damaged bytes torch's reader ends with whatever error its code comes upon.
    """
    import torch

    try:
        return torch.load(source, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise CodeError(first_line(error)) from error
    except (OSError, MemoryError):
        raise
    except Exception as error:
        raise ValueError(first_line(error)) from error
