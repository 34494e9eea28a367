"""Every backend by its name: a folder of this package with an `entry.py`, which holds one class.

The list is a glob over the package's path, so that a new folder is a new backend. Importing this loads no backend.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

from compactmtl.backends.base import Backend, Runner
from compactmtl.config.lookup import name_hint
from compactmtl.config.registry import defined_class
from compactmtl.config.target import Target
from compactmtl.errors import ConfigError

PACKAGE = __name__.rpartition(".")[0]
ENTRY = "entry"


def backend_names() -> tuple[str, ...]:
    """The name of every backend, sorted: that of its folder, with a hyphen for an underscore."""
    entries = (entry for root in _path() for entry in Path(root).glob(f"*/{ENTRY}.py"))
    return tuple(sorted({entry.parent.name.replace("_", "-") for entry in entries}))


def get_backend(name: str) -> Backend:
    """The backend of that name. Raises ConfigError, with the nearest name, where there is none."""
    names = backend_names()
    if name not in names:
        raise ConfigError(f"unknown backend '{name}'", name_hint(name, names))
    return _instance(importlib.import_module(f"{PACKAGE}.{name.replace('-', '_')}.{ENTRY}"))


def all_backends() -> tuple[Backend, ...]:
    """Every backend, by name."""
    return tuple(map(get_backend, backend_names()))


def reference_target(threads: int = 1) -> Target:
    """Float32 on this machine's CPU, by the backend that runs every graph: what is used where no target is named."""
    return Target(backend=_reference().name, threads=threads)


def open_graph(model: Path, target: Target) -> Runner:
    """A graph on this machine's CPU, in whatever precision its kernels have there; of the target `threads` alone counts.

    For a graph that is meant for another device: it shows what the graph computes, not how the device computes it.
    Raises ArtifactError where the CPU has no kernels for it, MissingDependencyError where the runtime is not installed.
    """
    return _reference().open_graph(model, target)


def _reference() -> Backend:
    (reference,) = (backend for backend in all_backends() if backend.is_reference)
    return reference


@cache
def _instance(module: ModuleType) -> Backend:
    """The one concrete backend that a module defines."""
    kind: type[Backend] = defined_class(module.__name__, _is_backend)
    return kind()


def _is_backend(value: object) -> bool:
    return inspect.isclass(value) and issubclass(value, Backend) and not inspect.isabstract(value)


def _path() -> list[str]:
    return list(sys.modules[PACKAGE].__path__)
