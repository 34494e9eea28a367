"""Pictures: shapes, colors that tell values apart, unknown pixels, a shared scale."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from compactmtl.tasks import pictures


@pytest.mark.parametrize("classes", [2, 13, 41, 150])
def test_every_class_has_its_own_color(classes: int) -> None:
    colors = {tuple(color) for color in pictures.palette(classes).tolist()}
    assert len(colors) == classes
    assert pictures.IGNORED not in colors


def test_a_class_keeps_its_color_when_classes_are_added() -> None:
    assert np.array_equal(pictures.palette(13), pictures.palette(41)[:13])


def test_mask_shows_classes_and_marks_what_is_none() -> None:
    picture = pictures.mask_picture(np.array([[0, 1], [255, -1]]), 2)
    assert picture.shape == (2, 2, 3)
    assert picture.dtype == np.uint8
    assert np.array_equal(picture[0], pictures.palette(2))
    assert np.array_equal(picture[1], [pictures.IGNORED] * 2)


def test_depth_is_brighter_when_nearer_and_dark_when_unknown() -> None:
    depth = np.array([[[1.0, 2.0, 3.0, 0.0]]], dtype=np.float32)
    picture = pictures.depth_picture(depth)
    assert picture.shape == (1, 4, 3)
    near, middle, far, unknown = picture[0].astype(int).sum(1)
    assert near > middle > far
    assert unknown == sum(pictures.IGNORED)


def test_depth_scale_is_the_reference_s() -> None:
    reference = np.array([[[1.0, 5.0]]])
    target, prediction = (
        pictures.depth_picture(reference),
        pictures.depth_picture(np.array([[[1.0, 9.0]]]), reference),
    )
    assert np.array_equal(target, prediction)  # beyond the scale is its end
    assert not np.array_equal(pictures.depth_picture(np.array([[[1.0, 3.0]]]), reference), target)


def test_disparity_is_depths_scale_turned_over() -> None:
    value = np.array([[[1.0, 2.0, 3.0, 0.0]]])
    disparity, depth = pictures.disparity_picture(value), pictures.depth_picture(value)
    assert np.array_equal(disparity[:, [2, 0, 3]], depth[:, [0, 2, 3]])
    assert disparity[0, 0].sum() < disparity[0, 1].sum() < disparity[0, 2].sum()


def test_probability_darkens_and_unknown_is_marked() -> None:
    picture = pictures.probability_picture(np.array([[0.0, 0.4, 1.0, np.nan]]))[0]
    assert picture[0].tolist() == [255, 255, 255]
    assert picture[0].sum() > picture[1].sum() > picture[2].sum()
    assert tuple(picture[2]) == pictures.MARKED
    assert tuple(picture[3]) == pictures.IGNORED


@pytest.mark.parametrize("depth", [np.zeros((1, 2, 2)), np.full((1, 2, 2), np.nan), np.full((1, 2, 2), 3.0)])
def test_depth_without_range_is_a_picture_all_the_same(depth: NDArray[np.float64]) -> None:
    assert pictures.depth_picture(depth).shape == (2, 2, 3)


def test_a_normal_that_faces_the_viewer_is_light_blue() -> None:
    normals = np.zeros((3, 1, 2), dtype=np.float32)
    normals[2, 0, 0] = -1
    picture = pictures.normals_picture(normals)
    assert picture[0, 0].tolist() == [128, 128, 255]
    assert tuple(picture[0, 1]) == pictures.IGNORED


@pytest.mark.parametrize("text", ["female", "a caption that is far too long for one card of this width"])
def test_text_fits_its_card(text: str) -> None:
    picture = pictures.text_picture(text)
    ink: NDArray[np.bool] = np.all(picture < 128, axis=2)
    assert picture.shape == (96, 192, 3)
    assert ink.any()
    if text == "female":
        assert not ink[:, :3].any()
        assert not ink[:, -3:].any()
