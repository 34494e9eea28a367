"""Numbers as text."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compactmtl.report import format as fmt
from compactmtl.report.model import MetricView


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1.00 k"),
        (1_234_567, "1.23 M"),
        (999_960, "1.00 M"),
        (1.82e9, "1.82 G"),
    ],
)
def test_count_uses_three_digits_and_a_prefix(value: float, text: str) -> None:
    assert fmt.count(value) == text


@pytest.mark.parametrize(
    ("name", "text"),
    [("miou", "mIoU"), ("abs_err", "abs err"), ("within_11_25", "within 11.25"), ("within_30", "within 30")],
)
def test_metric_name_reads_as_words(name: str, text: str) -> None:
    assert fmt.metric_name(name) == text


def test_metric_shows_shares_as_percent_and_units() -> None:
    assert fmt.metric(0.7123, MetricView(higher_is_better=True, share=True)) == "71.2 %"
    assert fmt.metric(12.345, MetricView(higher_is_better=False, unit="°")) == "12.3°"
    assert fmt.metric(0.2134, MetricView(higher_is_better=False, unit="m")) == "0.213 m"
    assert fmt.metric(math.nan, MetricView(higher_is_better=False, unit="m")) == fmt.NO_NUMBER


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_said_to_be_none(value: float) -> None:
    for write in (fmt.count, fmt.milliseconds, fmt.signed_percent, fmt.ratio, fmt.small):
        assert write(value) == fmt.NO_NUMBER


def test_signed_percent_never_says_minus_zero() -> None:
    assert fmt.signed_percent(-0.0001) == "0.0 %"
    assert fmt.signed_percent(-0.123) == "−12.3 %"
    assert fmt.signed_percent(0.123) == "+12.3 %"


@given(st.floats(min_value=1e-6, max_value=1e6))
def test_ratio_keeps_the_value_to_three_digits(value: float) -> None:
    # three significant digits: half a unit of the third digit is at most 0.5 % of the value
    assert float(fmt.ratio(value).removesuffix("×")) == pytest.approx(value, rel=5e-3)


@pytest.mark.parametrize(
    ("seconds", "text"), [(4.21, "4.2 s"), (61, "1 min 01 s"), (3599.7, "1 h 00 min"), (7260, "2 h 01 min")]
)
def test_duration_uses_two_units(seconds: float, text: str) -> None:
    assert fmt.duration(seconds) == text
