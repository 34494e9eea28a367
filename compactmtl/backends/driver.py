"""The NVIDIA driver and its first GPU, asked in a process of their own. Loads no framework."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from functools import lru_cache

# Run in another interpreter: a driver that is broken, or of another version than its library, may crash a process.
_PROBE = """
import ctypes, json, sys
try:
    driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
except OSError as error:
    sys.exit(f"no NVIDIA driver: {error}")
def call(name, *arguments):
    code = getattr(driver, name)(*arguments)
    if code:
        sys.exit(f"the NVIDIA driver does not work: {name} answers with CUDA error {code}")
number = ctypes.c_int()
def ask(name, *arguments):
    call(name, ctypes.byref(number), *arguments)
    return number.value
call("cuInit", 0)
version = ask("cuDriverGetVersion")
if ask("cuDeviceGetCount") == 0:
    sys.exit("no NVIDIA GPU: the driver finds none")
device = ask("cuDeviceGet", 0)
name = ctypes.create_string_buffer(256)
call("cuDeviceGetName", name, 256, device)
memory = ctypes.c_size_t()
call("cuDeviceTotalMem_v2", ctypes.byref(memory), device)
bus = ctypes.create_string_buffer(32)
call("cuDeviceGetPCIBusId", bus, 32, device)
capability = f"{ask('cuDeviceGetAttribute', 75, device)}.{ask('cuDeviceGetAttribute', 76, device)}"
print(json.dumps({"name": name.value.decode(), "bus": bus.value.decode(), "capability": capability, "memory": memory.value,
                  "driver": f"{version // 1000}.{version % 1000 // 10}"}))
"""
PROBE_SECONDS = 60  # the first contact with a sleeping GPU takes seconds


@dataclass(frozen=True)
class CudaDevice:
    """The first visible GPU: its name, compute capability, bytes of memory, the driver's CUDA version, and its place.

    The driver itself reads CUDA_VISIBLE_DEVICES (numbers, UUIDs, MIG) and CUDA_DEVICE_ORDER. `bus` is the PCI bus id of the
    board, by which NVML and nvidia-smi, which read neither, know the same one; empty where it is not known.
    """

    name: str
    capability: str
    memory: int
    driver: str
    bus: str = ""


@lru_cache(maxsize=None)
def cuda_device() -> tuple[CudaDevice | None, str]:
    """The first GPU or, where there is none, the reason. Never crashes, whatever the driver does."""
    command = [sys.executable, "-I", "-c", _PROBE]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=PROBE_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return None, f"the NVIDIA driver does not answer: {error}"
    if answer.returncode != 0:
        said = answer.stderr.strip().splitlines()
        return None, said[-1] if said else f"asking the NVIDIA driver crashed (exit {answer.returncode})"
    return CudaDevice(**json.loads(answer.stdout)), ""
