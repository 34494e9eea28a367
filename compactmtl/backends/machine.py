"""What this machine is: processor, its instruction sets, GPU driver. Loads no framework."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from functools import lru_cache
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
# The instruction sets that decide how fast inference is: vectors, bf16, and int8 dot products (VNNI, AMX).
FLAGS_OF_INTEREST = (
    "avx2",
    "fma",
    "avx512f",
    "avx512_bf16",
    "avx512_vnni",
    "avx_vnni",
    "amx_bf16",
    "amx_int8",
    "asimd",
    "asimddp",
    "i8mm",
    "bf16",
)


@lru_cache(maxsize=None)
def _cpuinfo() -> dict[str, str]:
    """The first processor's entry of /proc/cpuinfo; empty where the system has none."""
    try:
        text = CPUINFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    entry = text.strip().split("\n\n")[0]
    pairs = (line.partition(":") for line in entry.splitlines() if ":" in line)
    return {key.strip().lower(): value.strip() for key, _, value in pairs}


def cpu_name() -> str:
    """The processor's model name, or its architecture where the system doesn't tell."""
    return _cpuinfo().get("model name") or platform.processor() or platform.machine()


def cpu_flags() -> tuple[str, ...]:
    """Those instruction sets of FLAGS_OF_INTEREST that this processor has; empty where unknown."""
    info = _cpuinfo()
    present = set((info.get("flags") or info.get("features") or "").split())
    return tuple(flag for flag in FLAGS_OF_INTEREST if flag in present)


def cpu_count() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def load_average() -> float | None:
    """Runnable processes over the last minute, or None where the system doesn't say."""
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):
        return None


@lru_cache(maxsize=None)
def nvidia_gpus() -> tuple[tuple[str, ...], str]:
    """Names of the NVIDIA GPUs with their driver and, where there are none, the reason.

    Asked through `nvidia-smi` in a process of its own: a broken driver can then crash nothing here.
    """
    command = shutil.which("nvidia-smi")
    if command is None:
        return (), "no NVIDIA driver: nvidia-smi is not on the PATH"
    query = [command, "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=15, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return (), f"nvidia-smi does not answer: {error}"
    lines = tuple(line.strip() for line in answer.stdout.splitlines() if line.strip())
    if answer.returncode != 0 or not lines:
        said = (answer.stderr or answer.stdout).strip().splitlines()
        return (), f"nvidia-smi finds no GPU{': ' + said[0] if said else ''}"
    return lines, ""
