"""Energy of runs on the first visible NVIDIA GPU, by its own counter; the whole board's, so nothing else may run on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from compactmtl.backends.driver import cuda_device
from compactmtl.errors import MissingDependencyError

LEAST_SECONDS = 1.0  # the counter moves in steps of tens of milliseconds


def energy_per_run(run: Callable[[], object], clock: Callable[[], float]) -> float:
    """Millijoules a run takes, over at least a second of runs. `clock` gives seconds.

    Raises MissingDependencyError without nvidia-ml-py, a driver, or a GPU that counts.
    """
    try:
        import pynvml
    except ImportError as error:
        raise MissingDependencyError("energy needs nvidia-ml-py", "pip install 'compactmtl[gpu]'") from error
    try:
        pynvml.nvmlInit()
        try:
            device = _handle(pynvml)
            return _measure(run, clock, lambda: int(pynvml.nvmlDeviceGetTotalEnergyConsumption(device)))
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError as error:
        raise MissingDependencyError(
            f"NVML counts no energy here: {error}", "a GPU from Volta on counts it"
        ) from error


def _handle(nvml: Any) -> Any:
    """NVML's handle of the board that CUDA runs on: NVML numbers all boards by place, whatever CUDA_VISIBLE_DEVICES says.

    A MIG slice has no counter of its own; it is its board's.
    """
    device, reason = cuda_device()
    if device is None:
        raise MissingDependencyError(
            f"energy needs a GPU: {reason}", "run it on a machine with an NVIDIA GPU"
        )
    return nvml.nvmlDeviceGetHandleByPciBusId(device.bus.encode())


def _measure(run: Callable[[], object], clock: Callable[[], float], counter: Callable[[], int]) -> float:
    run()
    runs, before, start = 0, counter(), clock()
    while clock() - start < LEAST_SECONDS:
        run()
        runs += 1
    return (counter() - before) / runs
