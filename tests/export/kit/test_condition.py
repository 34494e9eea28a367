"""What a machine says of its condition, read from a tree of files like /proc and /sys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from compactmtl.export.kit import condition as module
from compactmtl.export.kit.condition import condition, described, held_back


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


BOARD = {
    "proc/device-tree/model": "NVIDIA Jetson Orin Nano\0",
    "proc/meminfo": "MemTotal:        8000000 kB\n",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "1510400\n",
    "sys/devices/system/cpu/cpu1/cpufreq/scaling_cur_freq": "729600\n",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "schedutil\n",
    "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count": "3\n",
    "sys/devices/system/cpu/cpu1/thermal_throttle/core_throttle_count": "4\n",
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
    "sys/class/thermal/thermal_zone0/temp": "51250\n",
    "sys/class/thermal/cooling_device0/type": "pwm-fan\n",
    "sys/class/thermal/cooling_device0/cur_state": "2\n",
    "sys/class/thermal/cooling_device1/type": "cpufreq-cpu0\n",
    "sys/class/thermal/cooling_device1/cur_state": "0\n",
    "sys/class/hwmon/hwmon0/name": "coretemp\n",
    "sys/class/hwmon/hwmon0/temp1_input": "48000\n",
    "sys/class/hwmon/hwmon0/temp1_label": "Package id 0\n",
    "sys/fs/cgroup/cpu.stat": "usage_usec 1\nnr_throttled 7\n",
}


def quiet(**values: Any) -> dict[str, Any]:
    """A state of a machine that runs at its speed."""
    state: dict[str, Any] = {
        "load": 0.1,
        "clocks_mhz": [1500.0],
        "temperatures": {},
        "cooling": {"known": True, "active": []},
        "throttle_counts": {"thermal core throttle count": 7},
    }
    return {**state, **values}


def test_a_board_is_described_by_its_own_name(tmp_path: Path) -> None:
    found = described(tree(tmp_path, BOARD))
    assert found["board"] == "NVIDIA Jetson Orin Nano"
    assert found["memory_mib"] == pytest.approx(7812.5)
    assert found["governor"] == "schedutil"


def test_clocks_temperatures_and_counters_are_read(tmp_path: Path) -> None:
    state = condition(root=tree(tmp_path, BOARD), commands=False)
    assert state["clocks_mhz"] == [1510.4, 729.6]
    assert state["temperatures"] == {"cpu-thermal": 51.25, "coretemp Package id 0": 48.0}
    assert state["throttle_counts"] == {
        "thermal core throttle count": 7,
        "the container's processor quota": 7,
    }
    assert state["cooling"] == {"known": True, "active": []}  # a fan slows nothing down


def test_a_system_that_tells_nothing_gives_nothing(tmp_path: Path) -> None:
    state = condition(root=tmp_path, commands=False)
    assert (state["clocks_mhz"], state["temperatures"], state["throttle_counts"]) == ([], {}, {})
    assert held_back([state, state]) is None


def test_a_machine_that_tells_and_was_not_held_back(tmp_path: Path) -> None:
    state = condition(root=tree(tmp_path, BOARD), commands=False)
    assert held_back([state, state]) == []


@pytest.mark.parametrize(
    ("after", "reason"),
    [
        ({"throttle_counts": {"thermal core throttle count": 9}}, "counted 2 times"),
        ({"cooling": {"known": True, "active": ["cpufreq-cpu0"]}}, "cpufreq-cpu0 is active"),
        ({"gpu_reasons": 0x40}, "GPU: hardware thermal slowdown"),
        ({"gpu_reasons": 0x04}, "GPU: power cap"),
        ({"pi_throttled": 0x50005}, "Raspberry Pi: under-voltage"),
        ({"clocks_mhz": [600.0]}, "fell from 1500 to 600 MHz"),
    ],
)
def test_each_way_of_being_held_back_is_told(after: dict[str, Any], reason: str) -> None:
    found = held_back([quiet(), quiet(), quiet(**after)])
    assert found is not None
    assert any(reason in one for one in found)


@pytest.mark.parametrize("after", [{"gpu_reasons": 0x01}, {"pi_throttled": 0x50000}])
def test_idle_clocks_and_what_is_long_past_do_not_count(after: dict[str, Any]) -> None:
    assert held_back([quiet(**after), quiet(**after)]) == []


@pytest.mark.parametrize("field", ["clocks_event_reasons.active", "clocks_throttle_reasons.active"])
def test_nvidia_smi_is_asked_by_the_new_and_the_old_name(field: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the board that CUDA runs on, whose number is another one where CUDA_VISIBLE_DEVICES says which are seen."""

    def asked(command: list[str]) -> str:
        if command[0] == "nvidia-smi" and field in command[1] and "--id=0000:65:00.0" in command:
            return "1700, 6000, 1980, 62, 35.5, P0, 0x0000000000000020"
        return ""

    monkeypatch.setattr(module, "_asked", asked)
    state = condition("0000:65:00.0")
    assert state["gpu"]["temperature.gpu"] == "62"
    assert state["gpu_reasons"] == 0x20


def test_programs_are_asked_where_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "bin"
    tools = {
        "tegrastats": "while true; do echo 'RAM 2/8MB GR3D_FREQ 0%'; sleep 0.2; done",
        "nvpmodel": "echo 'NV Power Mode: 15W'",
        "vcgencmd": "echo throttled=0x2",
        "nvidia-smi": "exit 9",
    }
    tree(folder, {name: f"#!/bin/sh\n{text}\n" for name, text in tools.items()})
    for name in tools:
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    state = condition("0000:65:00.0", tmp_path)
    assert state["tegrastats"] == "RAM 2/8MB GR3D_FREQ 0%"
    assert state["pi_throttled"] == 2
    assert "gpu" not in state
    assert described(tmp_path)["power_mode"] == "15W"


def test_a_gpu_that_is_not_measured_is_not_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A processor was not held back because some GPU of the machine is at its power cap."""
    asked: list[str] = []
    monkeypatch.setattr(module, "_asked", lambda command: asked.append(command[0]) or "")  # type: ignore[func-returns-value]
    assert "gpu" not in condition(root=tmp_path)
    assert "nvidia-smi" not in asked
