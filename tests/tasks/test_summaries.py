"""Decoded values in words."""

from __future__ import annotations

import numpy as np
import pytest

from compactmtl.tasks.summaries import value_text


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (31.24, "years", "31.2 years"),
        (-0.5, "", "-0.5"),
        (np.nan, "years", "unknown"),
        (np.inf, "", "unknown"),
    ],
)
def test_a_value_in_words(value: float, unit: str, text: str) -> None:
    assert value_text(value, unit) == text
