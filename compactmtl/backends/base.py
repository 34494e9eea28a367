"""The protocol of a backend: can it run, open a model, say what it really runs on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from compactmtl.config.target import Target
from compactmtl.errors import ArtifactError, MissingDependencyError

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class TensorInfo:
    """One input or output of an opened model; None marks a dimension or dtype that is free."""

    name: str
    shape: tuple[int | None, ...] | None = None
    dtype: str | None = None  # numpy's name, such as float32

    def mismatch(self, array: NDArray[Any]) -> str:
        """What is wrong with `array` for this tensor, in words; empty where it fits."""
        if self.shape is not None:
            fits = len(array.shape) == len(self.shape) and all(
                want is None or want == have for want, have in zip(self.shape, array.shape, strict=True)
            )
            if not fits:
                return f"takes shape {_show(self.shape)}, found {_show(array.shape)}"
        if self.dtype is not None and array.dtype.name != self.dtype:
            return f"takes {self.dtype}, found {array.dtype.name}"
        return ""


@dataclass(frozen=True)
class Description:
    """What a runner really runs on, as the backend itself reports it."""

    backend: str
    version: str
    provider: str
    device: str
    precision: str
    threads: int | None
    layers: Mapping[str, int] = field(
        default_factory=dict
    )  # layers with weights by the precision they run in


@dataclass(frozen=True)
class LayerTime:
    """One step of a model as its runtime executes it: layers are fused, so names are the runtime's own."""

    name: str
    operator: str
    milliseconds: float  # median over the runs
    precision: str = ""  # of what it writes, where the runtime tells


@dataclass(frozen=True)
class Availability:
    """Whether a backend can run here and, if not, what is missing and how to get it."""

    available: bool
    reason: str = ""
    hint: str = ""


@dataclass(frozen=True)
class Phases:
    """One run by the GPU's own clock, in milliseconds: copy in, compute, copy out."""

    copy_in_ms: float
    compute_ms: float
    copy_out_ms: float


class Runner(ABC):
    """An opened model, used as a context manager; `run` maps input arrays to output arrays by name."""

    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names in the model's own order."""
        return tuple(tensor.name for tensor in self.inputs)

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names in the model's own order."""
        return tuple(tensor.name for tensor in self.outputs)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def run(self, inputs: Arrays) -> dict[str, NDArray[np.floating[Any]]]:
        """Check the inputs, run, and return every output by name.

        Raises ArtifactError on a wrong name, shape or dtype.
        """
        if set(inputs) != set(self.input_names):
            raise ArtifactError(
                f"the model takes inputs {sorted(self.input_names)}, found {sorted(inputs)}",
                "name every input as the model does",
            )
        for tensor in self.inputs:
            if wrong := tensor.mismatch(inputs[tensor.name]):
                raise ArtifactError(
                    f"input '{tensor.name}' of the model {wrong}",
                    "preprocess to the model's own input, or export with dynamic_batch: true for other batch sizes",
                )
        return self._run(inputs)

    @abstractmethod
    def _run(self, inputs: Arrays) -> dict[str, NDArray[np.floating[Any]]]: ...

    @abstractmethod
    def describe(self) -> Description: ...

    def layer_times(self, inputs: Arrays, repeats: int = 20) -> tuple[LayerTime, ...]:
        """Time of every step in the order of execution, in an instance of its own that only profiles.

        Raises ArtifactError where the backend has no profile of layers.
        """
        raise ArtifactError(
            f"backend {self.describe().backend} has no profile of layers", "profile an exported model"
        )

    def timed(self, inputs: Arrays) -> Phases:
        """One run, its copies and compute apart. Raises ArtifactError where the backend has no clock of a GPU."""
        raise ArtifactError(
            f"backend {self.describe().backend} runs in host memory: nothing is copied", "run it on a GPU"
        )

    def close(self) -> None:
        """Free what the runner holds."""


class Backend(ABC):
    """One way of running an exported model."""

    name: ClassVar[str]

    @abstractmethod
    def availability(self, target: Target) -> Availability:
        """Probe without side effects; never raises."""

    def require(self, target: Target) -> None:
        """Raise MissingDependencyError, saying what is missing, where the backend can't run `target` here."""
        found = self.availability(target)
        if not found.available:
            raise MissingDependencyError(f"backend {self.name} can't run here: {found.reason}", found.hint)

    def build(self, model: Path, target: Target) -> tuple[Path, ...]:
        """Make beforehand what `open` would make of a model file, beside it; the new files. By default nothing."""
        return ()

    @abstractmethod
    def open(self, model: Path, target: Target) -> Runner:
        """Open a model file for `target`. Raises MissingDependencyError where the backend can't run as asked.

        A precision that it would replace by another one is such a case: PrecisionError.
        """


def run_failure(model: Path, runtime: str, reason: str) -> ArtifactError:
    """Of a model that opens and then fails on inputs whose shapes fit, such as a size that it can't compute."""
    return ArtifactError(
        f"{runtime} fails while it runs {model}: {reason}",
        "where a dimension is free, give a size that the network can take; else export it again",
    )


def _show(shape: tuple[int | None, ...]) -> str:
    return "(" + ", ".join("any" if size is None else str(size) for size in shape) + ")"
