"""Where an image lies on the network's picture: there and back, for any sizes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compactmtl.export.in_bundle import picture as program
from compactmtl.tasks.placement import Placement, Resize, nearest

SIDES = st.integers(1, 70)
SIZES = st.tuples(SIDES, SIDES)
HOW: tuple[Resize, ...] = ("stretch", "letterbox", "crop")


@given(how=st.sampled_from(HOW), image=SIZES, size=SIZES)
def test_the_scaled_image_keeps_its_shape_and_lies_in_the_middle(
    how: Resize, image: tuple[int, int], size: tuple[int, int]
) -> None:
    place = Placement.of(how, image, size)
    compare = {"stretch": np.equal, "letterbox": np.less_equal, "crop": np.greater_equal}[how]
    assert compare(place.scaled, size).all() and min(place.scaled) >= 1
    if how == "stretch":
        return
    assert place.scaled[0] == size[0] or place.scaled[1] == size[1]
    factor = (min if how == "letterbox" else max)(size[0] / image[0], size[1] / image[1])
    for scaled, own in zip(place.scaled, image, strict=True):
        assert abs(scaled - own * factor) <= 0.5 + 1e-9 or scaled == 1
    for first, scaled, side in zip((place.top, place.left), place.scaled, size, strict=True):
        before, after = abs(first), abs(side - scaled - first)
        assert 0 <= after - before <= 1


@given(how=st.sampled_from(HOW), image=SIZES, size=SIZES)
def test_what_is_put_comes_back_and_the_rest_is_unknown(
    how: Resize, image: tuple[int, int], size: tuple[int, int]
) -> None:
    place = Placement.of(how, image, size)
    values = np.arange(1, 1 + place.scaled[0] * place.scaled[1]).reshape(1, *place.scaled)
    shown = place.put(values, 0)
    assert shown.shape == (1, *size)
    back = place.take(shown, -1)
    assert back.shape == values.shape
    if how == "crop":
        assert (shown > 0).all()
        assert set(np.unique(back)) - {-1} == set(np.unique(shown))
        np.testing.assert_array_equal(back[back > 0], values[back > 0])
    else:
        np.testing.assert_array_equal(back, values)
        np.testing.assert_array_equal(place.inside() > 0, shown[0] > 0)
    own = place.back(shown[(..., *place.visible)], -1)
    assert own.shape == (1, *image)
    np.testing.assert_array_equal(own, nearest(back, image))


@given(how=st.sampled_from(HOW), image=SIZES, size=SIZES)
def test_a_bundles_program_places_a_picture_alike(
    how: Resize, image: tuple[int, int], size: tuple[int, int]
) -> None:
    place = Placement.of(how, image, size)
    want = {"height": size[0], "width": size[1], "how": how}
    assert program.place(image, want) == (place.scaled, [place.top, place.left])
    value = np.random.default_rng(0).normal(size=(2, *size))
    seen = program.visible(value, image, want)
    np.testing.assert_array_equal(seen, value[(..., *place.visible)])
    for unknown in (0, 255, None):
        np.testing.assert_array_equal(
            program.back(seen, image, want, unknown), place.back(seen, np.nan if unknown is None else unknown)
        )


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("stretch", ((40, 60), 0, 0)),
        ("letterbox", ((30, 60), 5, 0)),
        ("crop", ((40, 80), 0, -10)),
    ],
)
def test_a_worked_example(how: Resize, expected: Any) -> None:
    place = Placement.of(how, (100, 200), (40, 60))
    assert (place.scaled, place.top, place.left) == expected
