"""What a device kit's code stands on: its error, and what a runtime on the device offers. Part of kit.py.

kit.py is one file for Python 3.8 that needs numpy and the runtime alone. It is put together from this module and others
that say "Part of kit.py" or "Also part of a device kit": they import nothing of the project but each other.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

DAMAGED, MISSING, WRONG = 2, 3, 4  # exit codes: the kit or command line, the machine, the model's outputs


class KitError(Exception):
    """A failure that whoever has the device can mend: `message` says what is wrong, `mend` how to mend it."""

    def __init__(self, message: str, mend: str, code: int = DAMAGED) -> None:
        super().__init__(message)
        self.message = message
        self.mend = mend
        self.code = code


class DeviceModel:
    """A model that is open on the device. Arrays are in host memory, by name."""

    input_names: tuple[str, ...] = ()
    output_names: tuple[str, ...] = ()

    def run(self, arrays: dict[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
        """Every output by name; returns when it is there."""
        raise NotImplementedError

    def facts(self) -> dict[str, Any]:
        """How it really runs, by the runtime's own account.

        Keys: `provider`, `threads` (none on a GPU), and what tells the types: `layers`, the number of layers with
        weights by precision, or `inspector`, what an engine inspector says as JSON.
        """
        raise NotImplementedError

    def phases(self, arrays: dict[str, np.ndarray[Any, Any]]) -> tuple[float, float, float] | None:
        """Milliseconds of copy in, compute and copy out of one run by the GPU's own clock; None where it has none."""
        return None

    def layer_times(self, arrays: dict[str, np.ndarray[Any, Any]], repeats: int) -> list[tuple[str, float]]:
        """Name and milliseconds of every step in the order of execution, medians over runs, by the runtime's own profile.

        Raises KitError where it has none.
        """
        raise KitError(
            "this runtime has no profile of layers", "measure a table with another backend", MISSING
        )

    def close(self) -> None:
        """Free what it holds."""


class DeviceRuntime:
    """A runtime as a kit uses it, with the settings that its backend wrote into the kit."""

    on_gpu = False

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings

    def missing(self) -> list[tuple[str, str]]:
        """What this machine lacks, each with its mend; empty where models can run."""
        raise NotImplementedError

    def versions(self) -> dict[str, str]:
        """Of the runtime and what it stands on, the runtime first."""
        raise NotImplementedError

    def device(self) -> str:
        """Name of the processor or GPU that models run on."""
        raise NotImplementedError

    def board(self) -> str:
        """PCI bus id of the GPU that models run on, by which nvidia-smi knows it; empty on another processor."""
        return ""

    def open(self, path: Path, example: dict[str, np.ndarray[Any, Any]], folder: Path) -> DeviceModel:
        """Open a model file, building what the runtime needs; `folder` is for what is built. Raises KitError."""
        raise NotImplementedError
