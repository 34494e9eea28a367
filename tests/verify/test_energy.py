"""Energy is read off the board that CUDA runs on, whatever NVML's own order of boards is."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from compactmtl.backends.driver import CudaDevice
from compactmtl.errors import MissingDependencyError
from compactmtl.verify import energy


class FakeNvml(SimpleNamespace):
    """NVML with boards by PCI bus id, each with a counter in millijoules that moves by its own step a read."""

    class NVMLError(Exception):
        pass

    def __init__(self, steps: dict[bytes, int]) -> None:
        super().__init__()
        self.steps, self.counters, self.open = steps, dict.fromkeys(steps, 0), 0

    def nvmlInit(self) -> None:
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlDeviceGetHandleByPciBusId(self, bus: bytes) -> bytes:
        if bus not in self.steps:
            raise self.NVMLError("not found")
        return bus

    def nvmlDeviceGetTotalEnergyConsumption(self, board: bytes) -> int:
        self.counters[board] += self.steps[board]
        return self.counters[board]


def install(patch: pytest.MonkeyPatch, nvml: Any, device: CudaDevice | None) -> None:
    patch.setitem(sys.modules, "pynvml", nvml)
    patch.setattr("compactmtl.verify.energy.cuda_device", lambda: (device, "CUDA_VISIBLE_DEVICES hides all"))


def ticking() -> Any:
    times = iter(x / 4 for x in range(100))
    return lambda: next(times)


def test_the_visible_board_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = FakeNvml({b"0000:01:00.0": 1000, b"0000:65:00.0": 8})
    install(monkeypatch, nvml, CudaDevice("GPU", "9.0", 1, "13.0", "0000:65:00.0"))
    found = energy.energy_per_run(lambda: None, ticking())
    assert nvml.counters[b"0000:01:00.0"] == 0
    assert 0 < found <= 8
    assert nvml.open == 0


def test_no_visible_gpu_and_an_unknown_board_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, FakeNvml({}), None)
    with pytest.raises(MissingDependencyError, match="hides all"):
        energy.energy_per_run(lambda: None, ticking())
    nvml = FakeNvml({})
    install(monkeypatch, nvml, CudaDevice("GPU", "9.0", 1, "13.0", "0000:65:00.0"))
    with pytest.raises(MissingDependencyError, match="NVML counts no energy here: not found"):
        energy.energy_per_run(lambda: None, ticking())
    assert nvml.open == 0
