"""Versions of the packages that decide an artifact's numbers, by their metadata alone: nothing of them is loaded."""

from __future__ import annotations

import importlib.metadata
import platform

import compactmtl
from compactmtl.backends.registry import all_backends

# What every installation has; without one of them the package can't work.
CORE = ("torch", "torchvision", "timm", "numpy", "onnx", "onnxscript")


def package_version(name: str) -> str | None:
    """Version of an installed distribution, or None."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def package_versions() -> dict[str, str]:
    """Versions of Python, of the core packages and of the backends' packages, of those installed."""
    versions = {"compactmtl": compactmtl.__version__, "python": platform.python_version()}
    runtimes = (package for backend in all_backends() for package in backend.packages)
    for name in (*CORE, *runtimes):
        version = package_version(name)
        if version is not None:
            versions[name] = version
    return versions
