"""Pictures of a room: textures, lights with shadows, edges smoothed by extra rays, and the exact maps beside them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compactmtl.data.scenes_layout import LABEL, Array, Camera, Material, Room
from compactmtl.data.scenes_raycast import (
    Hits,
    cast,
    dot,
    face_axes,
    focal_length,
    nearest_solid,
    pixel_rays,
    to_local,
)

_FACE_LABELS = [LABEL["wall"]] * 4 + [LABEL["floor"], LABEL["ceiling"]]
# Extra samples of an edge pixel: a rotated grid has four distinct rows and columns.
_SUBPIXELS = ((-0.375, -0.125), (0.125, -0.375), (0.375, 0.125), (-0.125, 0.375))


@dataclass(frozen=True)
class Frame:
    """What the camera sees.

    color (3, H, W) linear light · label (H, W) · depth (H, W), metres along the optical axis · normal (3, H, W), unit
    vectors towards the camera, in its frame (x right, y down, z forward).
    """

    color: Array
    label: NDArray[np.uint8]
    depth: Array
    normal: Array


def render(room: Room, height: int, width: int, camera: Camera | None = None) -> Frame:
    """The room at any size; labels, depth and normals are those of the ray through each pixel's center.

    `camera` replaces the room's own. Its axes need not be orthonormal: depth counts multiples of the third one, so a
    longer third axis draws the room squeezed along the view.
    """
    camera = camera or room.camera
    rays = pixel_rays(height, width, camera)
    hits = cast(room, camera.position, rays)
    footprint = np.float32(1 / focal_length(width))
    color = _shade(room, camera.position, rays, hits, footprint)
    edge = _edges(hits.surface.reshape(height, width), hits.normal.reshape(3, height, width))
    index = np.flatnonzero(edge)
    if index.size:
        steps = np.array(_SUBPIXELS, np.float32) * footprint
        extra = np.concatenate(
            [rays[:, index] + (camera.axes[:, :2] @ step)[:, None] for step in steps], axis=1
        )
        samples = _shade(room, camera.position, extra, cast(room, camera.position, extra), footprint)
        color[:, index] = samples.reshape(3, len(steps), -1).mean(axis=1)
    # A normal is a covector: it turns with the transpose of the axes, which for a rotation is the rotation back.
    normal = camera.axes.T @ hits.normal
    normal /= np.sqrt(dot(normal, normal))
    labels = np.array(
        _FACE_LABELS + [decal.label for decal in room.decals] + [solid.label for solid in room.solids],
        np.uint8,
    )
    return Frame(
        color.reshape(3, height, width),
        labels[hits.surface].reshape(height, width),
        hits.t.reshape(height, width),
        normal.reshape(3, height, width),
    )


def develop(frame: Frame, exposure: float, noise: float, rng: np.random.Generator) -> NDArray[np.uint8]:
    """The sensor's picture, uint8 (3, H, W): exposure, a soft shoulder, gamma 2, and noise that grows in shadows.

    `noise` is the standard deviation at mid gray, as a share of full scale.
    """
    light = frame.color * np.float32(exposure)
    picture = np.sqrt(light / (0.55 + light) * 1.35)
    if noise > 0:
        grain = rng.standard_normal(picture.shape, dtype=np.float32)
        picture += grain * (np.float32(noise) * (1.3 - 0.6 * picture))
    result: NDArray[np.uint8] = (np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8)
    return result


def _edges(surface: NDArray[np.int16], normal: Array) -> NDArray[np.bool_]:
    """Pixels whose neighbor lies on another surface or another side of the same solid."""
    edge = np.zeros(surface.shape, bool)
    for axis in (0, 1):
        here = tuple(slice(None, -1) if a == axis else slice(None) for a in (0, 1))
        there = tuple(slice(1, None) if a == axis else slice(None) for a in (0, 1))
        turn = dot(normal[(slice(None), *here)], normal[(slice(None), *there)])
        step = (surface[here] != surface[there]) | (turn < 0.7)
        edge[here] |= step
        edge[there] |= step
    return edge


def _shade(room: Room, eye: Array, rays: Array, hits: Hits, footprint: np.float32) -> Array:
    """Linear light (3, N) that comes back along each ray; `footprint` is a pixel's width at one metre."""
    albedo, gloss, emits = _surfaces(room, hits, footprint)
    point, normal = hits.point, hits.normal
    length = np.sqrt(dot(rays, rays))
    light = np.array(room.ambient, np.float32)[:, None] * _openness(room, point, normal)
    shiny = np.flatnonzero(gloss > 0)
    highlight = np.zeros((3, shiny.size), np.float32)
    for lamp in room.lights:
        position = np.array(lamp.position, np.float32)
        power = np.array(lamp.power, np.float32)[:, None]
        to_point = point - position[:, None]
        square = dot(to_point, to_point)
        distance = np.sqrt(square)
        facing = -dot(to_point, normal) / distance
        lit = np.flatnonzero(facing > 0)
        # A lamp sees a point where no solid lies on the way; short of 1 by more than rounding.
        blocked, _ = nearest_solid(room, position, to_point[:, lit])
        lit = lit[blocked > 0.999]
        strength = np.zeros_like(distance)
        strength[lit] = facing[lit] / (square[lit] + 1.2)
        light += power * strength
        if shiny.size:
            half = -to_point[:, shiny] / distance[shiny] - rays[:, shiny] / length[shiny]
            cosine = dot(half, normal[:, shiny]) / np.sqrt(dot(half, half))
            shine = gloss[shiny] * np.maximum(cosine, 0) ** 40 * (strength[shiny] > 0)
            highlight += power * (0.25 * shine / (square[shiny] + 1.2))
    light *= albedo
    light[:, shiny] += highlight
    light[:, emits] = albedo[:, emits]
    return light


def _openness(room: Room, point: Array, normal: Array) -> Array:
    """Share of the sky of soft light that a point sees: less in the room's corners, less for faces turned down."""
    size = np.array(room.size, np.float32)[:, None]
    near = np.minimum(point, size - point)
    dark = 1 - 0.4 * np.exp(near * -2.5)
    share: Array = dark[0] * dark[1] * dark[2] * (1 + 0.25 * normal[2])
    return share


def _surfaces(room: Room, hits: Hits, footprint: np.float32) -> tuple[Array, Array, NDArray[np.bool_]]:
    """Albedo (3, N), gloss (N,) and whether a point shines by itself (N,)."""
    count = hits.surface.size
    albedo = np.empty((3, count), np.float32)
    gloss = np.zeros(count, np.float32)
    emits = np.zeros(count, bool)
    first = 6 + len(room.decals)
    order = np.argsort(hits.surface, kind="stable")
    ends = np.cumsum(np.bincount(hits.surface))
    for number, index in enumerate(np.split(order, ends[:-1])):
        if index.size == 0:
            continue
        point = hits.point[:, index]
        if number < first:
            decal = room.decals[number - 6] if number >= 6 else None
            face = decal.face if decal else number
            a, b = face_axes(face)
            u, v = point[a], point[b]
            if decal:
                u, v = u - np.float32(decal.low[0]), v - np.float32(decal.low[1])
            material = decal.material if decal else room.faces[face]
            emits[index] = material.pattern == "window"
            extent = (decal.high[0] - decal.low[0], decal.high[1] - decal.low[1]) if decal else (1.0, 1.0)
        else:
            solid = room.solids[number - first]
            material = solid.material
            u, v = _wrap(
                solid.shape, to_local(solid, point - np.array(solid.center, np.float32)[:, None]), solid.half
            )
            extent = (2 * solid.half[0], 2 * solid.half[2])
        blur = hits.t[index] * footprint / np.float32(material.period)
        albedo[:, index] = _texture(material, u, v, extent, blur)
        gloss[index] = material.gloss
    return albedo, gloss, emits


def _wrap(shape: str, local: Array, half: tuple[float, float, float]) -> tuple[Array, Array]:
    """Texture coordinates in metres of surface points (3, N) of a solid at its own origin."""
    if shape == "box":
        axis = np.argmax(np.abs(local) / np.array(half, np.float32)[:, None], axis=0)
        return np.where(axis == 0, local[1], local[0]), np.where(axis == 2, local[1], local[2])
    turn = np.arctan2(local[1], local[0]) * np.float32(half[0])
    if shape == "sphere":
        return turn, local[2]
    cap = np.abs(local[2]) > np.float32(half[2] * 0.9999)
    return np.where(cap, local[0], turn), np.where(cap, local[1], local[2])


def _wave(x: Array, blur: Array) -> Array:
    """A square wave of period 1 between -1 and 1, its flanks as wide as a pixel and faded where finer than one."""
    sharp = 1 / (np.float32(2 * math.pi) * np.maximum(blur, np.float32(1e-4)))
    result: Array = np.clip(np.sin(x * np.float32(2 * math.pi)) * sharp, -1, 1)
    return result


def _lines(x: Array, width: float, blur: Array) -> Array:
    """1 on lines of this width (in periods) at whole numbers, else 0; smoothed over a pixel."""
    away = np.abs(x - np.round(x))
    soft = np.maximum(blur, np.float32(1e-4))
    share: Array = np.clip((np.float32(width / 2) - away) / soft + 0.5, 0, 1)
    return share * np.minimum(1, np.float32(width) / soft)


def _scatter(row: Array, column: Array | float = 0.0) -> Array:
    """A number in [0, 1) that looks random, for each cell of whole numbers."""
    value = np.sin(row * 12.9898 + column * 78.233) * 437.58
    result: Array = value - np.floor(value)
    return result


def _texture(material: Material, u: Array, v: Array, extent: tuple[float, float], blur: Array) -> Array:
    """Albedo (3, N) at texture coordinates in metres; `extent` is the whole surface's, `blur` a pixel in periods."""
    first = np.array(material.color, np.float32)[:, None]
    second = np.array(material.second, np.float32)[:, None]
    period = np.float32(material.period)
    x, y = u / period + np.float32(material.phase), v / period + np.float32(material.phase)
    tone: Array | float = 1.0
    pattern = material.pattern
    mix: Array
    if pattern == "checker":
        mix = 0.5 + 0.5 * _wave(x / 2, blur / 2) * _wave(y / 2, blur / 2)
    elif pattern == "stripes":
        mix = 0.5 + 0.5 * _wave(x / 2, blur / 2)
    elif pattern == "planks":
        row = np.floor(x)
        along = y * 0.13 + _scatter(row)
        mix = np.maximum(_lines(x, 0.06, blur), _lines(along, 0.008, blur * 0.13))
        tone = 0.85 + 0.3 * _scatter(row, np.floor(along))
    elif pattern == "bricks":
        row = np.floor(y * 2)
        across = x + 0.5 * (row % 2)
        mix = np.maximum(_lines(across, 0.05, blur), _lines(y * 2, 0.1, blur * 2))
        tone = 0.85 + 0.3 * _scatter(row, np.floor(across))
    elif pattern == "marble":
        swirl = np.sin(x * 2.1 + np.sin(y * 3.3)) + np.sin(y * 1.7 + x)
        mix = 0.5 + 0.5 * np.sin(swirl * 2.2 + x)
    elif pattern == "window":  # sky above, haze below, seen through a cross of bars
        w, h = np.float32(extent[0]), np.float32(extent[1])
        haze = 1 - v / h * 0.55
        frame = np.maximum(_lines(u / w * 2, 0.12, blur), _lines(v / h * 2, 0.1, blur))
        sky = first * np.stack([haze, 0.2 + haze * 0.8, np.ones_like(haze)])
        result: Array = sky * 2 * (1 - frame) + second * 0.6 * frame
        return result
    elif pattern == "panel":  # a frame and two fields, as on a door
        w, h = np.float32(extent[0]), np.float32(extent[1])
        mix = np.maximum(_lines(u / w, 0.16, blur), _lines(v / h * 2 + 0.04, 0.1, blur)) * 0.6
    elif pattern == "painting":  # blots of color in a dark frame
        w, h = np.float32(extent[0]), np.float32(extent[1])
        mix = 0.5 + 0.5 * np.sin(x * 5 + np.sin(y * 4) * 2) * np.sin(y * 5 - x)
        tone = 1 - 0.85 * np.maximum(_lines(u / w, 0.14, blur), _lines(v / h, 0.1, blur))
    else:
        return np.broadcast_to(first, (3, u.size))
    result = (first + (second - first) * mix) * tone
    return result
