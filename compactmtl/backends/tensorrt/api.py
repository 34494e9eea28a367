"""TensorRT's Python API, from whichever package holds it: TensorRT itself, or TensorRT for RTX, which has the same one.

What only one of them has, or only later versions, is looked for where it is used; no version is listed anywhere.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol, cast

from compactmtl.errors import MissingDependencyError

if TYPE_CHECKING:
    import tensorrt as trt


class TensorRT(Protocol):
    """The names of the module that are used; tools/stubs/tensorrt holds their signatures."""

    __version__: str
    Builder: type[trt.Builder]
    BuilderFlag: type[trt.BuilderFlag]
    ComputeCapability: type[trt.ComputeCapability]  # of TensorRT for RTX alone
    HardwareCompatibilityLevel: type[trt.HardwareCompatibilityLevel]
    ILogger: type[trt.ILogger]
    IProfiler: type[trt.IProfiler]
    IProgressMonitor: type[trt.IProgressMonitor]
    LayerInformationFormat: type[trt.LayerInformationFormat]
    MemoryPoolType: type[trt.MemoryPoolType]
    NetworkDefinitionCreationFlag: type[trt.NetworkDefinitionCreationFlag]
    OnnxParser: type[trt.OnnxParser]
    ProfilingVerbosity: type[trt.ProfilingVerbosity]
    Runtime: type[trt.Runtime]

    def init_libnvinfer_plugins(self, logger: object, namespace: str) -> bool: ...


@dataclass(frozen=True)
class Library:
    """One package of TensorRT: under which names it is imported, what it is called, and how it is installed."""

    label: str
    modules: tuple[str, ...]  # the first that is there is taken
    extra: str
    floor: tuple[int, int]

    def load(self) -> TensorRT:
        """The module. Raises MissingDependencyError saying what is wrong with it."""
        if failure := self.failure():
            raise MissingDependencyError(failure, self.hint)
        return cast(TensorRT, importlib.import_module(self._found() or self.modules[0]))

    @property
    def hint(self) -> str:
        """How to get it."""
        return f"pip install 'compactmtl[{self.extra}]'"

    def failure(self) -> str:
        """Why it can't be used; empty where it can."""
        name = self.modules[0]
        try:
            found = self._found()
            if found is None:
                return f"the package {name} is not installed"
            version: str = importlib.import_module(found).__version__
        except (ImportError, OSError, ValueError, AttributeError) as error:
            return f"{name} can't be imported ({error})"
        release = tuple(int(part) for part in version.split(".")[:2])
        if release < self.floor:
            return f"{name} {version} is too old: {self.floor[0]}.{self.floor[1]} or later is needed"
        return ""

    def _found(self) -> str | None:
        return next((name for name in self.modules if importlib.util.find_spec(name) is not None), None)


class Log:
    """What TensorRT says, for those who listen.

    TensorRT keeps the first logger that a process gives it as long as anything made with it lives, and ignores all later
    ones. So a module has one logger, and each listener gets what is said while it listens.
    """

    def __init__(self, api: TensorRT) -> None:
        listeners = self._listeners = list[list[str]]()
        kept = (api.ILogger.INTERNAL_ERROR, api.ILogger.ERROR, api.ILogger.WARNING)

        class KeepingLogger(api.ILogger):  # type: ignore[name-defined, misc]
            def __init__(self) -> None:
                api.ILogger.__init__(self)  # pybind11 wants it by name

            def log(self, severity: Any, msg: str) -> None:
                if severity in kept:
                    for lines in listeners:
                        lines.append(f"{severity.name.lower()}: {msg}")

        self.logger: trt.ILogger = KeepingLogger()

    @contextmanager
    def listen(self) -> Iterator[list[str]]:
        """The list that warnings and errors are added to meanwhile."""
        lines: list[str] = []
        self._listeners.append(lines)
        try:
            yield lines
        finally:
            # by identity: two that have heard the same are equal
            self._listeners[:] = [one for one in self._listeners if one is not lines]


def log_of(api: TensorRT) -> Log:
    """The one log of a module."""
    return _log_of(cast("Hashable", api))


@cache
def _log_of(api: Hashable) -> Log:
    return Log(cast("TensorRT", api))
