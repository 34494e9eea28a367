"""What a machine says of its own condition: clocks, temperatures, load, and whether it held itself back. Part of kit.py.

Read from /proc and /sys, and from nvidia-smi, tegrastats, nvpmodel and vcgencmd where they are. A system that tells
nothing gives nothing: no value is guessed.
"""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
import threading
from pathlib import Path
from typing import Any

from compactmtl.backends.machine import cpu_count, cpu_flags, cpu_name, load_average

ROOT = Path("/")
SECONDS = 10.0  # for a program that tells the machine's state
CLOCK_FELL = 0.8  # of what it was before: less is a processor that was held back
# Bits of nvidia-smi's reasons for clocks below the highest, of NVML's nvmlClocksEventReasons.
GPU_REASONS = (
    (0x04, "power cap"),
    (0x08, "hardware slowdown"),
    (0x20, "software thermal slowdown"),
    (0x40, "hardware thermal slowdown"),
    (0x80, "power brake"),
)
# Bits of the Raspberry Pi's `vcgencmd get_throttled`: now, and since it was started.
PI_REASONS = (
    (0, "under-voltage"),
    (1, "the clock is capped"),
    (2, "throttled"),
    (3, "the soft temperature limit"),
)
GPU_FIELDS = ("clocks.sm", "clocks.mem", "clocks.max.sm", "temperature.gpu", "power.draw", "pstate")
COOLING = ("processor", "cpufreq", "cpu", "gpu", "devfreq", "passive", "intel_powerclamp", "thermal-cpu")


def described(root: Path = ROOT) -> dict[str, Any]:
    """The machine: its board, where it is one that names itself, or its maker's model; processor and system."""
    board = _text(root, "proc/device-tree/model").replace("\0", "").strip()
    maker = [_text(root, f"sys/class/dmi/id/{name}") for name in ("sys_vendor", "product_name")]
    governors = {_read(path) for path in _all(root, "sys/devices/system/cpu/cpu*/cpufreq/scaling_governor")}
    return {
        "board": board,
        "model": " ".join(part for part in maker if part),
        "processor": cpu_name(),
        "instructions": list(cpu_flags()),
        "processors": cpu_count(),
        "memory_mib": _memory(root),
        "system": f"{platform.system()} {platform.release()}",
        "architecture": platform.machine(),
        "governor": ", ".join(sorted(governors - {""})),
        "power_mode": _power_mode(),
    }


def condition(board: str = "", root: Path = ROOT, commands: bool = True) -> dict[str, Any]:
    """The state of this moment; without `commands` only what costs no process.

    `board` is the PCI bus id of the GPU that is measured; where it is empty no GPU is asked, whose clocks tell nothing here.
    """
    state: dict[str, Any] = {
        "load": load_average(),
        "clocks_mhz": _clocks(root),
        "temperatures": _temperatures(root),
        "cooling": _cooling(root),
        "throttle_counts": _counts(root),
    }
    if commands:
        state.update(_gpu(board) if board else {})
        tegra = _tegrastats()
        if tegra:
            state["tegrastats"] = tegra
        pi = _pi()
        if pi is not None:
            state["pi_throttled"] = pi
    return state


def held_back(states: list[dict[str, Any]]) -> list[str] | None:
    """Why the machine ran below its speed while it was measured, in words; None where nothing tells.

    `states` are those before, during and after the measurement, in order.
    """
    first, last = states[0], states[-1]
    reasons = []
    for key, count in last["throttle_counts"].items():
        grown = count - first["throttle_counts"].get(key, count)
        if grown > 0:
            reasons.append(f"{key} counted {grown} times")
    reasons += sorted({f"{name} is active" for state in states for name in state["cooling"]["active"]})
    bits = 0
    for state in states:
        bits |= int(state.get("gpu_reasons") or 0)
    reasons += [f"GPU: {text}" for bit, text in GPU_REASONS if bits & bit]
    pi = [state["pi_throttled"] for state in states if state.get("pi_throttled") is not None]
    reasons += [f"Raspberry Pi: {text}" for bit, text in PI_REASONS if any(value >> bit & 1 for value in pi)]
    before, after = first["clocks_mhz"], last["clocks_mhz"]
    if before and after and max(after) < CLOCK_FELL * max(before):
        reasons.append(f"the processor's clock fell from {max(before):.0f} to {max(after):.0f} MHz")
    told = last["throttle_counts"] or last["cooling"]["known"] or last.get("gpu_reasons") is not None or pi
    return reasons if told or reasons else None


def _all(root: Path, pattern: str) -> list[Path]:
    return sorted(root.glob(pattern))


def _read(path: Path) -> str:
    """A small file's text; empty where it can't be read, as some files of /sys can't at times."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _text(root: Path, path: str) -> str:
    return _read(root / path)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _memory(root: Path) -> float | None:
    found = re.search(r"MemTotal:\s+(\d+) kB", _text(root, "proc/meminfo"))
    return int(found.group(1)) / 1024 if found else None


def _clocks(root: Path) -> list[float]:
    """Of every processor, in MHz."""
    pattern = "sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq"
    found = [_number(_read(path)) for path in _all(root, pattern)]
    clocks = [value / 1000 for value in found if value is not None]
    if not clocks:
        listed = re.findall(r"^cpu MHz\s*:\s*([\d.]+)", _text(root, "proc/cpuinfo"), re.MULTILINE)
        clocks = [float(value) for value in listed]
    return clocks


def _temperatures(root: Path) -> dict[str, float]:
    """In °C by the sensor's name."""
    found: dict[str, float] = {}
    for zone in _all(root, "sys/class/thermal/thermal_zone*"):
        value = _number(_read(zone / "temp"))
        if value is not None:
            name = _read(zone / "type") or "zone"
            found[name if name not in found else f"{name} {zone.name}"] = value / 1000
    for sensor in _all(root, "sys/class/hwmon/hwmon*/temp*_input"):
        value = _number(_read(sensor))
        if value is not None:
            chip = _read(sensor.with_name("name"))
            label = _read(sensor.with_name(sensor.name.replace("_input", "_label"))) or sensor.name
            found[f"{chip} {label}".strip()] = value / 1000
    return found


def _cooling(root: Path) -> dict[str, Any]:
    """Devices that slow a processor down to cool it: whether there are any, and those that do so now."""
    known, active = False, []
    for device in _all(root, "sys/class/thermal/cooling_device*"):
        kind = _read(device / "type")
        if not any(word in kind.lower() for word in COOLING):
            continue  # such as a fan
        known = True
        if (_number(_read(device / "cur_state")) or 0) > 0:
            active.append(f"{kind} ({device.name})")
    return {"known": known, "active": active}


def _counts(root: Path) -> dict[str, int]:
    """Counters that grow while the machine is held back."""
    counts: dict[str, int] = {}
    for name in ("core_throttle_count", "package_throttle_count"):
        values = [
            _number(_read(path))
            for path in _all(root, f"sys/devices/system/cpu/cpu[0-9]*/thermal_throttle/{name}")
        ]
        if values:
            counts[f"thermal {name.replace('_', ' ')}"] = int(sum(value or 0 for value in values))
    quota = re.search(r"^nr_throttled (\d+)", _text(root, "sys/fs/cgroup/cpu.stat"), re.MULTILINE)
    if quota:
        counts["the container's processor quota"] = int(quota.group(1))
    return counts


def _asked(command: list[str]) -> str:
    """What a program says; empty where it is not there or fails."""
    if shutil.which(command[0]) is None:
        return ""
    try:
        answer = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=SECONDS,
            check=False,
            universal_newlines=True,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return answer.stdout.strip() if answer.returncode == 0 else ""


def _gpu(board: str) -> dict[str, Any]:
    """A GPU's clocks, temperature, power, and the bits of why its clocks are low, by nvidia-smi.

    It is asked by its bus id: nvidia-smi numbers all boards, whatever CUDA_VISIBLE_DEVICES says.
    """
    # drivers from 535 on have the first name, older ones the second
    for reasons in ("clocks_event_reasons.active", "clocks_throttle_reasons.active"):
        fields = (*GPU_FIELDS, reasons)
        said = _asked(
            [
                "nvidia-smi",
                f"--query-gpu={','.join(fields)}",
                "--format=csv,noheader,nounits",
                f"--id={board}",
            ]
        )
        values = [value.strip() for value in said.splitlines()[0].split(",")] if said else []
        if len(values) == len(fields):
            found: dict[str, Any] = {"gpu": dict(zip(GPU_FIELDS, values))}
            try:
                found["gpu_reasons"] = int(values[-1], 16)
            except ValueError:
                found["gpu_reasons"] = None  # such as [N/A]
            return found
    return {}


def _tegrastats() -> str:
    """One line of a Jetson's tegrastats, which would go on for ever."""
    if shutil.which("tegrastats") is None:
        return ""
    try:
        process = subprocess.Popen(
            ["tegrastats", "--interval", "200"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
    except OSError:
        return ""
    timer = threading.Timer(SECONDS, process.kill)
    timer.start()
    try:
        line = process.stdout.readline() if process.stdout is not None else b""
    finally:
        timer.cancel()
        process.kill()
        process.communicate()
    return line.decode("utf-8", "replace").strip()


def _power_mode() -> str:
    """A Jetson's power mode, by nvpmodel."""
    found = re.search(r"NV Power Mode:\s*(\S+)", _asked(["nvpmodel", "-q"]))
    return found.group(1) if found else ""


def _pi() -> int | None:
    found = re.search(r"throttled=(0x[0-9a-fA-F]+)", _asked(["vcgencmd", "get_throttled"]))
    return int(found.group(1), 16) if found else None
