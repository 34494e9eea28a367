"""Which of NVIDIA's libraries the installed ONNX Runtime packages were built for, read without loading any."""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

from compactmtl.backends.base import Link
from compactmtl.backends.fit import package_version

PLUGIN = "onnxruntime-ep-nv-tensorrt-rtx"


def links() -> Iterator[Link]:
    """CUDA's version of the build, TensorRT's major of its provider, and what the plugin of TensorRT for RTX brings."""
    spec = importlib.util.find_spec("onnxruntime")
    for folder in [] if spec is None else [Path(one) for one in spec.submodule_search_locations or ()]:
        name = f"onnxruntime {package_version('onnxruntime-gpu') or package_version('onnxruntime') or ''}".strip()
        build = _build_info()
        if cuda := getattr(build, "cuda_version", ""):
            yield Link(name, "CUDA", str(cuda))
        for library in sorted(folder.glob("capi/*onnxruntime_providers_tensorrt.*")):
            found = re.search(rb"libnvinfer\.so\.(\d+)|nvinfer_(\d+)\.dll", library.read_bytes())
            if found is not None:
                yield Link(name, "TensorRT", (found.group(1) or found.group(2)).decode())
    for suffix in ("-cu12", "-cu13"):
        if version := package_version(PLUGIN + suffix):
            yield Link(f"{PLUGIN}{suffix} {version}", "CUDA", suffix.removeprefix("-cu"))
            if bundled := _bundled():
                yield Link(f"{PLUGIN}{suffix} {version}", "TensorRT-RTX", bundled)


def _build_info() -> object:
    try:
        return importlib.import_module("onnxruntime.capi.build_and_package_info")
    except Exception:  # a broken installation raises anything; `availability` says so
        return None


def _bundled() -> str:
    """The version of TensorRT for RTX in the plugin's folder, by its file's name."""
    spec = importlib.util.find_spec(PLUGIN.replace("-", "_"))
    for folder in () if spec is None else spec.submodule_search_locations or ():
        for file in Path(folder).iterdir():
            if found := re.fullmatch(
                r"libtensorrt_rtx\.so\.(\d+\.\d+\.\d+)|tensorrt_rtx_(\d+_\d+)\.dll", file.name
            ):
                return (found.group(1) or found.group(2)).replace("_", ".")
    return ""
