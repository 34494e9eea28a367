"""The ray caster against closed forms, and against the implicit equations of the solids that it hits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compactmtl.data.scenes_layout import Array, Camera, Material, Room, Solid, random_room
from compactmtl.data.scenes_raycast import Hits, cast, focal_length, nearest_solid, pixel_rays, to_local

PLAIN = Material("plain", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), 1.0, 0.0)
AHEAD = Camera(
    np.array([2.0, 0.5, 1.0], np.float32), np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]], np.float32)
)
seeds = st.integers(0, 10_000)


def empty_room(*solids: Solid) -> Room:
    """Four metres wide, six deep, three high; the camera looks along y."""
    room = random_room(np.random.default_rng(0))
    return replace(room, size=(4.0, 6.0, 3.0), decals=(), solids=solids, camera=AHEAD)


def solid(
    shape: str, center: tuple[float, float, float], half: tuple[float, float, float], yaw: float = 0
) -> Solid:
    return Solid(shape, 0, center, half, yaw, PLAIN)  # type: ignore[arg-type]


def middle_ray(room: Room) -> Hits:
    return cast(room, room.camera.position, room.camera.axes[:, 2:])


def seen(seed: int, size: tuple[int, int] = (24, 32)) -> tuple[Room, Array, Hits]:
    room = random_room(np.random.default_rng(seed))
    rays = pixel_rays(*size, room.camera)
    return room, rays, cast(room, room.camera.position, rays)


def surface_distance(one: Solid, point: Array) -> Array:
    """Signed distance-like value of world points (3, N): negative inside, zero on the solid's surface."""
    local = np.abs(to_local(one, point - np.array(one.center, np.float32)[:, None]))
    half = np.array(one.half, np.float32)[:, None]
    if one.shape == "sphere":
        result: Array = np.linalg.norm(local, axis=0) - half[0]
    elif one.shape == "box":
        result = (local - half).max(axis=0)
    else:
        result = np.maximum(np.hypot(local[0], local[1]) - half[0], local[2] - half[2])
    return result


@pytest.mark.parametrize(
    ("what", "depth"),
    [
        (solid("sphere", (2.0, 3.0, 1.0), (0.4, 0.4, 0.4)), 2.1),
        (solid("box", (2.0, 3.0, 1.0), (0.4, 0.3, 0.2)), 2.2),
        (solid("box", (2.0, 3.0, 1.0), (0.3, 0.3, 0.3), np.pi / 4), 2.5 - 0.3 * np.sqrt(2)),
        (solid("cylinder", (2.0, 3.0, 1.0), (0.25, 0.25, 0.5)), 2.25),
    ],
)
def test_depth_straight_ahead_is_the_closed_form(what: Solid, depth: float) -> None:
    hits = middle_ray(empty_room(what))
    assert hits.surface[0] == 6
    assert hits.t[0] == pytest.approx(depth, rel=1e-5)  # float32


def test_an_empty_room_ends_at_its_far_wall() -> None:
    hits = middle_ray(empty_room())
    assert hits.surface[0] == 3
    assert hits.t[0] == pytest.approx(5.5, rel=1e-6)
    assert hits.normal[:, 0].tolist() == [0, -1, 0]


def test_the_edges_of_the_view_follow_from_the_focal_length() -> None:
    rays = pixel_rays(2, 100, AHEAD)
    x = rays[0] / rays[1]
    assert x.max() == pytest.approx(49.5 / focal_length(100), rel=1e-5)
    assert x.min() == pytest.approx(-49.5 / focal_length(100), rel=1e-5)


@settings(max_examples=25)
@given(seeds)
def test_each_point_lies_on_the_surface_it_is_said_to(seed: int) -> None:
    room, _, hits = seen(seed)
    first = 6 + len(room.decals)
    for number in np.unique(hits.surface):
        point = hits.point[:, hits.surface == number]
        if number >= first:
            off = surface_distance(room.solids[number - first], point)
        else:
            face = room.decals[number - 6].face if number >= 6 else int(number)
            off = point[face // 2] - (room.size[face // 2] if face % 2 else 0.0)
        assert np.abs(off).max() < 2e-5  # metres; float32 at ten metres


@pytest.mark.slow
@settings(max_examples=25)
@given(seeds)
def test_nothing_stands_before_what_is_seen(seed: int) -> None:
    room, rays, hits = seen(seed, (12, 16))
    origin = room.camera.position[:, None]
    for share in np.linspace(0.02, 0.999, 60, dtype=np.float32):
        point = origin + share * hits.t * rays
        for one in room.solids:
            assert (
                surface_distance(one, point).min() > -2e-3
            )  # a grazing ray may cut a corner between two steps
        assert (point > -1e-4).all()
        assert (point < np.array(room.size, np.float32)[:, None] + 1e-4).all()


@settings(max_examples=25)
@given(seeds)
def test_normals_are_unit_vectors_towards_the_eye(seed: int) -> None:
    _, rays, hits = seen(seed)
    np.testing.assert_allclose(np.linalg.norm(hits.normal, axis=0), 1, atol=1e-5)
    assert (hits.normal * rays).sum(axis=0).max() < 1e-3


@settings(max_examples=25)
@given(seeds)
def test_normals_are_the_cross_product_of_neighboring_points(seed: int) -> None:
    _, _, hits = seen(seed, (48, 64))
    point, normal = (array.reshape(3, 48, 64) for array in (hits.point, hits.normal))
    surface = hits.surface.reshape(48, 64)
    here = np.s_[:, :-1, :-1]
    across, below = point[:, :-1, 1:] - point[here], point[:, 1:, :-1] - point[here]
    cross = np.cross(below, across, axis=0)
    cross /= np.maximum(np.linalg.norm(cross, axis=0), 1e-12)
    flat = (surface[:-1, :-1] == surface[:-1, 1:]) & (surface[:-1, :-1] == surface[1:, :-1])
    for shift in (np.s_[:, :-1, 1:], np.s_[:, 1:, :-1]):
        flat &= (normal[here] * normal[shift]).sum(axis=0) > 0.99999  # the same face of a flat solid
    cosine = np.abs((cross * normal[here]).sum(axis=0))[flat]
    assert flat.mean() > 0.3
    assert np.percentile(cosine, 1) > 0.999


@settings(max_examples=20)
@given(seeds, st.integers(0, 2**31))
def test_light_and_eye_agree_on_who_hides_whom(seed: int, other: int) -> None:
    """A ray from A to a point B it sees first, and one from just before B back to A, are both free."""
    room, rays, hits = seen(seed, (8, 12))
    before = hits.point + 1e-3 * hits.normal
    rng = np.random.default_rng(other)
    for column in rng.choice(rays.shape[1], 8, replace=False):
        start = before[:, column]
        back = (room.camera.position - start)[:, None].astype(np.float32)
        blocked, _ = nearest_solid(room, start, back)
        grazing = abs(float(hits.normal[:, column] @ rays[:, column])) < 0.02
        assert grazing or blocked[0] > 0.999
