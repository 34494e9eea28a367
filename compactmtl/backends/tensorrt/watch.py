"""Watching a build: a progress bar, Ctrl-C, its time and the memory that it takes."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from compactmtl.backends.memory import highest
from compactmtl.backends.tensorrt.api import TensorRT

if TYPE_CHECKING:
    from types import FrameType

    import tensorrt as trt

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Watch:
    """What the builder reports, from threads of its own."""

    def __init__(self, bar: Progress) -> None:
        self.stopped = False
        self.seconds = 0.0
        self.peak_mib: float | None = None  # held at most beyond what was held before; None: not told
        self._bar = bar
        self._tasks: dict[str, TaskID] = {}
        self._lock = threading.Lock()

    def start(self, phase: str, parent: str | None, steps: int) -> None:
        """A phase begins."""
        with self._lock:
            indent = "  " if parent else ""
            self._tasks[phase] = self._bar.add_task(indent + phase, total=steps)

    def step(self, phase: str, step: int) -> bool:
        """A step of a phase is done; False asks the builder to stop."""
        with self._lock:
            if phase in self._tasks:
                self._bar.update(self._tasks[phase], completed=step + 1)
        return not self.stopped

    def finish(self, phase: str) -> None:
        """A phase is over."""
        with self._lock:
            if (task := self._tasks.pop(phase, None)) is not None:
                self._bar.remove_task(task)


def attach(api: TensorRT, config: trt.IBuilderConfig, watch: Watch) -> object:
    """Give the builder's configuration a monitor that reports to `watch`; it must live as long as the configuration."""

    class Monitor(api.IProgressMonitor):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            api.IProgressMonitor.__init__(self)  # pybind11 wants it by name

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            watch.start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return watch.step(phase_name, step)

        def phase_finish(self, phase_name: str) -> None:
            watch.finish(phase_name)

    monitor = Monitor()
    config.progress_monitor = monitor
    return monitor


@contextmanager
def watching() -> Iterator[Watch]:
    """A bar on a terminal, and Ctrl-C as a wish that the builder stop: an exception must not run through its C++.

    Raises KeyboardInterrupt after the builder has stopped.
    """
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    watch = Watch(bar)

    def stop(number: int, frame: FrameType | None) -> None:
        watch.stopped = True

    # Python hands signals to the main thread alone.
    main = threading.current_thread() is threading.main_thread()
    former = signal.signal(signal.SIGINT, stop) if main else None
    before = _reset_peak()
    started = time.monotonic()
    try:
        with bar:
            yield watch
    finally:
        watch.seconds = time.monotonic() - started
        # A small build may fit into pages that the process was given earlier and still holds: then nothing can be told.
        watch.peak_mib = None if before is None or (more := highest() - before) <= 0 else more / 2**20
        if main:
            signal.signal(signal.SIGINT, former or signal.default_int_handler)
    if watch.stopped:
        raise KeyboardInterrupt


def _reset_peak() -> int | None:
    """Let the kernel forget the process's highest memory; what it holds now, in bytes. None where it can't be told."""
    with contextlib.suppress(OSError, StopIteration, ValueError):
        _CLEAR.write_text("5")
        line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmRSS:"))
        return int(line.split()[1]) * 1024
    return None
