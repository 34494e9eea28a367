"""Energy of runs on the first NVIDIA GPU, by its own counter; the whole board's, so nothing else may run on it."""

from __future__ import annotations

from collections.abc import Callable

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
            device = pynvml.nvmlDeviceGetHandleByIndex(0)
            return _measure(run, clock, lambda: int(pynvml.nvmlDeviceGetTotalEnergyConsumption(device)))
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError as error:
        raise MissingDependencyError(
            f"NVML counts no energy here: {error}", "a GPU from Volta on counts it"
        ) from error


def _measure(run: Callable[[], object], clock: Callable[[], float], counter: Callable[[], int]) -> float:
    run()
    runs, before, start = 0, counter(), clock()
    while clock() - start < LEAST_SECONDS:
        run()
        runs += 1
    return (counter() - before) / runs
