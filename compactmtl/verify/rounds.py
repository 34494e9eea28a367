"""Interleaved rounds of timed calls. Also part of a device kit: the standard library alone.

A device kit is one file for Python 3.8: this module must stay readable for it and may import nothing of the project.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping


def timed_rounds(
    calls: Mapping[str, Callable[[], object]],
    warmup: int,
    repeats: int,
    settle: int,
    between: Callable[[int], object] | None = None,
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Milliseconds of wall and of processor time by name; round r begins with call r modulo their number.

    Each call returns when its work is done. `settle` unmeasured calls go before each measured one. `between` is called
    with the number of each finished round, while no clock runs.
    """
    names = list(calls)
    samples: dict[str, list[float]] = {name: [] for name in names}
    process: dict[str, list[float]] = {name: [] for name in names}
    clock, processor = time.perf_counter_ns, time.process_time_ns
    for _ in range(warmup):
        for name in names:
            calls[name]()
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for index in range(repeats):
            first = index % len(names)
            for name in names[first:] + names[:first]:
                call = calls[name]
                for _ in range(settle):
                    call()
                busy = processor()
                start = clock()
                call()
                stop = clock()
                process[name].append((processor() - busy) / 1e6)
                samples[name].append((stop - start) / 1e6)
            if between is not None:
                between(index)
    finally:
        if collecting:
            gc.enable()
    return samples, process
