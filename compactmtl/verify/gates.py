"""Gates: the bounds that a target sets, held against what verification found."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Protocol

from compactmtl.config.target import Target
from compactmtl.errors import GateError
from compactmtl.verify.result import (
    AccuracyResult,
    GateResult,
    LatencyResult,
    OutputParity,
    ParityResult,
    TaskMetrics,
)

if TYPE_CHECKING:
    from compactmtl.tasks.base import MetricInfo


class Scored(Protocol):
    """What a gate needs of a task: which way its metrics go, and its first one."""

    @property
    def primary(self) -> str: ...

    @property
    def metric_info(self) -> Mapping[str, MetricInfo]: ...


def check_gates(
    target: Target,
    tasks: Mapping[str, Scored],
    *,
    parity: ParityResult,
    accuracy: AccuracyResult,
    latency: LatencyResult,
    subject: str,
    megabytes: float,
) -> tuple[GateResult, ...]:
    """Every bound of the target with its value: parity by output, accuracy by task and metric, latency, size.

    `subject` is the artifact's name in `latency`. Against the torch model every metric counts; against the
    dense baseline, where one was given and the target bounds it, each task's primary metric.
    """
    return (
        *_parity(parity),
        *export_drops(target, tasks, accuracy),
        *_compact_drop(target, tasks, accuracy),
        *_latency(target, latency, subject),
        *_size(target, megabytes),
    )


def raise_failed(gates: tuple[GateResult, ...], what: str) -> None:
    """Raise GateError naming every gate that doesn't hold, with its bound and value; return if all hold."""
    failed = [gate for gate in gates if not gate.passed]
    if failed:
        raise GateError(
            f"{what} failed {len(failed)} of {len(gates)} gates: "
            + "; ".join(gate.message for gate in failed),
            "the bundle is kept and marked as failed; mend the model or, knowingly, the target's bound",
        )


def relative_drop(value: float, reference: float, higher_is_better: bool) -> float:
    """Loss of a metric as a share of the reference's magnitude, positive where it got worse.

    The plain difference where the reference is 0. Infinite where either is not a finite number, unless both
    are NaN, which is how a metric says that the set holds nothing to measure.
    """
    if math.isnan(value) and math.isnan(reference):
        return 0.0
    if not (math.isfinite(value) and math.isfinite(reference)):
        return math.inf
    worse = reference - value if higher_is_better else value - reference
    return worse / abs(reference) if reference else worse


def _parity(parity: ParityResult) -> Iterator[GateResult]:
    for output in parity.outputs:
        if math.isinf(output.tolerance):
            continue  # shown, not bounded: int8 is judged by the tasks' metrics
        yield GateResult(
            gate="parity",
            subject=output.name,
            bound=output.tolerance,
            value=output.max_relative,
            passed=output.passed,
            message=parity_message(output),
        )


def parity_message(output: OutputParity) -> str:
    """What was found of one output, in words."""
    found = f"{output.name}: largest difference {output.max_relative:.2e} of the range"
    if math.isinf(output.tolerance):
        return f"{found}, not bounded"
    if output.blind:
        return (
            f"{output.name}: changes by no more than {output.variation:.1e} of the range from image to image, which a"
            f" tolerance of {output.tolerance:.0e} can't tell from a constant"
        )
    return f"{found}, {'within' if output.passed else 'beyond'} {output.tolerance:.0e}"


def export_drops(
    target: Target, tasks: Mapping[str, Scored], accuracy: AccuracyResult
) -> Iterator[GateResult]:
    """Every metric of the artifact against the torch model's, within the target's bound; at each batch size tried."""
    bound = target.accuracy.export_drop
    measured = {"torch": accuracy.artifact}
    measured |= {f"torch, at batch {size}": metrics for size, metrics in accuracy.by_batch.items()}
    for against, values in measured.items():
        for task in accuracy.torch:
            for metric in accuracy.torch[task]:
                yield _drop(tasks, task, metric, values, accuracy.torch, bound, against)


def _compact_drop(
    target: Target, tasks: Mapping[str, Scored], accuracy: AccuracyResult
) -> Iterator[GateResult]:
    bound = target.accuracy.compact_drop
    if bound is None or accuracy.baseline is None:
        return
    for task in accuracy.torch:
        metric = tasks[task].primary
        yield _drop(tasks, task, metric, accuracy.artifact, accuracy.baseline, bound, "the baseline")


def _drop(
    tasks: Mapping[str, Scored],
    task: str,
    metric: str,
    values: TaskMetrics,
    references: TaskMetrics,
    bound: float,
    against: str,
) -> GateResult:
    value, reference = values[task].get(metric, math.nan), references[task][metric]
    drop = relative_drop(value, reference, tasks[task].metric_info[metric].higher_is_better)
    passed = drop <= bound
    change = "lost" if drop > 0 else "gained"
    return GateResult(
        gate="accuracy",
        subject=f"{task}.{metric}",
        bound=bound,
        value=drop,
        passed=passed,
        message=f"{task} {metric}: {value:.5g} against {reference:.5g} of {against}, {abs(drop):.2%} {change},"
        f" {'within' if passed else 'beyond'} {bound:.2%}",
    )


def _latency(target: Target, latency: LatencyResult, subject: str) -> Iterator[GateResult]:
    bounds = target.latency
    if bounds.max_ms is not None:
        median = latency.stats[subject].median_ms
        passed = median <= bounds.max_ms
        yield GateResult(
            gate="latency",
            subject=subject,
            bound=bounds.max_ms,
            value=median,
            passed=passed,
            message=f"{subject}: median {median:.3f} ms, {'within' if passed else 'over'} {bounds.max_ms:g} ms",
        )
    if bounds.min_speedup is not None:
        speedup = latency.speedup[subject]
        passed = speedup >= bounds.min_speedup
        yield GateResult(
            gate="latency",
            subject=subject,
            bound=bounds.min_speedup,
            value=speedup,
            passed=passed,
            message=f"{subject}: {speedup:.2f} times as fast as {latency.reference},"
            f" {'at least' if passed else 'less than'} {bounds.min_speedup:g}",
        )


def _size(target: Target, megabytes: float) -> Iterator[GateResult]:
    bound = target.max_megabytes
    if bound is None:
        return
    passed = megabytes <= bound
    yield GateResult(
        gate="size",
        subject="model",
        bound=bound,
        value=megabytes,
        passed=passed,
        message=f"model file: {megabytes:.2f} MB, {'within' if passed else 'over'} {bound:g} MB",
    )
