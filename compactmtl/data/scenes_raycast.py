"""A small vectorised ray caster: which surface each ray meets, where, and with which normal.

Rays share one origin, so that the eye and every light use the same intersection code: a light sees a surface point
where nothing lies nearer on the ray towards it. Arrays hold x, y and z in their first axis: (3, N) for N rays.
Sources of the numerically robust round shapes: Haines et al., "Precision improvements for ray/sphere intersection",
Ray Tracing Gems (2019), chapter 7.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compactmtl.data.scenes_layout import Array, Camera, Room, Solid

HORIZONTAL_VIEW = math.radians(66.0)  # of every picture: fixed intrinsics make depth readable from one image
_FAR = np.float32(1e9)
_INWARD = np.repeat(np.eye(3, dtype=np.float32), 2, axis=1) * np.tile(np.array([1, -1], np.float32), 3)


@dataclass(frozen=True)
class Hits:
    """Where N rays end: `t` along each, surface number, and point and normal (3, N) in the world."""

    t: Array
    surface: NDArray[np.int16]
    point: Array
    normal: Array


def focal_length(width: int) -> float:
    """Focal length in pixels of a picture of this width."""
    return width / (2 * math.tan(HORIZONTAL_VIEW / 2))


def pixel_rays(height: int, width: int, camera: Camera, offset: tuple[float, float] = (0.0, 0.0)) -> Array:
    """Directions (3, H * W) through the pixels' centers, one metre deep, so that t along a ray is z-depth.

    `offset` moves the sampled point within the pixel, in pixels (x, y).
    """
    focal = focal_length(width)
    x = (np.arange(width, dtype=np.float32) + np.float32(0.5 + offset[0] - width / 2)) / np.float32(focal)
    y = (np.arange(height, dtype=np.float32) + np.float32(0.5 + offset[1] - height / 2)) / np.float32(focal)
    grid = np.empty((3, height, width), np.float32)
    grid[0], grid[1], grid[2] = x[None, :], y[:, None], 1.0
    rays: Array = camera.axes @ grid.reshape(3, -1)
    return rays


def to_local(solid: Solid, vectors: Array) -> Array:
    """World vectors (3, N) in the solid's own axes."""
    return vectors if solid.shape == "sphere" else _turn(-solid.yaw) @ vectors


def _turn(yaw: float) -> Array:
    cos, sin = math.cos(yaw), math.sin(yaw)
    return np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]], np.float32)


def dot(a: Array, b: Array) -> Array:
    """Products (N,) of the columns of two arrays (D, N); much quicker than a sum over a short first axis."""
    total: Array = a[0] * b[0]
    for row in range(1, len(a)):
        total += a[row] * b[row]
    return total


def _round_interval(origin: Array, rays: Array, radius: float) -> tuple[Array, Array]:
    """Entry and exit of rays (D, N) through the ball of `radius` about the center of D axes; entry > exit outside."""
    square = np.maximum(dot(rays, rays), np.float32(1e-12))
    along = (origin @ rays) / square
    foot = (
        origin[:, None] - along * rays
    )  # the ray's nearest point to the center: keeps the digits of the difference
    inside = np.float32(radius) ** 2 - dot(foot, foot)
    half = np.sqrt(np.maximum(inside, 0) / square)
    half[inside <= 0] = -_FAR
    return -along - half, -along + half


def _slab_interval(origin: Array, rays: Array, half: Array) -> tuple[Array, Array]:
    """Entry and exit of rays (D, N) through the box of half extents `half` about the center."""
    with np.errstate(divide="ignore", invalid="ignore"):  # 0 / 0: a ray within a side is no hit
        inverse = np.float32(1) / rays
        near, far = (-half - origin)[:, None] * inverse, (half - origin)[:, None] * inverse
    return np.minimum(near, far).max(axis=0), np.maximum(near, far).min(axis=0)


def _solid_entry(solid: Solid, origin: Array, rays: Array) -> Array:
    """Distance t at which each ray (3, N) enters the solid, infinite where it does not."""
    start = to_local(solid, (origin - np.array(solid.center, np.float32))[:, None])[:, 0]
    rays = to_local(solid, rays)
    half = np.array(solid.half, np.float32)
    if solid.shape == "sphere":
        enter, leave = _round_interval(start, rays, solid.half[0])
    elif solid.shape == "box":
        enter, leave = _slab_interval(start, rays, half)
    else:
        enter, leave = _round_interval(start[:2], rays[:2], solid.half[0])
        low, high = _slab_interval(start[2:], rays[2:], half[2:])
        enter, leave = np.maximum(enter, low), np.minimum(leave, high)
    result: Array = np.where((enter < leave) & (enter > 0), enter, _FAR)
    return result


def nearest_solid(room: Room, origin: Array, rays: Array) -> tuple[Array, NDArray[np.int16]]:
    """For each ray the t (N,) at which it meets a solid first, and that solid's number, -1 and far for none."""
    count = rays.shape[1]
    best = np.full(count, _FAR, np.float32)
    which = np.full(count, -1, np.int16)
    if not room.solids:
        return best, which
    # Only rays that pass a solid's bounding sphere are tried on the solid itself.
    centers = np.array([solid.center for solid in room.solids], np.float32) - origin
    bounds = np.array([solid.bound * 1.001 for solid in room.solids], np.float32)
    outside = np.sum(centers**2, axis=1) - bounds**2
    tangent = np.where(
        outside > 0, np.sqrt(np.maximum(outside, 0)), -_FAR
    )  # inside the bound every ray may hit
    candidate = centers @ rays >= tangent[:, None] * np.sqrt(dot(rays, rays))
    for number, solid in enumerate(room.solids):
        index = np.flatnonzero(candidate[number])
        if index.size == 0:
            continue
        entry = _solid_entry(solid, origin, rays[:, index])
        nearer = entry < best[index]
        index = index[nearer]
        best[index], which[index] = entry[nearer], number
    return best, which


def cast(room: Room, origin: Array, rays: Array) -> Hits:
    """First surface on each ray. Surfaces are numbered: 6 faces, then decals, then solids."""
    rays = rays + np.float32(0)  # no -0: a ray along a wall leaves by the far one, infinitely late
    exits, signs = [], rays >= 0
    with np.errstate(divide="ignore"):
        for axis in range(3):
            walls = np.where(signs[axis], np.float32(room.size[axis]), np.float32(0))
            exits.append((walls - origin[axis]) / rays[axis])
    t = np.minimum(exits[0], exits[1])
    face = np.where(exits[0] < exits[1], signs[0], signs[1].astype(np.int16) + 2)
    face = np.where(exits[2] < t, signs[2].astype(np.int16) + 4, face)
    t = np.minimum(t, exits[2])
    solid_t, which = nearest_solid(room, origin, rays)
    covered = solid_t < t
    t = np.where(covered, solid_t, t)
    point = origin[:, None] + t * rays
    normal = _INWARD[:, face]
    first = 6 + len(room.decals)
    surface = np.where(covered, which + np.int16(first), face)
    for number, decal in enumerate(room.decals):
        index = np.flatnonzero(surface == decal.face)
        u, v = face_axes(decal.face)
        on = (point[u, index] > decal.low[0]) & (point[u, index] < decal.high[0])
        on &= (point[v, index] > decal.low[1]) & (point[v, index] < decal.high[1])
        surface[index[on]] = 6 + number
    for number in np.flatnonzero(np.bincount(which[covered], minlength=1)).tolist():
        index = np.flatnonzero(surface == first + number)
        normal[:, index] = _solid_normal(room.solids[number], point[:, index])
    return Hits(t, surface, point, normal)


def face_axes(face: int) -> tuple[int, int]:
    """The two world axes that run within a face of the room."""
    return ((1, 2), (0, 2), (0, 1))[face // 2]


def _solid_normal(solid: Solid, point: Array) -> Array:
    """Outward unit normals (3, N) at surface points in the world."""
    local = to_local(solid, point - np.array(solid.center, np.float32)[:, None])
    if solid.shape == "sphere":
        result: Array = local / np.linalg.norm(local, axis=0)
        return result
    normal = np.zeros_like(local)
    if solid.shape == "box":
        axis = np.argmax(np.abs(local) / np.array(solid.half, np.float32)[:, None], axis=0)
        columns = np.arange(local.shape[1])
        normal[axis, columns] = np.sign(local[axis, columns])
    else:
        radius = np.hypot(local[0], local[1])
        cap = np.abs(local[2]) / solid.half[2] > radius / solid.half[0]
        normal[2] = np.where(cap, np.sign(local[2]), 0)
        normal[:2] = np.where(cap, 0, local[:2] / np.maximum(radius, np.float32(1e-9)))
    return _turn(solid.yaw) @ normal
