"""Latency, paired and interleaved: every round clocks every model once, so that drift hits all alike.

Nothing is dropped: an outlier is a property of the machine that the user deploys on.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from compactmtl.backends import Description, Runner
from compactmtl.backends.base import Arrays
from compactmtl.backends.machine import cpu_name, load_average
from compactmtl.backends.torch.runner import TorchRunner, device_of, synchronizer
from compactmtl.errors import ConfigError
from compactmtl.graph.borrow import borrowed
from compactmtl.graph.float32 import float32_products
from compactmtl.graph.inputs import Arguments, as_arguments, batch_size, map_tensors
from compactmtl.verify.parity import to_arrays
from compactmtl.verify.result import LatencyResult, LatencyStats
from compactmtl.verify.rounds import timed_rounds
from compactmtl.verify.speed import speeds, variation

LOW = 0.1  # quantile of runs that other programs did not disturb
DISTURBED = (
    1.1  # times its processor time that a model takes by the wall's clock, above which cores are not idle
)


@dataclass(frozen=True)
class Fed:
    """A runner with inputs of its own, for models that don't take the same."""

    runner: Runner
    arrays: Arrays


Runnable = Runner | Fed | nn.Module | Callable[..., object]
LatencyInputs = Tensor | tuple[Any, ...] | Mapping[str, Any] | None


def measure_latency(
    runnables: Mapping[str, Runnable],
    inputs: LatencyInputs = None,
    *,
    warmup: int = 10,
    repeats: int = 100,
    settle: int = 3,
    reference: str | None = None,
) -> LatencyResult:
    """Measure latencies in interleaved rounds: each round runs every model once, in an order that rotates.

    Args:
        runnables: what to measure, by name. A Runner receives host arrays, a Fed runner its own, and a module tensors (in
            eval mode, without gradients, with its device synchronized). Any other callable is called with the inputs
            as they are, or with none where `inputs` is None, and must return only when its work is done.
        inputs: a tensor, positional arguments or, for modules, a mapping of keyword arguments, batch first. Arguments may
            hold lists, dicts and dataclasses of tensors, and other values; a Runner receives the tensors in them.
        warmup: unmeasured rounds at the start.
        repeats: measured rounds.
        settle: unmeasured runs of a model before each of its measured ones, where there are several models. Otherwise the
            caches still hold the previous model's weights, which mainly penalizes small models.
        reference: name of the model that speedups refer to. By default the first.

    Times are wall-clock milliseconds by `time.perf_counter_ns`. Garbage collection is off while the clock runs.

    Raises:
        ConfigError: for an empty mapping, an unknown reference, or repeats < 1.
    """
    names = list(runnables)
    if not names:
        raise ConfigError("no model to measure", "give at least one")
    reference = names[0] if reference is None else reference
    if reference not in runnables:
        raise ConfigError(f"reference '{reference}' is not among {names}", "name one of them")
    if repeats < 1 or warmup < 0 or settle < 0:
        raise ConfigError(
            f"latency needs repeats >= 1, warmup >= 0 and settle >= 0, found {repeats}, {warmup} and {settle}",
            "mend the target",
        )
    with ExitStack() as stack:
        subjects = {name: _subject(runnable, inputs, stack) for name, runnable in runnables.items()}
        load = load_average()
        settled = settle if len(names) > 1 else 0
        calls = {name: subject.call for name, subject in subjects.items()}
        samples, process = timed_rounds(calls, warmup, repeats, settled)
        described = {name: subject.describe() for name, subject in subjects.items()}
    batch = batch_size((inputs,))
    stats = {
        name: latency_stats(
            name,
            samples[name],
            process[name],
            _own_batch(runnables[name], batch),
            described[name],
            subjects[name].includes_transfers,
        )
        for name in names
    }
    return latency_result(stats, reference, warmup=warmup, settle=settled, load_average=load)


def latency_result(
    stats: Mapping[str, LatencyStats],
    reference: str,
    *,
    warmup: int,
    settle: int,
    load_average: float | None,
) -> LatencyResult:
    """Latencies that were taken in the same rounds, with their ratios to the reference's."""
    base = np.asarray(stats[reference].samples_ms, dtype=np.float64)
    result = LatencyResult(
        reference=reference,
        stats=dict(stats),
        speedup={name: stats[reference].median_ms / one.median_ms for name, one in stats.items()},
        paired_speedup={
            name: float(np.median(base / np.asarray(one.samples_ms))) for name, one in stats.items()
        },
        warmup=warmup,
        settle=settle,
        load_average=load_average,
    )
    return result.model_copy(update={"speeds": speeds(result)})


@dataclass(frozen=True)
class _Subject:
    """One thing to time: a call without arguments that returns when the work is done."""

    call: Callable[[], object]
    describe: Callable[[], Description]
    includes_transfers: bool


def _subject(runnable: Runnable, inputs: LatencyInputs, stack: ExitStack) -> _Subject:
    if isinstance(runnable, Fed):
        runner, own = runnable.runner, runnable.arrays
        return _Subject(lambda: runner.run(own), runner.describe, includes_transfers=True)
    if isinstance(runnable, Runner):
        if inputs is None:
            raise ConfigError("a runner can't be timed without inputs", "give the inputs it takes")
        given: tuple[Any, ...] = (inputs,)
        if isinstance(inputs, Mapping) and set(runnable.input_names) <= set(inputs):
            given = tuple(inputs[name] for name in runnable.input_names)
        arrays = to_arrays(runnable, given)
        return _Subject(lambda: runnable.run(arrays), runnable.describe, includes_transfers=True)
    if isinstance(runnable, nn.Module):
        if inputs is None:
            raise ConfigError("a module can't be timed without inputs", "give the inputs it takes")
        arguments = as_arguments(runnable, inputs)
        stack.enter_context(borrowed(runnable))
        if device_of(runnable).type != "cpu":
            stack.enter_context(float32_products())  # what is called fp32 is not timed in TF32
        return _module_subject(runnable, arguments)
    if inputs is None:
        return _Subject(runnable, _host, includes_transfers=True)
    if isinstance(inputs, Mapping):
        return _Subject(lambda: runnable(**inputs), _host, includes_transfers=True)
    positional = (inputs,) if isinstance(inputs, Tensor) else inputs
    return _Subject(lambda: runnable(*positional), _host, includes_transfers=True)


def _module_subject(module: nn.Module, arguments: Arguments) -> _Subject:
    device = device_of(module)
    placed = map_tensors(lambda tensor: tensor.to(device), arguments)
    wait = synchronizer(device)

    def call() -> object:
        with torch.no_grad():  # not in inference mode: a forward may keep what it makes
            outputs = module(*placed)
        if wait is not None:
            wait()
        return outputs

    describe = TorchRunner(module, [f"input_{i}" for i in range(len(placed))]).describe
    return _Subject(call, describe, includes_transfers=device.type == "cpu")


def _host() -> Description:
    """What is known of a plain callable: it ran in this Python on this machine."""
    return Description("callable", platform.python_version(), "unknown", cpu_name(), "unknown", None)


def latency_stats(
    name: str,
    samples: Sequence[float],
    process: Sequence[float],
    batch: int,
    description: Description,
    includes_transfers: bool,
) -> LatencyStats:
    """One model's milliseconds of wall and of processor time, and on what they were taken."""
    times: NDArray[Any] = np.asarray(samples, dtype=np.float64)
    p90, p99 = np.percentile(times, [90, 99])
    low, first = np.quantile(np.asarray(process, dtype=np.float64), [LOW, 0.25])
    return LatencyStats(
        name=name,
        batch=batch,
        samples_ms=tuple(samples),
        min_ms=float(times.min()),
        median_ms=float(np.median(times)),
        p90_ms=float(p90),
        p99_ms=float(p99),
        variation=variation(samples),
        backend=description.backend,
        version=description.version,
        provider=description.provider,
        device=description.device,
        precision=description.precision,
        threads=description.threads,
        includes_transfers=includes_transfers,
        layers=dict(description.layers),
        process_ms=float(np.median(process)),
        process_low_ms=float(low),
        process_variation=float(first / low - 1) if low > 0 else math.inf,
    )


def is_disturbed(stats: LatencyStats) -> bool:
    """Whether other programs stretched the latencies of a model that runs in one thread."""
    if stats.threads != 1 or not stats.process_low_ms:
        return False  # nothing tells
    return stats.median_ms > DISTURBED * stats.process_low_ms


def undisturbed(*stats: LatencyStats) -> list[tuple[float, float]]:
    """Of each model its latency as it is on idle cores, in milliseconds, and how much that varies.

    The median of the wall's clock. Where other programs disturbed one of the models, the 10th percentile of all their
    processor times: of a model in one thread, those runs had a core and its caches to themselves.
    """
    lows = [(one.process_low_ms, one.process_variation) for one in stats if one.threads == 1]
    known = [(low, spread) for low, spread in lows if low and spread is not None]
    if len(known) < len(stats) or not any(map(is_disturbed, stats)):
        return [(one.median_ms, one.variation) for one in stats]
    return known


def _own_batch(runnable: Runnable, batch: int) -> int:
    return len(next(iter(runnable.arrays.values()))) if isinstance(runnable, Fed) else batch
