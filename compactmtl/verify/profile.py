"""Measure opened models side by side: paired latency, throughput by batch size, memory, layers, phases, energy.

What can't be measured here is named with its reason, never left out silently.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from compactmtl.artifacts.told import now
from compactmtl.backends import Runner, get_backend
from compactmtl.backends.base import LayerTime
from compactmtl.backends.batching import fixed_batch
from compactmtl.backends.memory import peak_memory
from compactmtl.backends.model_file import model_files, model_sha256
from compactmtl.backends.noise import noise_for
from compactmtl.backends.versions import package_versions
from compactmtl.config.target import Target
from compactmtl.errors import CompactError, ConfigError
from compactmtl.verify.call import call_time
from compactmtl.verify.energy import energy_per_run
from compactmtl.verify.graph_work import graph_work
from compactmtl.verify.latency import LOW, Fed, is_disturbed, measure_latency
from compactmtl.verify.result import LatencyStats, Measured, PhaseTimes, Profile, SubjectProfile

PHASE_RUNS = 50


@dataclass(frozen=True)
class Subject:
    """One model to profile: its file, opened on its target."""

    path: Path
    target: Target
    runner: Runner
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # of inputs with free dimensions
    note: str = ""  # what a reader of its figures has to know


@dataclass(frozen=True)
class Options:
    """What to measure and how often."""

    batch: int = 1
    batches: Sequence[int] = (1, 4, 8)
    warmup: int = 10
    repeats: int = 100
    settle: int = 3  # runs of a model before each clocked one
    layer_repeats: int = 20
    layer_quantile: float = 0.5  # of the runs, that a layer's time is
    layers: bool = True
    memory: bool = True
    energy: bool = True


def profile(
    subjects: Mapping[str, Subject], options: Options, progress: Callable[[str], None] = lambda line: None
) -> Profile:
    """Everything of every subject. The first is the reference that speedups are against.

    Raises ConfigError on inputs that can't be made up, and what a runner raises on its own inputs.
    """
    if not subjects:
        raise ConfigError("nothing to profile", "name at least one run, bundle or model file")
    progress(f"latency, {options.repeats} interleaved rounds")
    latency = measure_latency(
        {name: _fed(one, options.batch) for name, one in subjects.items()},
        warmup=options.warmup,
        repeats=options.repeats,
        settle=options.settle,
    )
    progress("throughput at batch " + ", ".join(map(str, options.batches)))
    if any(map(is_disturbed, latency.stats.values())):
        options = replace(options, layer_quantile=LOW)
    measured = measure(subjects, options, progress)
    return Profile(
        latency=latency,
        subjects={
            name: SubjectProfile(
                path=str(one.path),
                sha256=model_sha256(one.path),
                target=f"{one.target.backend}, {one.target.precision}",
                note=one.note,
                **dict(measured[name]),
            )
            for name, one in subjects.items()
        },
        versions=package_versions(),
        created=now(),
    )


def measure(
    subjects: Mapping[str, Subject], options: Options, progress: Callable[[str], None] = lambda line: None
) -> dict[str, Measured]:
    """All but the latency of every subject. Raises as `profile` does."""
    throughput, skipped = _throughput(subjects, options)
    measured = {}
    for name, one in subjects.items():
        progress(f"{name}: layers" + (", memory" if options.memory else ""))
        measured[name] = _measured(one, options, throughput[name], skipped[name])
    return measured


def _fed(subject: Subject, batch: int) -> Fed:
    fixed = fixed_batch(subject.runner)
    return Fed(subject.runner, noise_for(subject.runner.inputs, fixed or batch, subject.shapes))


def _throughput(
    subjects: Mapping[str, Subject], options: Options
) -> tuple[dict[str, dict[int, float]], dict[str, dict[str, str]]]:
    """Samples a second by batch size, paired among all that take that size; and why not, for the others."""
    rates: dict[str, dict[int, float]] = {name: {} for name in subjects}
    skipped: dict[str, dict[str, str]] = {name: {} for name in subjects}
    for batch in options.batches:
        fed = {}
        for name, one in subjects.items():
            fixed = fixed_batch(one.runner)
            if fixed not in (None, batch) or one.shapes:
                skipped[name][f"throughput at batch {batch}"] = (
                    "its shapes were given" if one.shapes else f"its batch is fixed to {fixed}"
                )
                continue
            fed[name] = Fed(one.runner, noise_for(one.runner.inputs, batch))
        if not fed:
            continue
        repeats = max(5, options.repeats // batch)
        warmup = min(3, options.warmup)
        stats = measure_latency(fed, warmup=warmup, repeats=repeats, settle=options.settle).stats
        for name, one_stats in stats.items():
            rates[name][batch] = 1e3 * batch / one_stats.median_ms
    return rates, skipped


def _measured(
    subject: Subject, options: Options, throughput: dict[int, float], not_run: dict[str, str]
) -> Measured:
    fed = _fed(subject, options.batch)
    parts: dict[str, Any] = {}
    parts_asked: dict[str, tuple[bool, Callable[[], Any]]] = {
        "memory": (
            options.memory,
            lambda: peak_memory(subject.path, subject.target, options.batch, subject.shapes),
        ),
        "layers": (
            options.layers,
            lambda: fed.runner.layer_times(fed.arrays, options.layer_repeats, options.layer_quantile),
        ),
        "phases": (True, lambda: _phases(fed)),
        "energy_mj": (
            options.energy,
            lambda: energy_per_run(lambda: fed.runner.run(fed.arrays), time.perf_counter),
        ),
    }
    for name, (asked, measure) in parts_asked.items():
        if not asked:
            not_run[name] = "not asked for"
            continue
        try:
            parts[name] = measure()
        except CompactError as error:
            not_run[name] = error.message
    if times := parts.get("layers"):
        parts |= _work(subject, fed, times, not_run)
    return Measured(
        megabytes=sum(file.stat().st_size for file in model_files(subject.path)) / 1e6,
        throughput=throughput,
        not_run=not_run,
        **parts,
    )


def _work(subject: Subject, fed: Fed, times: Sequence[LayerTime], not_run: dict[str, str]) -> dict[str, Any]:
    """What the timed layers compute and, where the host's clock tells, what the call alone takes."""
    target, backend = subject.target, get_backend(subject.target.backend)
    found: dict[str, Any] = {}
    try:
        step = backend.channel_step(target)
        found["work"] = graph_work(subject.path, fed.arrays, times, target.precision, step)
        if backend.on_cpu(target):
            found["call_ms"] = call_time(fed.runner, fed.arrays, target)
    except CompactError as error:
        not_run["work"] = error.message
    return found


def _phases(fed: Fed) -> PhaseTimes:
    """Medians of copies and compute. Raises ArtifactError where the runner has no clock of a GPU."""
    runs = [fed.runner.timed(fed.arrays) for _ in range(PHASE_RUNS)]
    return PhaseTimes(
        copy_in_ms=float(np.median([one.copy_in_ms for one in runs])),
        compute_ms=float(np.median([one.compute_ms for one in runs])),
        copy_out_ms=float(np.median([one.copy_out_ms for one in runs])),
        samples=tuple((one.copy_in_ms, one.compute_ms, one.copy_out_ms) for one in runs),
    )


def export_times(stats: LatencyStats, phases: PhaseTimes | None = None) -> list[dict[str, float]]:
    """Every run of one model in the form of `trtexec --exportTimes`, runs end to end.

    On a GPU the runs whose copies were timed apart, by its own clock. A run on the host has no copies: its latency is
    its compute.
    """
    times, now = [], 0.0
    if phases is not None:
        for copy_in, compute, copy_out in phases.samples:
            ends = now + copy_in, now + copy_in + compute, now + copy_in + compute + copy_out
            times.append(
                {
                    "startH2dMs": now,
                    "endH2dMs": ends[0],
                    "startComputeMs": ends[0],
                    "endComputeMs": ends[1],
                    "startD2hMs": ends[1],
                    "endD2hMs": ends[2],
                    "h2dMs": copy_in,
                    "computeMs": compute,
                    "d2hMs": copy_out,
                    "latencyMs": ends[2] - now,
                }
            )
            now = ends[2]
        return times
    for sample in stats.samples_ms:
        times.append(
            {
                "startEnqMs": now,
                "endEnqMs": now + sample,
                "startComputeMs": now,
                "endComputeMs": now + sample,
                "computeMs": sample,
                "latencyMs": sample,
            }
        )
        now += sample
    return times
