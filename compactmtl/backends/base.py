"""The protocol of a backend: can it run, open a model, say what it really runs on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from compactmtl.config.target import Target

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Description:
    """What a runner really runs on, as the backend itself reports it."""

    backend: str
    version: str
    provider: str
    device: str
    precision: str
    threads: int | None


@dataclass(frozen=True)
class Availability:
    """Whether a backend can run here and, if not, what is missing and how to get it."""

    available: bool
    reason: str = ""
    hint: str = ""


class Runner(ABC):
    """An opened model, used as a context manager; `run` maps input arrays to output arrays by name."""

    input_names: tuple[str, ...]
    output_names: tuple[str, ...]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def run(self, inputs: Arrays) -> dict[str, NDArray[np.floating[Any]]]:
        """Check names, run, and return every output by name. Raises ArtifactError on a wrong name or shape."""
        from compactmtl.errors import ArtifactError

        if set(inputs) != set(self.input_names):
            raise ArtifactError(
                f"the model takes inputs {sorted(self.input_names)}, found {sorted(inputs)}",
                "name every input as the model does",
            )
        return self._run(inputs)

    @abstractmethod
    def _run(self, inputs: Arrays) -> dict[str, NDArray[np.floating[Any]]]: ...

    @abstractmethod
    def describe(self) -> Description: ...

    def close(self) -> None:
        """Free what the runner holds."""


class Backend(ABC):
    """One way of running an exported model."""

    name: str

    @abstractmethod
    def availability(self, target: Target) -> Availability:
        """Probe without side effects; never raises."""

    @abstractmethod
    def open(self, model: Path, target: Target) -> Runner:
        """Open a model file for `target`. Raises MissingDependencyError where the backend can't run as asked."""
