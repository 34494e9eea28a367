"""Every bound of a target, held and broken."""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import dataclass
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compactmtl.backends import load_target
from compactmtl.config.load import list_targets
from compactmtl.config.target import AccuracyConfig, LatencyConfig, Target
from compactmtl.errors import GATE, GateError
from compactmtl.tasks.base import MetricInfo
from compactmtl.verify import (
    AccuracyResult,
    GateResult,
    LatencyResult,
    OutputParity,
    ParityResult,
    TaskMetrics,
    Verification,
    check_gates,
    measure_latency,
)
from compactmtl.verify.gates import compact_drop, export_drops, raise_failed, relative_drop


@dataclass(frozen=True)
class Scored:
    primary: str
    metric_info: dict[str, MetricInfo]


TASKS = {
    "age": Scored("mae", {"mae": MetricInfo(False, "years"), "rmse": MetricInfo(False, "years")}),
    "gender": Scored("accuracy", {"accuracy": MetricInfo(True, share=True)}),
}
REFERENCE: TaskMetrics = {"age": {"mae": 5.0, "rmse": 8.0}, "gender": {"accuracy": 0.9}}


def parity(relative: float = 1e-6) -> ParityResult:
    output = OutputParity(
        name="age",
        shape=(1, 1),
        max_abs=relative,
        max_relative=relative,
        cosine=1.0,
        tolerance=1e-4,
        passed=relative <= 1e-4,
    )
    return ParityResult(outputs=(output,), samples=1, passed=output.passed)


@cache
def measured() -> LatencyResult:
    return measure_latency({"dense": int, "compact": int}, warmup=0, repeats=1)


def latency(dense_ms: float = 4.0, compact_ms: float = 1.0) -> LatencyResult:
    found = measured()
    stats = {
        name: found.stats[name].model_copy(update={"median_ms": ms, "samples_ms": (ms,) * 5})
        for name, ms in (("dense", dense_ms), ("compact", compact_ms))
    }
    return found.model_copy(update={"stats": stats})


def gates_of(
    target: Target,
    artifact: TaskMetrics | None = None,
    baseline: TaskMetrics | None = None,
    **found: object,
) -> dict[tuple[str, str], GateResult]:
    accuracy = AccuracyResult(samples=1, torch=REFERENCE, artifact=artifact or REFERENCE, baseline=baseline)
    values = {"parity": parity(), "latency": latency(), "megabytes": 10.0, **found}
    gates = check_gates(target, TASKS, accuracy=accuracy, subject="compact", **values)  # type: ignore[arg-type]
    return {(gate.gate, gate.subject): gate for gate in gates}


def target(**options: object) -> Target:
    return Target(backend="onnxruntime", **options)


@pytest.mark.slow
def test_a_plain_target_gates_parity_and_every_metric() -> None:
    found = gates_of(target())
    assert set(found) == {
        ("parity", "age"),
        ("accuracy", "age.mae"),
        ("accuracy", "age.rmse"),
        ("accuracy", "gender.accuracy"),
    }
    assert all(gate.passed for gate in found.values())


def test_an_output_that_no_image_changes_says_so() -> None:
    output = parity().outputs[0].model_copy(update={"variation": 1e-7, "passed": False})
    gate = gates_of(target(), parity=ParityResult(outputs=(output,), samples=9, passed=False))
    assert not gate["parity", "age"].passed
    assert gate["parity", "age"].message.startswith("age: changes by no more than 1.0e-07 of the range")


def test_parity_beyond_tolerance_fails() -> None:
    gate = gates_of(target(), parity=parity(2e-4))[("parity", "age")]
    assert (gate.passed, gate.bound, gate.value) == (False, 1e-4, 2e-4)


@pytest.mark.parametrize(
    ("changed", "failing"),
    [
        ({"age": {"mae": 5.02, "rmse": 8.0}, "gender": {"accuracy": 0.9}}, "age.mae"),
        ({"age": {"mae": 5.0, "rmse": 9.0}, "gender": {"accuracy": 0.9}}, "age.rmse"),
        ({"age": {"mae": 5.0, "rmse": 8.0}, "gender": {"accuracy": 0.89}}, "gender.accuracy"),
        ({"age": {"mae": math.nan, "rmse": 8.0}, "gender": {"accuracy": 0.9}}, "age.mae"),
    ],
)
def test_a_metric_that_got_worse_fails_alone(changed: TaskMetrics, failing: str) -> None:
    found = gates_of(target(), artifact=changed)
    assert [gate.subject for gate in found.values() if not gate.passed] == [failing]


def test_a_metric_that_got_better_passes() -> None:
    better: TaskMetrics = {"age": {"mae": 4.0, "rmse": 7.0}, "gender": {"accuracy": 0.95}}
    assert all(gate.passed for gate in gates_of(target(), artifact=better).values())


def test_loss_against_the_baseline_counts_primary_metrics_alone() -> None:
    bounded = target(accuracy=AccuracyConfig(compact_drop=0.02))
    worse: TaskMetrics = {"age": {"mae": 4.8, "rmse": 1.0}, "gender": {"accuracy": 0.9}}
    accuracy = AccuracyResult(samples=1, torch=REFERENCE, artifact=REFERENCE, baseline=worse)
    gates = check_gates(
        bounded,
        TASKS,
        parity=parity(),
        accuracy=accuracy,
        latency=latency(),
        subject="compact",
        megabytes=1,
    )
    against = [gate for gate in gates if "baseline" in gate.message]
    assert [(gate.subject, gate.passed) for gate in against] == [
        ("age.mae", False),
        ("gender.accuracy", True),
    ]
    assert against[0].value == pytest.approx(0.2 / 4.8)


@pytest.mark.parametrize(
    ("options", "key", "passed"),
    [
        ({"latency": LatencyConfig(max_ms=1.0)}, ("latency", "compact"), True),
        ({"latency": LatencyConfig(max_ms=0.9)}, ("latency", "compact"), False),
        ({"latency": LatencyConfig(min_speedup=4.0)}, ("latency", "compact"), True),
        ({"latency": LatencyConfig(min_speedup=4.1)}, ("latency", "compact"), False),
        ({"max_megabytes": 10.0}, ("size", "model"), True),
        ({"max_megabytes": 9.9}, ("size", "model"), False),
    ],
)
def test_latency_and_size_bounds(options: dict[str, object], key: tuple[str, str], passed: bool) -> None:
    assert gates_of(target(**options))[key].passed is passed


def test_failed_gates_name_task_bound_and_value() -> None:
    found = gates_of(
        target(max_megabytes=9.9),
        artifact={"age": {"mae": 6.0, "rmse": 8.0}, "gender": {"accuracy": 0.9}},
    )
    with pytest.raises(GateError, match="failed 2 of 5 gates") as caught:
        raise_failed(tuple(found.values()), "runs/x")
    assert "age mae: 6 against 5 of torch, 20.00% lost, beyond 0.10%" in caught.value.message
    assert "10.00 MB, over 9.9 MB" in caught.value.message
    assert caught.value.exit_code == GATE


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("sides", ["artifact", "torch", "both"])
def test_a_metric_that_is_no_number_never_passes(bad: float, sides: str) -> None:
    broken: TaskMetrics = {"age": {"mae": bad, "rmse": 8.0}, "gender": {"accuracy": 0.9}}
    accuracy = AccuracyResult(
        samples=1,
        torch=REFERENCE if sides == "artifact" else broken,
        artifact=REFERENCE if sides == "torch" else broken,
        baseline=broken,
    )
    bounded = target(accuracy=AccuracyConfig(compact_drop=1e9, export_drop=1e9))
    gates = [*export_drops(bounded, TASKS, accuracy), *compact_drop(bounded, TASKS, accuracy)]
    assert [gate.subject for gate in gates if not gate.passed] == ["age.mae", "age.mae"]


@pytest.mark.parametrize(
    ("reference", "artifact", "failing"),
    [
        ({"age": {"mae": 5.0}}, {"age": {"mae": 5.0, "rmse": 8.0}}, ["age.rmse"]),
        ({"age": {"mae": 5.0, "rmse": 8.0}}, {"age": {"mae": 5.0}}, ["age.rmse"]),
        ({"age": {}}, {"age": {}}, ["age.mae"]),
        ({"age": {"mae": 5.0}}, {}, ["age.mae"]),
        ({}, {}, ["age.mae"]),
    ],
)
def test_what_either_side_lacks_fails(
    reference: TaskMetrics, artifact: TaskMetrics, failing: list[str]
) -> None:
    accuracy = AccuracyResult(samples=1, torch=reference, artifact=artifact)
    gates = export_drops(target(), {"age": TASKS["age"]}, accuracy)
    assert [gate.subject for gate in gates if not gate.passed] == failing


def test_times_and_sizes_that_are_no_numbers_fail() -> None:
    bounded = target(latency=LatencyConfig(max_ms=1e9, min_speedup=1e-9), max_megabytes=1e9)
    for value in (math.nan, 0.0):
        found = gates_of(bounded, latency=latency(compact_ms=value), megabytes=value)
        assert not found["size", "model"].passed
        assert not found["latency", "compact"].passed


def test_the_speedup_is_the_one_of_the_rounds() -> None:
    """Half of the rounds are slow for both models: the ratio of the medians is of different rounds."""
    found = measured()
    samples = {"dense": (1.0, 1.0, 9.0, 9.0, 9.0), "compact": (1.0, 1.0, 1.0, 9.0, 9.0)}
    stats = {
        name: found.stats[name].model_copy(
            update={"samples_ms": times, "median_ms": statistics.median(times)}
        )
        for name, times in samples.items()
    }
    gates = gates_of(
        target(latency=LatencyConfig(min_speedup=2.0)), latency=found.model_copy(update={"stats": stats})
    )
    assert gates["latency", "compact"].value == 1.0 and not gates["latency", "compact"].passed


def test_int8_is_held_against_the_dense_model_in_float32_too() -> None:
    found = measured()
    times = {"dense": 4.0, "compact": 1.0, "dense fp32": 1.5, "compact fp32": 0.5}
    one = found.stats["dense"]
    stats = {
        name: one.model_copy(update={"name": name, "median_ms": ms, "samples_ms": (ms,) * 5})
        for name, ms in times.items()
    }
    gates = check_gates(
        target(latency=LatencyConfig(min_speedup=2.0), precision="int8"),
        TASKS,
        parity=parity(),
        accuracy=AccuracyResult(samples=1, torch=REFERENCE, artifact=REFERENCE),
        latency=found.model_copy(update={"stats": stats}),
        subject="compact",
        megabytes=1.0,
    )
    assert [(one.against, one.passed) for one in gates if one.gate == "latency"] == [
        ("dense", True),
        ("dense fp32", False),
    ]


@pytest.mark.parametrize(
    ("compact", "against", "passed", "warning"),
    [
        ([1.0] * 10, {"dense fp32": (True, False), "compact fp32": (True, False)}, True, False),
        ([3.0] * 10, {"dense fp32": (True, False), "compact fp32": (False, False)}, False, False),
        ([9.0] * 10, {"dense fp32": (False, False), "compact fp32": (False, False)}, False, False),
        (
            [1.0, 1.5, 2.0, 2.5, 3.0] * 2,
            {"dense fp32": (True, False), "compact fp32": (True, True)},
            True,
            True,
        ),
        ([3.0] * 9, {"dense fp32": (True, True), "compact fp32": (True, True)}, True, True),
        ([math.nan] * 10, {"dense fp32": (False, False), "compact fp32": (False, False)}, False, False),
    ],
)
def test_the_artifact_must_not_be_slower(
    compact: list[float], against: dict[str, tuple[bool, bool]], passed: bool, warning: bool
) -> None:
    """Dense takes 8 ms and 4 ms in float32, the compact model 2 ms in float32; int8 may be slower than that."""
    rounds = len(compact)
    times = {
        "dense": [8.0] * rounds,
        "compact": compact,
        "dense fp32": [4.0] * rounds,
        "compact fp32": [2.0] * rounds,
    }
    one = measured().stats["dense"]
    stats = {
        name: one.model_copy(
            update={"name": name, "median_ms": statistics.median(ms), "samples_ms": tuple(ms)}
        )
        for name, ms in times.items()
    }
    gates = check_gates(
        target(latency=LatencyConfig(not_slower=("dense", "fp32")), precision="int8"),
        TASKS,
        parity=parity(),
        accuracy=AccuracyResult(samples=1, torch=REFERENCE, artifact=REFERENCE),
        latency=measured().model_copy(update={"stats": stats}),
        subject="compact",
        megabytes=1.0,
    )
    found = [gate for gate in gates if gate.gate == "not_slower"]
    assert {gate.against: (gate.passed, gate.warning) for gate in found} == against
    assert all(gate.passed for gate in found) == passed
    assert any(gate.warning for gate in found) == warning


def test_the_dense_model_is_not_held_against_itself() -> None:
    alone = measured().model_copy(update={"stats": {"dense": measured().stats["dense"]}})
    bounded = target(latency=LatencyConfig(not_slower=("dense", "fp32")))
    gates = check_gates(
        bounded,
        TASKS,
        parity=parity(),
        accuracy=AccuracyResult(samples=1, torch=REFERENCE, artifact=REFERENCE),
        latency=alone,
        subject="dense",
        megabytes=1.0,
    )
    assert not [gate for gate in gates if gate.gate == "not_slower"]


def test_every_bundled_target_must_not_make_the_model_slower() -> None:
    for name in [entry.name for entry in list_targets()]:
        one = load_target(name)
        lower = () if one.precision == "fp32" else ("fp32",)
        assert one.latency.not_slower == ("dense", *lower), name


@given(value=st.floats(0.01, 100), reference=st.floats(0.01, 100))
def test_drop_is_antisymmetric_in_the_direction_and_scale_free(value: float, reference: float) -> None:
    higher, lower = relative_drop(value, reference, True), relative_drop(value, reference, False)
    assert higher == -lower
    assert (higher > 0) == (value < reference)
    # Powers of two scale without rounding.
    assert relative_drop(4 * value, 4 * reference, True) == higher


@pytest.mark.parametrize(
    ("value", "reference", "expected"),
    [(0.1, 0.0, 0.1), (math.nan, 1.0, math.inf), (1.0, math.nan, math.inf), (math.nan, math.nan, math.inf)],
)
def test_drop_without_a_finite_reference(value: float, reference: float, expected: float) -> None:
    assert relative_drop(value, reference, higher_is_better=False) == expected


def test_verification_with_values_that_are_no_numbers_survives_strict_json() -> None:
    metrics: TaskMetrics = {"age": {"mae": math.nan, "rmse": math.inf}}
    gate = GateResult(
        gate="accuracy", subject="age.mae", bound=0.1, value=math.inf, passed=False, message="x"
    )
    verification = Verification(
        target="t",
        bundle_sha256="0",
        parity=parity(),
        accuracy=AccuracyResult(samples=1, torch=metrics, artifact=metrics),
        latency=latency(),
        megabytes=1.0,
        gates=(gate,),
        passed=False,
        versions={},
        created="now",
    )
    text = verification.model_dump_json()

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    json.loads(text, parse_constant=refuse)
    back = Verification.model_validate_json(text)
    assert back.gates[0].value == math.inf
    assert math.isnan(back.accuracy.torch["age"]["mae"])
    assert back.accuracy.artifact["age"]["rmse"] == math.inf
