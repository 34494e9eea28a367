"""Streams differ by purpose, by each number, and by how many numbers there are."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from compactmtl.data.seeds import generator

number = st.integers(-(2**63), 2**63 - 1)
key = st.tuples(st.sampled_from(["a", "b"]), st.lists(number, min_size=1, max_size=3))


@given(key, key)
def test_streams_are_equal_exactly_where_their_keys_are(
    first: tuple[str, list[int]], second: tuple[str, list[int]]
) -> None:
    a, b = (
        generator(purpose, *numbers).integers(2**62, size=4).tolist() for purpose, numbers in (first, second)
    )
    assert (a == b) == (first == second)


def test_a_trailing_zero_makes_another_stream() -> None:
    assert generator("a", 1, 2).random() != generator("a", 1, 2, 0).random()
