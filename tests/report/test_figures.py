"""Figures: well-formed, the same every time, self-contained, and true to their numbers."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markupsafe import Markup

from compactmtl.report import figures
from compactmtl.report.charts import Axis, axis, log_axis, number, staircase
from compactmtl.report.model import MetricView, TaskView
from compactmtl.report.read import Competition, Epoch, Sparsity, TrainLosses
from tests.support.synthetic_verification import verification

TASK = TaskView(
    name="depth",
    kind="depth",
    primary="abs_err",
    metrics={"abs_err": MetricView(higher_is_better=False, unit="m")},
)
COMPETITION = Competition(
    cosines={"conv1": {"age|gender": 0.5}, "conv2": {"age|gender": -0.25}},
    spread={"conv1": {"age": 0.1, "gender": 0.2, "between": 0.1}, "conv2": {"age": 0.3, "gender": 0.1}},
)


def epochs(*, sparse: bool = False, strength: float | None = 1e-4) -> list[Epoch]:
    return [
        Epoch(
            epoch=number,
            step=number,
            seconds=1.0,
            lr=1e-3,
            train=TrainLosses(loss=1.0),
            val={"depth": {"abs_err": 1 / number}},
            sparsity=Sparsity(
                groups_zero=0.1 * number, strength=None if strength is None else strength * (number < 3)
            )
            if sparse
            else None,
            competition=COMPETITION,
        )
        for number in range(1, 4)
    ]


def every_figure() -> list[Markup]:
    drawn = [
        figures.latency_distributions(verification().latency),
        figures.learning_curves({"run": epochs()}, TASK, "abs_err", {"run": 2}),
        figures.sparsity_curve(epochs(sparse=True)),
        figures.strength_path(epochs(sparse=True)),
        figures.cosine_curves(epochs()),
        figures.cosines_by_layer(COMPETITION),
        figures.spread_by_layer(COMPETITION),
    ]
    assert all(drawn)
    return [one for one in drawn if one is not None]


def test_figures_are_well_formed_and_the_same_every_time() -> None:
    first = every_figure()
    for figure in first:
        tree = ElementTree.fromstring(f"<div>{figure}</div>")
        assert list(tree.iter("svg"))
    assert every_figure() == first


def test_figures_name_nothing_outside_and_have_no_id() -> None:
    for figure in every_figure():
        assert not re.search(r"https?:|\shref=|\ssrc=|\sid=|url\(", figure)


def test_every_position_lies_within_the_figure() -> None:
    for figure in every_figure():
        for share in re.findall(r"(?:left|bottom):(-?[\d.]+)%", figure):
            assert 0 <= float(share) <= 100


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", "a & b", '" onload="x'])
def test_a_run_s_name_is_text_and_nothing_else(name: str) -> None:
    figure = figures.learning_curves({name: epochs(), "other": epochs()}, TASK, "abs_err", {})
    tree = ElementTree.fromstring(f"<div>{figure}</div>")
    assert name in [text.strip() for text in tree.itertext()]
    assert not list(tree.iter("script")) and not any("onload" in one.attrib for one in tree.iter())


def test_the_best_epoch_is_ringed_where_it_is() -> None:
    figure = figures.learning_curves({"run": epochs()}, TASK, "abs_err", {"run": 2})
    (ring,) = re.findall(r'mark ring c0" style="left:([\d.]+)%', figure)
    assert float(ring) == 50  # epochs 1 to 3


def test_a_value_that_is_no_number_is_left_out() -> None:
    broken = [one.model_copy(update={"val": {"depth": {"abs_err": math.nan}}}) for one in epochs()]
    assert figures.learning_curves({"run": broken}, TASK, "abs_err", {}) == ""
    assert "nan" not in figures.learning_curves({"run": broken, "other": epochs()}, TASK, "abs_err", {})


def test_a_run_without_sparsity_has_no_sparsity_figure() -> None:
    assert figures.sparsity_curve(epochs()) is None
    assert figures.strength_path(epochs()) is None
    assert figures.strength_path(epochs(sparse=True, strength=None)) is None
    assert figures.strength_path(epochs(sparse=True, strength=0.0)) is None


def test_competition_is_drawn_where_it_was_measured() -> None:
    plain = [one.model_copy(update={"competition": None}) for one in epochs()]
    assert figures.cosine_curves(plain) is None
    assert figures.cosines_by_layer(Competition()) is None
    assert figures.spread_by_layer(Competition()) is None
    assert "age and gender" in (figures.cosine_curves(epochs()) or "")
    assert COMPETITION.mean_cosine("age|gender") == 0.125


def test_latencies_beyond_the_axis_are_counted() -> None:
    latency = verification().latency
    slow = latency.stats["dense"].model_copy(
        update={"samples_ms": (8.0,) * 98 + (900.0, 1000.0), "p99_ms": 9.0}
    )
    figure = figures.latency_distributions(latency.model_copy(update={"stats": {"dense": slow}}))
    assert "2 beyond the axis" in figure


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20), st.floats(0, 0.3))
@example([1.0, 1.8e-23], 0.0)  # an end that is a tick but for rounding
@example([0.0, -4e-15], 0.1)  # a gain that is 0 but for rounding
def test_an_axis_holds_its_values_and_its_ticks(values: list[float], margin: float) -> None:
    found = axis(values, "", margin=margin)
    assert found.low <= min(values) and max(values) <= found.high
    assert all(found.low - 1e-6 * abs(found.low) <= tick for tick in found.ticks)
    assert 1 <= len(found.ticks) <= 12
    assert len({number(tick, found) for tick in found.ticks}) == len(found.ticks)  # no two read alike


@given(st.lists(st.floats(0, 1), min_size=1, max_size=50))
def test_a_staircase_has_a_column_a_value(heights: list[float]) -> None:
    assert staircase(heights).count("H") == len(heights)


def test_a_logarithmic_axis_has_equal_steps_for_equal_ratios_and_0_at_its_foot() -> None:
    found = log_axis([0.0, 1e-4, 1e-2], "λ")
    assert found.at(0.0) == 0
    assert found.at(1e-2) - found.at(1e-3) == pytest.approx(found.at(1e-3) - found.at(1e-4))


def test_values_outside_are_held_at_the_ends() -> None:
    assert Axis(0, 1, ()).at(5) == 100 and Axis(0, 1, ()).at(-5) == 0
