"""Normals from depth, against planes and spheres whose normals are known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from compactmtl.data.normals import Intrinsics, normals_from_depth

CAMERA = Intrinsics((40, 60), (80.0, 90.0), (27.0, 22.0))  # unequal focal lengths, off center


def rays(camera: Intrinsics = CAMERA) -> NDArray[np.float64]:
    x = (np.arange(camera.size[1]) - camera.center[0]) / camera.focal[0]
    y = (np.arange(camera.size[0]) - camera.center[1]) / camera.focal[1]
    return np.stack([*np.meshgrid(x, y), np.ones(camera.size)])


def degrees(one: NDArray[np.floating], other: NDArray[np.floating]) -> NDArray[np.floating]:
    angles: NDArray[np.floating] = np.degrees(np.arccos((one * other).sum(0).clip(-1, 1)))
    return angles


tilt = st.floats(-0.8, 0.8)


@settings(max_examples=30, deadline=None)
@given(tilt, tilt, st.floats(0.3, 8), st.integers(1, 6))
def test_a_plane_has_its_normal_everywhere(a: float, b: float, distance: float, radius: int) -> None:
    normal = np.array([a, b, -1.0]) / np.linalg.norm([a, b, 1])
    depth = distance * normal[2] / np.einsum("c,chw->hw", normal, rays())
    # Wide enough that the steepest plane here is one surface: 1/Z changes by a fifth over 6 pixels.
    got = normals_from_depth(depth.astype(np.float32), CAMERA, radius, step=0.2)
    assert got.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(got, axis=0), 1, atol=1e-5)
    # Single precision of inverse depth over a window of a pixel's radius.
    assert degrees(got, normal[:, None, None]).max() < 0.2


def test_a_sphere_faces_outwards() -> None:
    center, radius, r = np.array([0.1, -0.1, 4.0]), 1.5, rays()
    b, c = np.einsum("c,chw->hw", center, r), center @ center - radius**2
    square = (r * r).sum(0)
    root = b * b - square * c
    depth = np.where(root > 0.05, (b - np.sqrt(np.maximum(root, 0))) / square, 0)
    got = normals_from_depth(depth.astype(np.float32), CAMERA, radius=2)
    known = got.any(0)
    want = (depth * r - center[:, None, None]) / radius
    assert known.sum() > 300
    assert degrees(got, want)[known].mean() < 2  # a plane over 5 x 5 pixels of a curved surface
    assert (got[2][known] < 0).all()


def test_surfaces_do_not_mix_at_a_step() -> None:
    depth = np.full((40, 60), 2.0, np.float32)
    depth[:, 30:] = 3.0
    got = normals_from_depth(depth, CAMERA, radius=4)
    assert degrees(got, np.array([0, 0, -1.0])[:, None, None]).max() < 0.1


def test_unknown_depth_has_no_normal_and_spoils_none() -> None:
    depth = np.full((40, 60), 2.0, np.float32)
    depth[10:20, 10:20] = 0
    depth[0, 0], depth[0, 1], depth[0, 2] = np.nan, np.inf, -1
    got = normals_from_depth(depth, CAMERA)
    assert np.array_equal(got.any(0), np.isfinite(depth) & (depth > 0))
    assert degrees(got[:, 20:], np.array([0, 0, -1.0])[:, None, None]).max() < 0.1


def test_a_lone_pixel_says_nothing() -> None:
    depth = np.zeros((40, 60), np.float32)
    depth[5, 5] = 1
    depth[20, 20:24] = 1  # a line has no plane either
    assert not normals_from_depth(depth, CAMERA, radius=2).any()


def test_the_scale_of_depth_does_not_matter() -> None:
    depth = (np.random.default_rng(0).random((40, 60)) * 0.02 + 2).astype(np.float32)
    one, other = normals_from_depth(depth, CAMERA), normals_from_depth(depth * 1000, CAMERA)
    assert degrees(one, other).max() < 0.2


def test_a_resized_camera_sees_the_same_plane() -> None:
    normal = np.array([0.3, -0.5, -1.0]) / np.linalg.norm([0.3, 0.5, 1])
    half = CAMERA.resized((20, 30))
    depth = 2 * normal[2] / np.einsum("c,chw->hw", normal, rays(half))
    assert degrees(normals_from_depth(depth.astype(np.float32), half), normal[:, None, None]).max() < 0.1
    # Pixel 0 of half the size covers pixels 0 and 1.
    whole = rays()
    np.testing.assert_allclose(rays(half)[0, 0, 0], (whole[0, 0, 0] + whole[0, 0, 1]) / 2)


def test_a_camera_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(40, 60\)"):
        normals_from_depth(np.ones((20, 30), np.float32), CAMERA)
