"""What a synthetic run was measured at: metrics of its tasks, latencies of its models, and a whole verification."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from compactmtl.verify.result import (
    SINGLE,
    AccuracyResult,
    GateResult,
    LatencyResult,
    LatencyStats,
    OutputParity,
    ParityResult,
    TaskMetrics,
    Verification,
)
from compactmtl.verify.speed import speeds, variation

ROOM_TASKS = ("segmentation", "depth", "normals")
BEST: TaskMetrics = {
    "segmentation": {"miou": 0.712, "pixel_accuracy": 0.901},
    "depth": {"abs_err": 0.213, "rel_err": 0.081, "rmse": 0.402},
    "normals": {
        "mean_angle": 12.31,
        "median_angle": 7.9,
        "within_11_25": 0.61,
        "within_22_5": 0.83,
        "within_30": 0.9,
    },
    "age": {"mae": 6.71, "rmse": 9.3},
    "gender": {"accuracy": 0.891},
}


def scaled(factor: float, tasks: tuple[str, ...] = ROOM_TASKS) -> TaskMetrics:
    """Metrics that are all `factor` times the synthetic best ones."""
    return {task: {metric: factor * value for metric, value in BEST[task].items()} for task in tasks}


def stats(name: str, median: float, seed: int, precision: str = "fp32") -> LatencyStats:
    samples = median * (1 + np.random.default_rng(seed).gamma(1.5, 0.03, 100))
    return LatencyStats(
        name=name,
        batch=1,
        samples_ms=tuple(samples.tolist()),
        min_ms=float(samples.min()),
        median_ms=float(np.median(samples)),
        p90_ms=float(np.quantile(samples, 0.9)),
        p99_ms=float(np.quantile(samples, 0.99)),
        variation=variation(samples.tolist()),
        backend="onnxruntime",
        version="1.23.0",
        provider="CPUExecutionProvider",
        device="Some CPU @ 2 GHz",
        precision=precision,
        threads=1,
        includes_transfers=True,
    )


FLOAT = {"dense": 8.4, "compact": 4.1}  # medians in ms
# in int8 the compact model is a little faster than the dense one, and slower than its own float32 form
SLOW_INT8 = {"dense": 5.1, "compact": 4.6, "dense fp32": 8.4, "compact fp32": 4.1}


def timed(medians: Mapping[str, float], precision: str = "fp32") -> LatencyResult:
    """Latencies around these medians, the first model's the reference."""
    found = {
        name: stats(name, median, seed, "fp32" if name.endswith(SINGLE) else precision)
        for seed, (name, median) in enumerate(medians.items())
    }
    reference = found[next(iter(found))]
    result = LatencyResult(
        reference=reference.name,
        stats=found,
        speedup={name: reference.median_ms / one.median_ms for name, one in found.items()},
        paired_speedup={
            name: float(np.median(np.asarray(reference.samples_ms) / np.asarray(one.samples_ms)))
            for name, one in found.items()
        },
    )
    return result.model_copy(update={"speeds": speeds(result)})


def verification(
    tasks: tuple[str, ...] = ROOM_TASKS,
    *,
    passed: bool = True,
    baseline: TaskMetrics | None = None,
    latency: LatencyResult | None = None,
    target: str = "onnxruntime-cpu",
    bounds_accuracy: bool = True,
) -> Verification:
    latency = latency or timed(FLOAT)
    gates = [
        GateResult(
            gate="parity",
            subject=task,
            bound=1e-4,
            value=3e-7,
            passed=True,
            message=f"{task}: 3e-07, at most 1e-04",
        )
        for task in tasks
    ]
    if bounds_accuracy:
        gates += [
            GateResult(
                gate="accuracy",
                subject=f"{task}.{metric}",
                against="torch",
                bound=0.02,
                value=0.01,
                passed=True,
                message=f"{task} {metric}: 1.00% lost, within 2.00%",
            )
            for task in tasks
            for metric in BEST[task]
        ]
    gates.append(
        GateResult(
            gate="latency",
            subject="compact",
            bound=1.5,
            value=2.05 if passed else 1.2,
            passed=passed,
            message="compact: not as much faster as asked",
        )
    )
    return Verification(
        target=target,
        bundle_sha256="0" * 64,
        parity=ParityResult(
            outputs=tuple(
                OutputParity(
                    name=task,
                    shape=(1, 3),
                    max_abs=1e-6,
                    max_relative=3e-7,
                    cosine=1.0,
                    tolerance=1e-4,
                    passed=True,
                )
                for task in tasks
            ),
            samples=4,
            passed=True,
        ),
        accuracy=AccuracyResult(
            samples=8, torch=scaled(0.99, tasks), artifact=scaled(0.98, tasks), baseline=baseline
        ),
        latency=latency,
        megabytes=3.21,
        gates=tuple(gates),
        passed=passed,
        versions={"onnxruntime": "1.23.0"},
        created="2026-01-02T03:04:05+00:00",
    )
