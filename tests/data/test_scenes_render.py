"""Pictures of rooms: maps that agree with the rays, shadows, smoothed edges, sensor noise."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from compactmtl.data.scenes_layout import Camera, Decal, Light, Material, Room, Solid, random_room
from compactmtl.data.scenes_render import develop, render

GRAY = Material("plain", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), 1.0, 0.0)
LOOKING_DOWN = Camera(
    np.array([2.0, 2.0, 2.9], np.float32), np.array([[1, 0, 0], [0, -1, 0], [0, 0, -1]], np.float32)
)


def plain_room(*solids: Solid, decals: tuple[Decal, ...] = ()) -> Room:
    """A gray room of 4 x 4 x 3 metres seen from the ceiling, with one lamp beside the camera."""
    room = random_room(np.random.default_rng(1))
    return replace(
        room,
        size=(4.0, 4.0, 3.0),
        faces=(GRAY,) * 6,
        decals=decals,
        solids=solids,
        lights=(Light((2.6, 2.0, 2.9), (4.0, 4.0, 4.0)),),
        camera=LOOKING_DOWN,
        ambient=(0.1, 0.1, 0.1),
    )


def test_depth_of_a_plane_square_to_the_view_is_its_distance_everywhere() -> None:
    frame = render(plain_room(), 32, 32)
    np.testing.assert_allclose(frame.depth, 2.9, rtol=1e-5)  # z-depth, not the length of the ray
    np.testing.assert_allclose(frame.normal, np.broadcast_to([[[0]], [[0]], [[-1]]], (3, 32, 32)), atol=1e-6)


def test_a_ball_throws_its_shadow_away_from_the_lamp() -> None:
    ball = Solid("sphere", 9, (2.0, 2.0, 0.8), (0.3, 0.3, 0.3), 0.0, GRAY)
    frame, bare = render(plain_room(ball), 64, 64), render(plain_room(), 64, 64)
    darker = (frame.color.sum(0) < 0.7 * bare.color.sum(0)) & (frame.label == 0)
    columns = np.flatnonzero(darker.any(axis=0))
    assert darker.sum() > 20
    # The lamp hangs 0.6 m to the right of the ball, so that the shadow falls to the left of the picture's middle.
    assert columns.mean() < 30
    assert not darker[:, 40:].any()


def test_edges_are_mixtures_and_the_inside_is_not() -> None:
    white, black = ((0.9,) * 3, (0.1,) * 3)
    decal = Decal(4, 6, (1.3, 1.2), (2.7, 2.71), Material("plain", white, black, 1.0, 0.0))
    frame = render(plain_room(decals=(decal,)), 40, 40)
    share = frame.color[0] / render(plain_room(), 40, 40).color[0]
    assert np.abs(share[frame.label == 6] - 1.8).min() < 1e-3  # 0.9 against 0.5
    mixed = (share > 1.01) & (share < 1.79)
    assert 0 < mixed.sum() < 0.2 * mixed.size


def test_labels_depth_and_normals_are_untouched_by_smoothing() -> None:
    room = random_room(np.random.default_rng(5))
    small, large = render(room, 33, 45), render(room, 99, 135)
    center = np.s_[
        ..., 1::3, 1::3
    ]  # three times the size: the middle of each 3 x 3 is the small picture's own ray
    assert (small.label == large.label[center]).mean() > 0.998  # rounding may turn a ray at an edge
    same = small.label == large.label[center]
    assert np.median(np.abs(small.depth - large.depth[center])[same]) < 1e-5
    assert np.median(np.abs(small.normal - large.normal[center])[:, same]) < 1e-5


@pytest.mark.slow
def test_a_room_of_every_seed_is_finite_and_well_exposed() -> None:
    means = []
    for seed in range(40):
        room = random_room(np.random.default_rng(seed))
        frame = render(room, 24, 32)
        assert all(np.isfinite(array).all() for array in (frame.color, frame.depth, frame.normal))
        assert frame.depth.min() > 0.05
        assert frame.depth.max() < 12
        means.append(develop(frame, room.exposure, 0.0, np.random.default_rng(0)).mean())
    assert min(means) > 40  # of 255: none is dark
    assert max(means) < 225


def test_noise_has_the_size_it_is_given() -> None:
    frame = render(plain_room(), 64, 64)
    clean = develop(frame, 1.0, 0.0, np.random.default_rng(0)).astype(float)
    noisy = develop(frame, 1.0, 0.05, np.random.default_rng(0)).astype(float)
    expected = 255 * 0.05 * (1.3 - 0.6 * clean / 255)
    ratio = (noisy - clean).std() / np.sqrt((expected**2).mean())
    assert abs(ratio - 1) < 0.03  # 12,288 values: one standard error is 0.6 %
