"""Gates: the bounds that a target sets, held against what verification found."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from compactmtl.config.target import Target
from compactmtl.errors import GateError
from compactmtl.verify.result import (
    JUDGING,
    SINGLE,
    AccuracyResult,
    GateResult,
    LatencyResult,
    OutputParity,
    ParityResult,
    Speed,
    TaskMetrics,
)
from compactmtl.verify.speed import dense_form, speed_of

if TYPE_CHECKING:
    from compactmtl.tasks.base import MetricInfo


BASELINE = "the baseline"  # what a gate's `against` calls the dense run


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
    accuracy: AccuracyResult | None,
    latency: LatencyResult,
    subject: str,
    megabytes: float,
) -> tuple[GateResult, ...]:
    """Every bound of the target with its value: parity by output, accuracy by task and metric, latency, size.

    `subject` is the artifact's name in `latency`. Against the torch model every metric counts; against the
    dense baseline, where one was given and the target bounds it, each task's primary metric. Without `accuracy` there
    is no gate on it: nothing was measured, as on a device that was given no images.
    """
    drops: tuple[GateResult, ...] = ()
    if accuracy is not None:
        drops = (*export_drops(target, tasks, accuracy), *compact_drop(target, tasks, accuracy))
    return (
        *_parity(parity),
        *drops,
        *_latency(target, latency, subject),
        *_size(target, megabytes),
    )


def verified(gates: Sequence[GateResult]) -> bool:
    """Whether every gate held, and one of them looked at what the outputs are: a latency alone verifies no model."""
    return all(gate.passed for gate in gates) and any(gate.gate in JUDGING for gate in gates)


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

    The plain difference where the reference is 0. Infinite where either is not a finite number: what was not measured
    has not held.
    """
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
    difference = f"{output.name}: largest difference {output.max_relative:.2e} of the range"
    if math.isinf(output.tolerance):
        return f"{difference}, not bounded"
    if output.blind:
        return (
            f"{output.name}: changes by no more than {output.variation:.1e} of the range from image to image, which a"
            f" tolerance of {output.tolerance:.0e} can't tell from a constant"
        )
    return f"{difference}, {'within' if output.passed else 'beyond'} {output.tolerance:.0e}"


def export_drops(
    target: Target, tasks: Mapping[str, Scored], accuracy: AccuracyResult
) -> Iterator[GateResult]:
    """Every metric of the artifact against the torch model's, within the target's bound; at each batch size tried."""
    bound = target.accuracy.export_drop
    measured = {"torch": accuracy.artifact}
    measured |= {f"torch, at batch {size}": metrics for size, metrics in accuracy.by_batch.items()}
    for against, values in measured.items():
        for name, task in tasks.items():
            # a metric that either side lacks, and a task without any, was not measured: it fails
            metrics = {**accuracy.torch.get(name, {}), **values.get(name, {})} or {task.primary: math.nan}
            for metric in metrics:
                yield _drop(tasks, name, metric, values, accuracy.torch, bound, against)


def compact_drop(
    target: Target, tasks: Mapping[str, Scored], accuracy: AccuracyResult
) -> Iterator[GateResult]:
    """Each task's primary metric of the artifact against the dense baseline's, where there is one and a bound."""
    bound = target.accuracy.compact_drop
    if bound is None or accuracy.baseline is None:
        return
    for name, task in tasks.items():
        yield _drop(tasks, name, task.primary, accuracy.artifact, accuracy.baseline, bound, BASELINE)


def _drop(
    tasks: Mapping[str, Scored],
    task: str,
    metric: str,
    values: TaskMetrics,
    references: TaskMetrics,
    bound: float,
    against: str,
) -> GateResult:
    value = values.get(task, {}).get(metric, math.nan)
    reference = references.get(task, {}).get(metric, math.nan)
    drop = relative_drop(value, reference, tasks[task].metric_info[metric].higher_is_better)
    passed = drop <= bound
    if math.isfinite(drop):
        # where the reference is 0 the drop is in the metric's own unit
        found = f"{abs(drop):.2%}" if reference else f"{abs(drop):.3g}"
        limit = f"{bound:.2%}" if reference else f"{bound:.3g}"
        change = f"{found} {'lost' if drop > 0 else 'gained'}, {'within' if passed else 'beyond'} {limit}"
    else:
        change = "which is no number on one side or both: nothing was compared"
    return GateResult(
        gate="accuracy",
        subject=f"{task}.{metric}",
        against=against,
        bound=bound,
        value=drop,
        passed=passed,
        message=f"{task} {metric}: {value:.5g} against {reference:.5g} of {against}, {change}",
    )


def _latency(target: Target, latency: LatencyResult, subject: str) -> Iterator[GateResult]:
    bounds = target.latency
    if bounds.max_ms is not None:
        median = latency.stats[subject].median_ms
        passed = 0 < median <= bounds.max_ms
        yield GateResult(
            gate="latency",
            subject=subject,
            bound=bounds.max_ms,
            value=median,
            passed=passed,
            message=f"{subject}: median {median:.3f} ms, {'within' if passed else 'over'} {bounds.max_ms:g} ms",
        )
    if bounds.min_speedup is not None:
        # the dense model in the artifact's precision and, where that is not float32, in float32 as it is replaced
        for against in (latency.reference, latency.reference + SINGLE):
            if against in latency.stats and not subject.endswith(SINGLE):
                yield _speedup(speed_of(latency, subject, against), bounds.min_speedup)
    references = {"dense": dense_form(latency), "fp32": subject + SINGLE}
    for kind in dict.fromkeys(bounds.not_slower):
        against = references[kind]
        if kind == "dense" and latency.reference == subject:
            continue  # no dense model was timed: this is the artifact's own float32 form
        if against in latency.stats and against != subject:
            yield _not_slower(speed_of(latency, subject, against))


def _not_slower(speed: Speed) -> GateResult:
    """Fails where the band of the ratio tells that the artifact is slower; without a band nothing is told."""
    passed = math.isfinite(speed.ratio) and speed.ratio > 0 and speed.verdict != "slower"
    if not passed:
        found = "slower"
    elif speed.verdict == "faster":
        found = "not slower"
    elif speed.verdict == "same":
        found = "no difference beyond noise"
    else:
        found = "too few paired rounds to tell"
    band = f" ({speed.low:.2f} to {speed.high:.2f})" if speed.low is not None else ""
    return GateResult(
        gate="not_slower",
        subject=speed.name,
        against=speed.against,
        bound=1.0,
        value=speed.ratio,
        passed=passed,
        warning=passed and speed.verdict != "faster",
        message=f"{speed.name}: {speed.ratio:.2f}{band} times as fast as {speed.against}, {found}",
    )


def _speedup(speed: Speed, bound: float) -> GateResult:
    passed = math.isfinite(speed.ratio) and speed.ratio >= bound
    band = f" ({speed.low:.2f} to {speed.high:.2f})" if speed.low is not None else ""
    return GateResult(
        gate="latency",
        subject=speed.name,
        against=speed.against,
        bound=bound,
        value=speed.ratio,
        passed=passed,
        message=f"{speed.name}: {speed.ratio:.2f}{band} times as fast as {speed.against},"
        f" {'at least' if passed else 'less than'} {bound:g}",
    )


def _size(target: Target, megabytes: float) -> Iterator[GateResult]:
    bound = target.max_megabytes
    if bound is None:
        return
    passed = 0 < megabytes <= bound
    yield GateResult(
        gate="size",
        subject="model",
        bound=bound,
        value=megabytes,
        passed=passed,
        message=f"model file: {megabytes:.2f} MB, {'within' if passed else 'over'} {bound:g} MB",
    )
