"""The multi-task gain and the score."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from compactmtl.config.recipe import TaskConfig
from compactmtl.errors import ConfigError, DataError
from compactmtl.tasks import TargetSpec, UndefinedGainError, build_task, build_tasks, delta_m, mean_score
from compactmtl.tasks.gain import judge, wrong_in_words

TASKS = build_tasks(
    {
        "seg": TaskConfig(kind="segmentation"),
        "depth": TaskConfig(kind="depth"),
        "normals": TaskConfig(kind="normals"),
        "gender": TaskConfig(kind="classification"),
        "age": TaskConfig(kind="regression"),
    },
    {
        "seg": TargetSpec("mask", classes=("a", "b")),
        "depth": TargetSpec("depth", unit="m", mean=3, std=2),
        "normals": TargetSpec("normals"),
        "gender": TargetSpec("class", classes=("male", "female")),
        "age": TargetSpec("scalar", unit="years", mean=33, std=20),
    },
)
BASELINE = {
    "seg": {"miou": 0.4, "pixel_accuracy": 0.8},
    "depth": {"abs_err": 0.5, "rel_err": 0.2, "rmse": 0.9},
    "normals": {
        "mean_angle": 25.0,
        "median_angle": 20.0,
        "within_11_25": 0.3,
        "within_22_5": 0.6,
        "within_30": 0.7,
    },
    "gender": {"accuracy": 0.9},
    "age": {"mae": 6.0, "rmse": 9.0},
}


def scaled(factor: float) -> dict[str, dict[str, float]]:
    """Every metric better by `factor` - 1, as a share of its baseline."""
    return {
        task: {
            metric: value * (factor if TASKS[task].metric_info[metric].higher_is_better else 2 - factor)
            for metric, value in values.items()
        }
        for task, values in BASELINE.items()
    }


@given(st.floats(0.5, 1.5))
def test_a_uniform_relative_gain_is_the_gain(factor: float) -> None:
    assert delta_m(scaled(factor), BASELINE, TASKS) == pytest.approx(factor - 1, abs=1e-12)  # float64


def test_gain_by_hand() -> None:
    tasks = {name: TASKS[name] for name in ("gender", "age")}
    found = delta_m({"gender": {"accuracy": 0.99}, "age": {"mae": 6.6, "rmse": 1.0}}, {
        "gender": {"accuracy": 0.9}, "age": {"mae": 6.0, "rmse": 9.0}
    }, tasks)  # fmt: skip
    assert found == pytest.approx((0.1 - 0.1) / 2, abs=1e-12)


def test_each_task_weighs_the_same_however_many_metrics_it_has() -> None:
    better = {**BASELINE, "gender": {"accuracy": 0.99}}
    assert delta_m(better, BASELINE, TASKS) == pytest.approx(0.1 / 5)


def test_rmse_counts_only_where_the_baseline_states_nothing_else() -> None:
    tasks = {"age": TASKS["age"]}
    metrics = {"age": {"mae": 3.0, "rmse": 18.0}}
    assert delta_m(metrics, {"age": {"mae": 6.0, "rmse": 9.0}}, tasks) == pytest.approx(0.5)
    assert delta_m(metrics, {"age": {"rmse": 9.0}}, tasks) == pytest.approx(-1)


def test_what_the_baseline_lacks_or_misspells_is_an_error() -> None:
    metrics, tasks = {"age": {"mae": 5.0, "rmse": 7.0}}, {"age": TASKS["age"]}
    with pytest.raises(ConfigError, match="states no metric of task 'age'"):
        delta_m(metrics, {}, tasks)
    with pytest.raises(ConfigError, match="unknown metric 'mea'"):
        delta_m(metrics, {"age": {"mea": 6.0}}, tasks)
    with pytest.raises(ConfigError, match="unknown task 'ages'"):
        delta_m(metrics, {"ages": {"mae": 6.0}}, tasks)


def test_a_gain_relative_to_zero_is_undefined() -> None:
    with pytest.raises(UndefinedGainError, match=r"age\.mae is 0"):
        delta_m({"age": {"mae": 5.0}}, {"age": {"mae": 0.0}}, {"age": TASKS["age"]})


def test_score_is_one_where_nothing_is_wrong_and_half_at_the_scale() -> None:
    perfect = {"seg": {"miou": 1.0}, "depth": {"abs_err": 0.0}, "normals": {"mean_angle": 0.0}, "gender": {"accuracy": 1.0}, "age": {"mae": 0.0}}  # fmt: skip
    half = {"seg": {"miou": 0.5}, "depth": {"abs_err": 2.0}, "normals": {"mean_angle": 30.0}, "gender": {"accuracy": 0.5}, "age": {"mae": 20.0}}  # fmt: skip
    assert mean_score(perfect, TASKS) == pytest.approx(1)
    assert mean_score(half, TASKS) == pytest.approx(0.5)


@given(st.floats(0.51, 1.49), st.floats(0.51, 1.49))
def test_score_orders_as_the_metrics_do(one: float, other: float) -> None:
    if one < other:
        assert mean_score(scaled(one), TASKS) <= mean_score(scaled(other), TASKS)


GENDER = build_task(
    "gender",
    TaskConfig(kind="classification"),
    TargetSpec("class", classes=("male", "female"), ignore_index=-1),
)
AGE = build_task("age", TaskConfig(kind="regression"), TargetSpec("scalar", unit="years", std=20.0))
MASK = build_task("mask", TaskConfig(kind="segmentation"), TargetSpec("mask", classes=("a", "b")))


def test_another_class_than_the_target_s_is_wrong() -> None:
    output = torch.tensor([[0.2, 0.9]])
    right, wrong = (judge(GENDER, output, torch.tensor([target])) for target in (1, 0))
    assert right is not None and not right.wrong
    assert wrong is not None and wrong.wrong
    assert wrong_in_words(GENDER) == "another class than the target's"


@pytest.mark.parametrize(("predicted", "wrong"), [(30.0, False), (49.9, False), (50.1, True), (9.0, True)])
def test_a_value_further_off_than_the_labels_spread_is_wrong(predicted: float, wrong: bool) -> None:
    found = judge(AGE, torch.tensor([[predicted]]), torch.tensor([30.0]))
    assert found is not None
    assert found.value == pytest.approx(abs(predicted - 30), abs=1e-4)
    assert found.wrong is wrong
    assert wrong_in_words(AGE) == "an error above 20 years"


def test_a_map_that_overlaps_by_less_than_half_is_wrong() -> None:
    target = torch.zeros(1, 4, 4, dtype=torch.long)
    target[:, :, 2:] = 1
    output = torch.stack([1.0 - target, target.float()], 1)  # (1, 2, 4, 4), right everywhere
    right, wrong = judge(MASK, output, target), judge(MASK, output.flip(1), target)
    assert right is not None and (right.value, right.wrong) == (1.0, False)
    assert wrong is not None and (wrong.value, wrong.wrong) == (0.0, True)
    assert wrong_in_words(MASK) == "miou of the image below 50 %"


def test_what_is_unknown_is_not_judged() -> None:
    assert judge(GENDER, torch.tensor([[0.2, 0.9]]), torch.tensor([-1])) is None
    assert judge(AGE, torch.tensor([[9.0]]), torch.tensor([float("nan")])) is None


def test_a_score_needs_every_task_to_be_measured() -> None:
    """As where one of several data sets knows no label in the split: its metrics are not there."""
    with pytest.raises(DataError, match="seg@rooms was not measured"):
        mean_score({"seg": {"miou": 0.4}}, {"seg@rooms": TASKS["seg"]})
