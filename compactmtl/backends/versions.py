"""Versions of the packages that decide an artifact's numbers, by their metadata alone: nothing of them is loaded."""

from __future__ import annotations

import platform

import compactmtl
from compactmtl.backends.fit import package_version
from compactmtl.backends.registry import all_backends

# What every installation has; without one of them the package can't work.
CORE = ("torch", "torchvision", "timm", "numpy", "onnx", "onnxscript")


def package_versions() -> dict[str, str]:
    """Versions of Python, of the core packages and of the backends' packages, of those installed."""
    versions = {"compactmtl": compactmtl.__version__, "python": platform.python_version()}
    runtimes = (package for backend in all_backends() for package in backend.packages)
    for name in (*CORE, *runtimes):
        version = package_version(name)
        if version is not None:
            versions[name] = version
    return versions
