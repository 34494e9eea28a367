"""A live module as a target runs it: timed without what `TorchRunner` does to leave a module as it was."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from compactmtl.backends.base import PROFILE_WARMUP, Arrays, LayerTime
from compactmtl.backends.torch.runner import TorchRunner, as_array, named_outputs, synchronizer
from compactmtl.graph.borrow import borrowed
from compactmtl.graph.float32 import float32_products


class LiveRunner(TorchRunner):
    """A module in eval mode without gradients; what it was is put back on close, and not after every run."""

    def __init__(self, module: nn.Module, input_names: Sequence[str], threads: int | None = None) -> None:
        super().__init__(module, input_names, threads=threads)
        self._held = ExitStack()
        self._held.enter_context(borrowed(module, weights=False))
        if self.device.type != "cpu":
            self._held.enter_context(float32_products())  # what is called fp32 is not timed in TF32

    def _run(self, inputs: Arrays) -> dict[str, NDArray[np.floating[Any]]]:
        if self.threads is not None and torch.get_num_threads() != self.threads:
            torch.set_num_threads(self.threads)
        arguments = [torch.as_tensor(inputs[name], device=self.device) for name in self.input_names]
        with torch.no_grad():
            tensors = named_outputs(self.module(*arguments))
        return {name: as_array(tensor) for name, tensor in tensors.items()}

    def layer_times(self, inputs: Arrays, repeats: int = 20, quantile: float = 0.5) -> tuple[LayerTime, ...]:
        """Time of every module without modules in it, and of what a forward does between two of them, in their order.

        A module that is called more than once is one step, at its first place.
        """
        # other programs stretch the wall's clock, and not the time of the one thread
        tick = time.thread_time_ns if self._alone else time.perf_counter_ns
        with _Clock(self.module, tick, synchronizer(self.device)) as clock:
            for index in range(PROFILE_WARMUP + repeats):
                clock.counts = index >= PROFILE_WARMUP
                clock.start()
                self._run(inputs)
                clock.stop("")
        return clock.steps(quantile)

    @property
    def _alone(self) -> bool:
        return self.device.type == "cpu" and self.threads == 1

    def close(self) -> None:
        self._held.close()
        super().close()


class _Clock:
    """Notes when the leaves of a module begin and end."""

    def __init__(self, module: nn.Module, tick: Callable[[], int], wait: Callable[[], None] | None) -> None:
        self.counts = False  # whether this run is noted
        self._module, self._tick, self._wait = module, tick, wait
        self._times: dict[tuple[str, str], list[float]] = {}  # step and operator -> ms of each run
        self._run: dict[tuple[str, str], float] = {}
        self._before, self._last = 0, ""
        self._handles: list[Any] = []

    def __enter__(self) -> _Clock:
        for name, module in self._module.named_modules():
            if not any(module.children()):
                operator = type(module).__name__
                begin, end = partial(self._begin, name), partial(self._end, name, operator)
                self._handles.append(module.register_forward_pre_hook(begin))
                self._handles.append(module.register_forward_hook(end))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def start(self) -> None:
        """A run begins."""
        self._run, self._last = {}, ""
        self._before = self._now()

    def stop(self, name: str) -> None:
        """It has ended: what came after the last leaf is a step, too."""
        self._between(name)
        if self.counts:
            for step, ms in self._run.items():
                self._times.setdefault(step, []).append(ms)

    def steps(self, quantile: float) -> tuple[LayerTime, ...]:
        """Of each step a quantile over the runs, in the order of execution."""
        return tuple(
            LayerTime(name=name, operator=operator, milliseconds=float(np.quantile(times, quantile)))
            for (name, operator), times in self._times.items()
        )

    def _begin(self, name: str, _module: nn.Module, _args: object) -> None:
        self._between(name)

    def _end(self, name: str, operator: str, _module: nn.Module, _args: object, _output: object) -> None:
        now = self._now()
        self._add((name, operator), now)
        self._last = name

    def _between(self, name: str) -> None:
        """What ran since the last leaf: functions in the forward of the modules above."""
        after = self._last
        self._add((f"after {after}" if after else f"before {name}", "functions"), self._now())

    def _add(self, step: tuple[str, str], now: int) -> None:
        self._run[step] = self._run.get(step, 0.0) + (now - self._before) / 1e6
        self._before = self._now()

    def _now(self) -> int:
        if self._wait is not None:
            self._wait()
        return self._tick()
