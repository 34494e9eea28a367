"""Random furnished rooms, as data: what the ray caster of `scenes` draws.

World frame: x right, y forward, z up, in metres, right-handed; the room is the box from the origin to `Room.size`.
"""

from __future__ import annotations

import colorsys
import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]  # float32 throughout
Pattern = Literal["plain", "checker", "stripes", "planks", "bricks", "marble", "window", "panel", "painting"]

CLASSES = (
    "floor",
    "ceiling",
    "wall",
    "door",
    "window",
    "picture",
    "rug",
    "table",
    "box",
    "sphere",
    "cylinder",
)
LABEL = {name: index for index, name in enumerate(CLASSES)}

# Faces of the room, numbered 2 * axis + (1 on the far side): x = 0, x = X, y = 0, y = Y, z = 0, z = Z.
FLOOR, CEILING = 4, 5
WALLS = (0, 1, 2, 3)


@dataclass(frozen=True)
class Material:
    """A procedural texture of two linear-light RGB colors; `period` in metres, `gloss` of the highlight."""

    pattern: Pattern
    color: tuple[float, float, float]
    second: tuple[float, float, float]
    period: float
    phase: float
    gloss: float = 0.0


@dataclass(frozen=True)
class Solid:
    """A box, an upright cylinder or a sphere; `half` are half extents (a radius in x and y where round)."""

    shape: Literal["box", "sphere", "cylinder"]
    label: int
    center: tuple[float, float, float]
    half: tuple[float, float, float]
    yaw: float
    material: Material

    @property
    def bound(self) -> float:
        """Radius of a sphere about the center that holds the solid."""
        if self.shape == "sphere":
            return self.half[0]
        x, y, z = self.half
        return math.hypot(x, y, z) if self.shape == "box" else math.hypot(x, z)


@dataclass(frozen=True)
class Decal:
    """A flat rectangle painted on a face of the room: from `low` to `high` on its two in-face axes."""

    face: int
    label: int
    low: tuple[float, float]
    high: tuple[float, float]
    material: Material


@dataclass(frozen=True)
class Light:
    """A point light; `power` is linear RGB at one metre."""

    position: tuple[float, float, float]
    power: tuple[float, float, float]


@dataclass(frozen=True)
class Camera:
    """A pinhole at `position`; the columns of `axes` are right, down and forward in the world."""

    position: Array
    axes: Array


@dataclass(frozen=True)
class Room:
    """One scene."""

    size: tuple[float, float, float]
    faces: tuple[Material, ...]
    decals: tuple[Decal, ...]
    solids: tuple[Solid, ...]
    lights: tuple[Light, ...]
    camera: Camera
    exposure: float
    ambient: tuple[float, float, float]


def _color(
    rng: np.random.Generator, saturation: tuple[float, float], value: tuple[float, float]
) -> tuple[float, float, float]:
    red, green, blue = colorsys.hsv_to_rgb(
        rng.uniform(-0.06, 0.76),
        rng.uniform(*saturation),
        rng.uniform(*value),  # magenta is rare in rooms
    )
    return red**2, green**2, blue**2  # to linear light, by the gamma of 2 that the caster writes


def _material(
    rng: np.random.Generator,
    patterns: tuple[Pattern, ...],
    saturation: tuple[float, float],
    value: tuple[float, float],
    period: tuple[float, float],
    contrast: tuple[float, float],
    gloss: float = 0.0,
) -> Material:
    color = _color(rng, saturation, value)
    if rng.random() < 0.5:
        shade = rng.uniform(*contrast)
        second = (color[0] * shade, color[1] * shade, color[2] * shade)
    else:
        second = _color(rng, saturation, value)
    pattern = patterns[int(rng.integers(len(patterns)))]
    return Material(pattern, color, second, rng.uniform(*period), rng.random(), gloss)


def _wood(rng: np.random.Generator, value: tuple[float, float]) -> tuple[float, float, float]:
    red, green, blue = colorsys.hsv_to_rgb(
        rng.uniform(0.05, 0.11), rng.uniform(0.35, 0.65), rng.uniform(*value)
    )
    return red**2, green**2, blue**2


def _faces(rng: np.random.Generator) -> tuple[Material, ...]:
    paint = _material(
        rng, ("plain", "plain", "stripes", "marble"), (0.05, 0.4), (0.7, 0.95), (0.25, 0.6), (0.8, 0.92)
    )
    accent = _material(
        rng, ("plain", "bricks", "stripes", "panel"), (0.1, 0.6), (0.5, 0.9), (0.3, 0.6), (0.6, 0.85)
    )
    walls = [paint] * 4
    if rng.random() < 0.5:
        walls[int(rng.integers(4))] = accent
    if rng.random() < 0.55:
        wood = _wood(rng, (0.4, 0.8))
        darker = (wood[0] * 0.55, wood[1] * 0.5, wood[2] * 0.45)
        floor = Material("planks", wood, darker, rng.uniform(0.12, 0.22), rng.random(), 0.25)
    else:
        floor = _material(
            rng,
            ("checker", "bricks", "marble", "plain"),
            (0.05, 0.35),
            (0.4, 0.85),
            (0.5, 0.9),
            (0.5, 0.8),
            0.2,
        )
    ceiling = Material("plain", *(2 * ((rng.uniform(0.75, 0.9),) * 3,)), period=1.0, phase=0.0)
    return (*walls, floor, ceiling)


def _wall_decals(rng: np.random.Generator, size: tuple[float, float, float]) -> list[Decal]:
    decals: list[Decal] = []
    sky = _color(rng, (0.1, 0.35), (0.92, 1.0))
    door_used = False
    for face in WALLS:
        length = size[1] if face < 2 else size[0]
        slots = max(int(length / 1.5), 1)
        pitch = length / slots
        for slot in range(slots):
            kind = rng.choice(("door", "window", "picture", "none"), p=(0.22, 0.28, 0.32, 0.18))
            middle = (slot + 0.5 + rng.uniform(-0.08, 0.08)) * pitch
            if kind == "door" and not door_used:
                door_used = True
                half = rng.uniform(0.4, 0.48)
                wood = _wood(rng, (0.45, 0.95)) if rng.random() < 0.6 else _color(rng, (0.2, 0.6), (0.5, 0.9))
                dark = (wood[0] * 0.6, wood[1] * 0.6, wood[2] * 0.6)
                material = Material("panel", wood, dark, half, 0.0, 0.15)
                box = ((middle - half, 0.0), (middle + half, rng.uniform(1.95, 2.1)))
            elif kind == "window":
                half, low = rng.uniform(0.4, 0.6), rng.uniform(0.8, 1.1)
                material = Material("window", sky, (0.75, 0.75, 0.73), half, rng.random())
                box = ((middle - half, low), (middle + half, low + rng.uniform(0.9, 1.2)))
            elif kind == "picture":
                wide, high, low = rng.uniform(0.2, 0.5), rng.uniform(0.4, 0.9), rng.uniform(1.1, 1.45)
                paint = _material(rng, ("painting",), (0.4, 0.9), (0.4, 1.0), (0.25, 0.6), (0.2, 0.4))
                material = paint
                box = ((middle - wide, low), (middle + wide, min(low + high, size[2] - 0.1)))
            else:
                continue
            decals.append(Decal(face, LABEL[str(kind)], *box, material))
    return decals


def _rug(rng: np.random.Generator, size: tuple[float, float, float]) -> Decal:
    half = rng.uniform(0.7, 1.3, 2)
    center = [rng.uniform(0.3, 0.7) * size[0], rng.uniform(0.4, 0.75) * size[1]]
    material = _material(
        rng, ("stripes", "checker", "plain", "marble"), (0.3, 0.8), (0.35, 0.9), (0.2, 0.5), (0.4, 0.7)
    )
    low = (float(max(center[0] - half[0], 0.1)), float(max(center[1] - half[1], 0.1)))
    high = (
        float(min(center[0] + half[0], size[0] - 0.1)),
        float(min(center[1] + half[1], size[1] - 0.1)),
    )
    return Decal(FLOOR, LABEL["rug"], low, high, material)


def _object_material(rng: np.random.Generator) -> Material:
    return _material(
        rng,
        ("plain", "plain", "checker", "stripes", "marble", "bricks"),
        (0.2, 0.8),
        (0.4, 0.95),
        (0.12, 0.3),
        (0.35, 0.7),
        gloss=float(rng.choice((0.0, 0.3, 0.8))),
    )


def _table(rng: np.random.Generator, x: float, y: float) -> tuple[list[Solid], tuple[float, float, float]]:
    """A top on four legs at (x, y), and its top's half extents and height."""
    half_x, half_y, height = rng.uniform(0.4, 0.75), rng.uniform(0.3, 0.5), rng.uniform(0.55, 0.78)
    yaw, thick = rng.uniform(0, math.pi), 0.03
    wood = _wood(rng, (0.4, 0.95)) if rng.random() < 0.7 else _color(rng, (0.0, 0.5), (0.3, 0.95))
    dark = (wood[0] * 0.6, wood[1] * 0.6, wood[2] * 0.6)
    top = Material("planks", wood, dark, rng.uniform(0.1, 0.2), rng.random(), 0.4)
    leg = Material("plain", dark, dark, 1.0, 0.0, 0.2)
    label = LABEL["table"]
    solids = [Solid("box", label, (x, y, height - thick), (half_x, half_y, thick), yaw, top)]
    width = rng.uniform(0.025, 0.045)
    reach = (height - 2 * thick) / 2
    cos, sin = math.cos(yaw), math.sin(yaw)
    for side_x in (-1, 1):
        for side_y in (-1, 1):
            u, v = side_x * (half_x - width - 0.03), side_y * (half_y - width - 0.03)
            center = (x + cos * u - sin * v, y + sin * u + cos * v, reach)
            solids.append(Solid("box", label, center, (width, width, reach), yaw, leg))
    return solids, (half_x, half_y, height)


def _solid(
    rng: np.random.Generator, x: float, y: float, floor: float, scale: float, roof: float
) -> tuple[Solid, float]:
    """A random solid that stands at height `floor`, and the radius of its footprint."""
    shape: Literal["box", "sphere", "cylinder"] = ("box", "sphere", "cylinder")[int(rng.integers(3))]
    if shape == "sphere":
        radius = float(rng.uniform(0.16, 0.45)) * scale
        half = (radius, radius, radius)
    elif shape == "cylinder":
        radius = float(rng.uniform(0.12, 0.35)) * scale
        half = (radius, radius, float(rng.uniform(0.15, 0.7)) * scale)
    else:
        a, b, c = (float(value) * scale for value in rng.uniform((0.15, 0.15, 0.15), (0.45, 0.45, 0.75)))
        half, radius = (a, b, c), math.hypot(a, b)
    half = (half[0], half[1], min(half[2], (roof - floor) / 2 - 0.05))
    center = (x, y, floor + half[2])
    return Solid(shape, LABEL[shape], center, half, rng.uniform(0, math.pi), _object_material(rng)), radius


def _furniture(
    rng: np.random.Generator, size: tuple[float, float, float], eye: tuple[float, float], count: int
) -> list[Solid]:
    placed = [(eye[0], eye[1], 0.9)]  # keep the camera's own place free
    solids: list[Solid] = []

    def free(x: float, y: float, radius: float) -> bool:
        return all(math.hypot(x - a, y - b) > radius + r + 0.05 for a, b, r in placed)

    for number in range(count):
        for _ in range(8):  # tries; a full room simply holds fewer
            x, y = rng.uniform(0.5, size[0] - 0.5), rng.uniform(0.9, size[1] - 0.5)
            if number == 0 and rng.random() < 0.75:
                radius = 0.9
                if not free(x, y, radius) or min(x, size[0] - x, y, size[1] - y) < radius:
                    continue
                table, (half_x, half_y, height) = _table(rng, x, y)
                solids += table
                for side in (-1, 1):
                    if rng.random() < 0.6:
                        yaw, offset = table[0].yaw, side * half_x * 0.55
                        small, _ = _solid(
                            rng,
                            x + math.cos(yaw) * offset,
                            y + math.sin(yaw) * offset,
                            height,
                            min(half_x * 0.45, half_y) / 0.64,
                            size[2],
                        )
                        solids.append(small)
            else:
                solid, radius = _solid(rng, x, y, 0.0, 1.0, size[2])
                if not free(x, y, radius) or min(x, size[0] - x, y, size[1] - y) < radius + 0.02:
                    continue
                solids.append(solid)
            placed.append((x, y, radius))
            break
    return solids


def _camera(rng: np.random.Generator, size: tuple[float, float, float]) -> Camera:
    position = np.array(
        [rng.uniform(0.25, 0.75) * size[0], rng.uniform(0.2, 0.6), rng.uniform(1.1, 1.75)], dtype=np.float32
    )
    # The nearer a side wall, the more the camera turns away from it.
    side = (0.5 - position[0] / size[0]) * 2
    yaw = math.radians(30) * (side + rng.uniform(-0.8, 0.8))
    pitch, roll = math.radians(rng.uniform(3, 22)), math.radians(rng.uniform(-3, 3))
    forward = np.array([math.sin(yaw) * math.cos(pitch), math.cos(yaw) * math.cos(pitch), -math.sin(pitch)])
    level = np.array([math.cos(yaw), -math.sin(yaw), 0.0])
    plumb = np.cross(forward, level)
    right = math.cos(roll) * level + math.sin(roll) * plumb
    down = np.cross(forward, right)
    return Camera(position, np.stack([right, down, forward], axis=1).astype(np.float32))


def _lights(rng: np.random.Generator, size: tuple[float, float, float]) -> tuple[Light, ...]:
    lights = []
    for place in ((0.3, 0.35), (0.7, 0.75))[: int(rng.integers(1, 3))]:
        x, y = (np.array(place) + rng.uniform(-0.15, 0.15, 2)) * size[:2]
        warmth, power = rng.uniform(0.75, 1.0), rng.uniform(3.2, 5.5)
        lights.append(
            Light(
                (float(x), float(y), size[2] - rng.uniform(0.15, 0.4)),
                (power, power * (0.5 + warmth / 2), power * warmth),
            )
        )
    if len(lights) == 1:  # one lamp lights the room alone
        lone = lights[0]
        lights = [Light(lone.position, (lone.power[0] * 1.6, lone.power[1] * 1.6, lone.power[2] * 1.6))]
    return tuple(lights)


def random_room(rng: np.random.Generator) -> Room:
    """A furnished room, decided by the generator alone and by no picture size."""
    size = (rng.uniform(3.4, 6.0), rng.uniform(4.0, 7.5), rng.uniform(2.4, 3.1))
    camera = _camera(rng, size)
    faces = _faces(rng)
    decals = _wall_decals(rng, size)
    if rng.random() < 0.6:
        decals.append(_rug(rng, size))
    eye = (float(camera.position[0]), float(camera.position[1]))
    solids = _furniture(rng, size, eye, int(rng.integers(4, 10)))
    ambient = rng.uniform(0.16, 0.28)
    return Room(
        size=size,
        faces=faces,
        decals=tuple(decals),
        solids=tuple(solids),
        lights=_lights(rng, size),
        camera=camera,
        exposure=rng.uniform(0.8, 1.25),
        ambient=(ambient * rng.uniform(0.9, 1.0), ambient, ambient * rng.uniform(1.0, 1.15)),
    )
