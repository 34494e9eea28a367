"""Joint random transforms of an image and its targets, exact in the geometry of depth, disparity and normals.

`Depth`, `Disparity` and `Normals` are torchvision tv_tensors, so that any torchvision.transforms.v2 transform treats them
right or refuses. The camera model: a picture keeps its focal length, and a crop may move its principal point. Then
- a mirror image negates the normals' x, and a mask's classes that know left from right change places;
- a zoom by s shows the scene squeezed along the view: depth is divided by s, and a normal, which is a covector, turns
  to (nx, ny, s nz), renormalized (depth: Eigen et al., arXiv:1406.2283, section 3.4); disparity, as inverse depth, is
  multiplied by s;
- a turn about the optical axis turns the normals' x and y with it and changes neither depth nor disparity;
- a shift changes none of them.
Values that are unknown (0) stay so, and no value is ever a mixture of two pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from compactmtl.config.recipe import AugmentConfig
from compactmtl.data import rotation
from compactmtl.data.base import Sample
from compactmtl.data.seeds import generator
from compactmtl.tasks.base import TargetSpec


class Depth(tv_tensors.TVTensor):  # type: ignore[misc]
    """Depth along the optical axis, float (..., 1, H, W); 0 where unknown."""

    def __new__(cls, data: Tensor) -> Depth:
        return data.as_subclass(cls)


class Disparity(tv_tensors.TVTensor):  # type: ignore[misc]
    """Proportional to inverse depth, float (..., 1, H, W); 0 where unknown."""

    def __new__(cls, data: Tensor) -> Disparity:
        return data.as_subclass(cls)


class Normals(tv_tensors.TVTensor):  # type: ignore[misc]
    """Unit normals in the camera frame (x right, y down, z forward), float (..., 3, H, W); 0 where unknown."""

    def __new__(cls, data: Tensor) -> Normals:
        return data.as_subclass(cls)


def _plain(value: Tensor) -> Tensor:
    return value.as_subclass(Tensor)


@F.register_kernel(F.horizontal_flip, Depth)  # type: ignore[untyped-decorator]
def _flip_depth(depth: Depth) -> Depth:
    return Depth(F.horizontal_flip_image(_plain(depth)))


@F.register_kernel(F.horizontal_flip, Disparity)  # type: ignore[untyped-decorator]
def _flip_disparity(disparity: Disparity) -> Disparity:
    return Disparity(F.horizontal_flip_image(_plain(disparity)))


@F.register_kernel(F.horizontal_flip, Normals)  # type: ignore[untyped-decorator]
def _flip_normals(normals: Normals) -> Normals:
    flipped = F.horizontal_flip_image(_plain(normals))
    return Normals(flipped * flipped.new_tensor([-1.0, 1.0, 1.0]).view(3, 1, 1))


def _register_copying(kind: type[Depth] | type[Disparity] | type[Normals]) -> None:
    """Crop, pad with unknown, and resize by the nearest pixel: nothing of these changes a value."""

    @F.register_kernel(F.crop, kind)  # type: ignore[untyped-decorator]
    def _crop(value: Tensor, top: int, left: int, height: int, width: int) -> Tensor:
        return kind(F.crop_image(_plain(value), top, left, height, width))

    @F.register_kernel(F.pad, kind)  # type: ignore[untyped-decorator]
    def _pad(value: Tensor, padding: list[int], fill: Any = None, padding_mode: str = "constant") -> Tensor:
        return kind(F.pad_image(_plain(value), padding, fill=0, padding_mode="constant"))

    @F.register_kernel(F.resize, kind)  # type: ignore[untyped-decorator]
    def _resize(value: Tensor, size: list[int], **options: Any) -> Tensor:
        options |= {"interpolation": InterpolationMode.NEAREST_EXACT, "antialias": False}
        return kind(F.resize_image(_plain(value), size, **options))


def _register_refusal(kind: type[Depth] | type[Disparity] | type[Normals]) -> None:
    """v2 would pass an unknown type through unchanged; a wrong target is worse than an error."""
    names = ("vertical_flip", "perspective", "elastic", "resized_crop")
    for functional in (getattr(F, name) for name in names):

        @F.register_kernel(functional, kind)  # type: ignore[untyped-decorator]
        def _refuse(value: Tensor, *args: Any, _name: str = functional.__name__, **options: Any) -> Tensor:
            raise TypeError(
                f"{_name} has no exact meaning for {kind.__name__}; use flip, crop, pad or affine"
            )


def _register_rotation(kind: type[Depth] | type[Disparity] | type[Normals]) -> None:
    @F.register_kernel(F.rotate, kind)  # type: ignore[untyped-decorator]
    def _rotate(
        value: Tensor,
        angle: float,
        interpolation: Any = None,
        expand: bool = False,
        center: list[float] | None = None,
        fill: Any = None,
    ) -> Tensor:
        if expand:
            raise TypeError(f"{kind.__name__} keeps its size when it is turned; use expand=False")
        # v2 turns the other way round in rotate than in affine
        turned: Tensor = F.affine(value, -angle, [0.0, 0.0], 1.0, [0.0, 0.0], center=center)
        return turned


for _kind in (Depth, Disparity, Normals):
    _register_copying(_kind)
    _register_rotation(_kind)
    _register_refusal(_kind)


def _sources(count: int, scale: float, move: float, center: float | None) -> Tensor:
    """For each pixel of a zoomed axis the place that it shows, in pixels; the first pixel's center is 0."""
    middle = count / 2 if center is None else center
    places = torch.arange(count, dtype=torch.float64) + 0.5
    return (places - middle - move) / scale + middle - 0.5


def _nearest(value: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """The nearest pixels of (..., H, W) at these places, 0 outside; an axis at a time, as a zoom turns nothing."""
    for axis, places in ((-2, rows), (-1, columns)):
        count = value.shape[axis]
        index = places.round().long()
        value = value.index_select(axis, index.clamp(0, count - 1))
        outside = ((index < 0) | (index >= count)).nonzero().flatten()
        value.index_fill_(axis, outside, 0)
    return value


def _bilinear(image: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """uint8 (..., H, W) at these places, the border repeated outside."""
    value = image.to(torch.float32)
    for axis, places in ((-2, rows), (-1, columns)):
        count = value.shape[axis]
        places = places.clamp(0, count - 1)
        low = places.floor().long()
        share = (places - low).to(torch.float32)
        share = share[:, None] if axis == -2 else share
        near, far = value.index_select(axis, low), value.index_select(axis, (low + 1).clamp_max(count - 1))
        value = torch.lerp(near, far, share)
    return value.round_().to(torch.uint8)


def _moved(
    value: Tensor,
    angle: float,
    translate: list[float],
    scale: float,
    shear: list[float],
    center: list[float] | None,
) -> Tensor:
    """A map's own nearest values where zoom, turn and shift bring them, 0 elsewhere."""
    if any(shear):
        raise TypeError("a sheared picture has no exact depth and normals; zoom, turn and shift only")
    height, width = value.shape[-2:]
    if angle % 360:
        x, y = translate
        about = None if center is None else (center[0], center[1])
        return rotation.nearest(_plain(value), *rotation.places((height, width), angle, scale, (x, y), about))
    rows = _sources(height, scale, translate[1], center[1] if center else None)
    columns = _sources(width, scale, translate[0], center[0] if center else None)
    return _nearest(_plain(value), rows, columns)


@F.register_kernel(F.affine, Depth)  # type: ignore[untyped-decorator]
def _affine_depth(
    depth: Depth,
    angle: float,
    translate: list[float],
    scale: float,
    shear: list[float],
    interpolation: Any = None,
    fill: Any = None,
    center: list[float] | None = None,
) -> Depth:
    return Depth(_moved(depth, angle, translate, scale, shear, center) / scale)


@F.register_kernel(F.affine, Disparity)  # type: ignore[untyped-decorator]
def _affine_disparity(
    disparity: Disparity,
    angle: float,
    translate: list[float],
    scale: float,
    shear: list[float],
    interpolation: Any = None,
    fill: Any = None,
    center: list[float] | None = None,
) -> Disparity:
    return Disparity(_moved(disparity, angle, translate, scale, shear, center) * scale)


@F.register_kernel(F.affine, Normals)  # type: ignore[untyped-decorator]
def _affine_normals(
    normals: Normals,
    angle: float,
    translate: list[float],
    scale: float,
    shear: list[float],
    interpolation: Any = None,
    fill: Any = None,
    center: list[float] | None = None,
) -> Normals:
    moved = _moved(normals, angle, translate, scale, shear, center)
    if angle % 360:
        cosine, sine = rotation.cosine_and_sine(angle)
        x, y, z = moved.unbind(-3)
        moved = torch.stack([cosine * x - sine * y, sine * x + cosine * y, z], dim=-3)
    turned = moved * moved.new_tensor([1.0, 1.0, scale]).view(3, 1, 1)
    length = (turned * turned).sum(-3, keepdim=True).sqrt()  # several times as quick as vector_norm here
    return Normals(turned / length.clamp_min(1e-12))


def zoom(value: Tensor, scale: float, translate: list[float]) -> Tensor:
    """v2's affine with this scale and translation (x, y) in pixels, about ten times as quick.

    An Image is interpolated between pixels; a Mask, Depth, Disparity or Normals takes the nearest one.
    """
    if isinstance(value, (Depth, Disparity, Normals)):
        moved: Tensor = F.affine(value, 0.0, translate, scale, [0.0, 0.0])
        return moved
    height, width = value.shape[-2:]
    rows, columns = _sources(height, scale, translate[1], None), _sources(width, scale, translate[0], None)
    resample = _bilinear if isinstance(value, tv_tensors.Image) else _nearest
    wrapped: Tensor = tv_tensors.wrap(resample(_plain(value), rows, columns), like=value)
    return wrapped


def turn(value: Tensor, angle: float, fill: float | None = 0) -> Tensor:
    """A map or image turned clockwise by `angle` degrees about its middle.

    An Image is interpolated and its border repeated; a Mask takes the nearest pixel, and `fill` outside, or its border
    where that is none; of Depth, Disparity and Normals the outside is unknown.
    """
    if isinstance(value, (Depth, Disparity, Normals)):
        turned: Tensor = F.affine(value, angle, [0.0, 0.0], 1.0, [0.0, 0.0])
        return turned
    height, width = value.shape[-2:]
    where = rotation.places((height, width), angle)
    plain = _plain(value)
    is_image = isinstance(value, tv_tensors.Image)
    moved = rotation.bilinear(plain, *where) if is_image else rotation.nearest(plain, *where, fill)
    wrapped: Tensor = tv_tensors.wrap(moved, like=value)
    return wrapped


_IMAGE = ""  # the image among the maps; no target has this name
_INSIDE = " inside"  # where the image is and no padding; no target has this name either
_OTHER = " input "  # and nothing begins so: a picture beside the image, by its name


@dataclass(frozen=True)
class Draw:
    """The random choices for one sample in one epoch.

    `place` puts the zoomed window between the edges and `shift` moves the picture by up to that share of the range,
    both (x, y) in [-1, 1]; `color` are the factors of brightness, contrast and saturation; `angle` is in degrees,
    clockwise.
    """

    flip: bool
    zoom: float
    place: tuple[float, float]
    shift: tuple[float, float]
    color: tuple[float, float, float]
    angle: float = 0.0


def draw(config: AugmentConfig, seed: int, epoch: int, index: int) -> Draw:
    """Choices that depend on these numbers alone, and each on its own share of them.

    Turning one transform on or off leaves the others as they were.
    """
    u = generator("augment", seed, epoch, index).random(10).tolist()
    low, high = config.zoom
    return Draw(
        flip=config.flip and u[0] < 0.5,
        zoom=low + (high - low) * u[1],
        place=(2 * u[2] - 1, 2 * u[3] - 1),
        shift=(2 * u[4] - 1, 2 * u[5] - 1),
        color=(
            1 + config.color * (2 * u[6] - 1),
            1 + config.color * (2 * u[7] - 1),
            1 + config.color * (2 * u[8] - 1),
        ),
        angle=config.rotate * (2 * u[9] - 1),
    )


def augment(sample: Sample, specs: Mapping[str, TargetSpec], config: AugmentConfig, choices: Draw) -> Sample:
    """The sample zoomed, turned, shifted and mirrored; color is for `jitter`, on the whole batch.

    A turn and a shift repeat the image's border; targets are unknown there (ignore index, 0), but a mask without an
    ignore index repeats its border like the image. Padding moves with the image, and so do pictures beside it; vectors stay
    as they are.
    """
    maps = {_IMAGE: cast(Tensor, tv_tensors.Image(sample["image"]))}
    beside = sample.get("others", {})
    pictures = {_OTHER + name: value for name, value in beside.items() if value.ndim == 3}
    maps |= {key: cast(Tensor, tv_tensors.Image(value)) for key, value in pictures.items()}
    shown = {_IMAGE, _INSIDE, *pictures}  # no targets
    others: dict[str, Tensor] = {}
    if "inside" in sample:
        maps[_INSIDE] = tv_tensors.Mask(sample["inside"][None])
    for name, target in sample["targets"].items():
        kind = specs[name].kind
        if kind == "mask":
            maps[name] = tv_tensors.Mask(target[None])
        elif kind == "instances":
            maps[name] = tv_tensors.Mask(target)
        elif kind == "depth":
            maps[name] = Depth(target)
        elif kind == "disparity":
            maps[name] = Disparity(target)
        elif kind == "normals":
            maps[name] = Normals(target)
        else:
            others[name] = target
    height, width = sample["image"].shape[-2:]
    if choices.zoom != 1.0:
        # Reaches to the border pixels' centers and no further: every pixel shows a part of the image.
        reach = (1 - 1 / choices.zoom) / 2
        translate = [
            -choices.zoom * choices.place[0] * reach * (width - 1),
            -choices.zoom * choices.place[1] * reach * (height - 1),
        ]
        maps = {name: zoom(value, choices.zoom, translate) for name, value in maps.items()}
    if choices.angle:
        for name, value in maps.items():
            fill = None if name in shown else _unknown(specs[name])
            maps[name] = turn(value, choices.angle, fill)
    if config.shift:
        span = config.shift
        left = span + round(choices.shift[0] * span)
        top = span + round(choices.shift[1] * span)
        for name, value in maps.items():
            of_image = name in shown
            ignore = None if of_image else _unknown(specs[name])
            edge = of_image or (specs[name].kind == "mask" and ignore is None)
            padded = F.pad(value, [span] * 4, fill=ignore or 0, padding_mode="edge" if edge else "constant")
            maps[name] = F.crop(padded, top, left, height, width)
    if choices.flip:
        maps = {name: F.horizontal_flip(value) for name, value in maps.items()}
        for name, value in maps.items():
            if name not in shown and specs[name].mirrored:
                maps[name] = _sides_changed(value, specs[name])
    image = _plain(maps.pop(_IMAGE))
    inside = maps.pop(_INSIDE, None)
    inputs = {name: _plain(maps.pop(_OTHER + name, value)) for name, value in beside.items()}
    for name, value in maps.items():
        plain = _plain(value)
        others[name] = plain[0] if specs[name].kind == "mask" else plain
    moved: Sample = {"image": image, "targets": {name: others[name] for name in sample["targets"]}}
    if beside:
        moved["others"] = inputs
    if inside is not None:
        moved["inside"] = _plain(inside)[0]
    return moved


def _sides_changed(mask: Tensor, spec: TargetSpec) -> Tensor:
    """A mask in which each of the classes `spec.mirrored` is the other of its pair."""
    changed = mask.clone()
    for pair in spec.mirrored:
        one, other = (spec.classes.index(name) for name in pair)
        changed[mask == one] = other
        changed[mask == other] = one
    return changed


def _unknown(spec: TargetSpec) -> int | None:
    """What a target holds where nothing is known, or None for a mask in which every pixel is known."""
    # Of instances: neither an instance nor a place without one (and no class of a crowd).
    return -1 if spec.kind == "instances" else spec.ignore_index
