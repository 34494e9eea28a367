"""TensorRT's file of measured kernel times: one per version and GPU, shared by builds that may run at once."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from compactmtl.artifacts.files import expanded
from compactmtl.backends.driver import CudaDevice
from compactmtl.backends.tensorrt.options import AUTO, SECTION, TensorRTConfig

if TYPE_CHECKING:
    import tensorrt as trt


def cache_file(options: TensorRTConfig, version: str, device: CudaDevice) -> Path | None:
    """Where the times lie; None where the target wants none."""
    if options.timing_cache is None:
        return None
    if options.timing_cache != AUTO:
        return expanded(options.timing_cache)
    from compactmtl.data.cache import user_cache

    gpu = "".join(letter if letter.isalnum() else "-" for letter in device.name)
    return user_cache() / SECTION / f"{version}-{gpu}.timing"


def attach(config: trt.IBuilderConfig, file: Path, said: list[str]) -> trt.ITimingCache | None:
    """The file's cache or, where it has none that fits this GPU and version, an empty one."""
    stored = file.read_bytes() if file.exists() else b""
    cache = config.create_timing_cache(stored)
    if cache is None or not config.set_timing_cache(cache, False):
        said.append(f"warning: {file} is of another GPU or TensorRT: kernels are timed again")
        cache = config.create_timing_cache(b"")
        if cache is not None:
            config.set_timing_cache(cache, False)
    return cache


def store(file: Path, data: bytes) -> None:
    """Replace a file at once: two builds may share it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
        Path(name).replace(file)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(name).unlink()
        raise
