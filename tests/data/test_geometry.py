"""Where every transform brings every kind of target: masks, instances, depth, disparity, normals and boxes.

A mask that holds each pixel's own number goes along, so that one property covers all transforms at once: a pixel of a
target shows what its number's pixel held before, turned or scaled as the geometry says, or nothing known.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision import tv_tensors
from torchvision.ops import masks_to_boxes
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from compactmtl.config.recipe import AugmentConfig
from compactmtl.data.base import Sample
from compactmtl.data.scenes_layout import Camera, random_room
from compactmtl.data.scenes_render import render
from compactmtl.data.transforms import Depth, Disparity, Draw, Normals, augment, turn, zoom
from compactmtl.tasks.base import TargetSpec

IGNORE = 255
SPECS = {
    "number": TargetSpec("mask", ignore_index=-1),
    "mask": TargetSpec("mask", classes=("a", "b", "c"), ignore_index=IGNORE),
    "whole": TargetSpec("mask", classes=("a", "b", "c")),
    "depth": TargetSpec("depth", unit="m"),
    "disparity": TargetSpec("disparity"),
    "normals": TargetSpec("normals"),
    "instances": TargetSpec("instances", classes=("a", "b")),
    "label": TargetSpec("class", classes=("a", "b")),
}
STILL: dict[str, Any] = {
    "flip": False,
    "zoom": 1.0,
    "place": (0.0, 0.0),
    "shift": (0.0, 0.0),
    "color": (1.0, 1.0, 1.0),
}
share = st.floats(-1, 1)


def sample(height: int = 11, width: int = 14, seed: int = 0) -> Sample:
    """Random targets, each unknown in places, and an image whose three channels are the pixel's number."""
    rng = torch.Generator().manual_seed(seed)
    number = torch.arange(height * width).view(height, width)

    def holes() -> Tensor:
        return torch.rand(height, width, generator=rng) < 0.2

    mask = torch.randint(0, 3, (height, width), generator=rng)
    depth = 0.5 + torch.rand(1, height, width, generator=rng)
    normals = torch.nn.functional.normalize(torch.randn(3, height, width, generator=rng), dim=0)
    return {
        "image": number.to(torch.uint8).expand(3, -1, -1).clone(),
        "targets": {
            "number": number,
            "mask": mask.masked_fill(holes(), IGNORE),
            "whole": mask,
            "depth": depth.masked_fill(holes(), 0),
            "disparity": (1 / depth).masked_fill(holes(), 0),
            "normals": normals.masked_fill(holes(), 0),
            "instances": torch.stack([torch.randint(-1, 3, (height, width), generator=rng), mask % 2]),
            "label": torch.tensor(1),
        },
    }


def run(one: Sample, span: int = 0, **choices: Any) -> dict[str, Tensor]:
    return augment(one, SPECS, AugmentConfig(shift=span), Draw(**(STILL | choices)))["targets"]


@settings(max_examples=40, deadline=None)
@given(
    scale=st.floats(1, 3),
    place=st.tuples(share, share),
    shift=st.tuples(share, share),
    span=st.integers(0, 4),
    angle=st.one_of(st.just(0.0), st.floats(-180, 180)),
    flip=st.booleans(),
)
def test_every_target_shows_what_its_pixel_held(
    scale: float,
    place: tuple[float, float],
    shift: tuple[float, float],
    span: int,
    angle: float,
    flip: bool,
) -> None:
    one = sample()
    got = run(one, span, zoom=scale, place=place, shift=shift, angle=angle, flip=flip)
    before = one["targets"]
    seen = got["number"] >= 0
    origin = got["number"].clamp(min=0)

    def moved(name: str, outside: float) -> Tensor:
        value = before[name].flatten(-2)[..., origin]
        return torch.where(seen, value, torch.tensor(outside, dtype=value.dtype))

    assert torch.equal(got["mask"], moved("mask", IGNORE))
    assert torch.equal(got["instances"], moved("instances", -1))
    assert torch.equal(got["whole"][seen], moved("whole", 0)[seen])
    assert got["whole"].max() < 3  # a mask without an ignore index never gets one
    # one rounding of float32
    torch.testing.assert_close(got["depth"], moved("depth", 0) / scale, rtol=1e-6, atol=0)
    torch.testing.assert_close(got["disparity"], moved("disparity", 0) * scale, rtol=1e-6, atol=0)
    assert torch.equal(got["label"], before["label"])
    x, y, z = moved("normals", 0).double()
    cosine, sine = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    expected = torch.stack([cosine * x - sine * y, sine * x + cosine * y, scale * z])
    expected = torch.nn.functional.normalize(expected, dim=0)
    expected[0] *= -1 if flip else 1
    # a few roundings of float32
    torch.testing.assert_close(got["normals"].double(), expected, rtol=0, atol=1e-6)
    assert torch.equal((got["normals"] == 0).all(0), (moved("normals", 0) == 0).all(0))


@settings(max_examples=40, deadline=None)
@given(angle=st.floats(-180, 180), scale=st.floats(1, 2))
def test_a_pixel_goes_where_the_matrix_says(angle: float, scale: float) -> None:
    """Clockwise, as x is to the right and y down: (x, y) from the middle to s R (x, y), within half a source pixel."""
    height, width = 21, 26
    number = torch.arange(height * width).view(1, height, width)
    got = turn(zoom(tv_tensors.Mask(number), scale, [0.0, 0.0]), angle, -1)[0]
    rows, columns = (got >= 0).nonzero().T.numpy()
    origin = got[rows, columns].numpy()
    x, y = origin % width + 0.5 - width / 2, origin // width + 0.5 - height / 2
    cosine, sine = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    to_x, to_y = scale * (cosine * x - sine * y), scale * (sine * x + cosine * y)
    # rounding to a pixel twice, once before the zoom and once after it: half a pixel each, along both axes
    reach = math.sqrt(0.5) * (1 + scale) + 1e-6
    distance = np.hypot(to_x - (columns + 0.5 - width / 2), to_y - (rows + 0.5 - height / 2))
    assert distance.max() <= reach


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_a_quarter_turn_is_what_a_rolled_camera_sees(seed: int, quarters: int) -> None:
    room = random_room(np.random.default_rng(seed))
    angle = 90 * quarters
    cosine, sine = round(math.cos(math.radians(angle))), round(math.sin(math.radians(angle)))
    roll = np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]], np.float32)
    # The picture turns clockwise where the camera turns the other way.
    rolled = Camera(room.camera.position, room.camera.axes @ roll.T)
    plain, want = render(room, 24, 24), render(room, 24, 24, rolled)
    depth = turn(Depth(torch.from_numpy(plain.depth[None])), angle)[0].numpy()
    normals = turn(Normals(torch.from_numpy(plain.normal)), angle).numpy()
    same = np.abs(depth / want.depth - 1) < 1e-4
    assert same.mean() > 0.99  # rounding may turn a ray at an edge
    assert (np.abs(normals - want.normal).max(0)[same] < 1e-3).mean() > 0.99


@settings(max_examples=40, deadline=None)
@given(
    st.tuples(share, share, st.floats(0.2, 1)),
    st.floats(0.5, 5),
    st.floats(1, 3),
    st.floats(-180, 180),
)
def test_a_turned_plane_is_a_plane_with_the_turned_normal(
    normal: tuple[float, float, float], distance: float, scale: float, angle: float
) -> None:
    height, width, focal = 12, 12, 60.0
    n = np.array(normal) / np.linalg.norm(normal)
    x, y = (np.arange(width) + 0.5 - width / 2) / focal, (np.arange(height) + 0.5 - height / 2) / focal
    rays = np.stack([*np.meshgrid(x, y), np.ones((height, width))])
    depth = distance / np.einsum("c,chw->hw", n, rays)
    options: Any = (angle, [0.0, 0.0], scale, [0.0, 0.0])
    got = F.affine(Depth(torch.from_numpy(depth)[None]), *options)[0].numpy()
    inverse = F.affine(Disparity(torch.from_numpy(1 / depth)[None]), *options)[0].numpy()
    field = torch.from_numpy(np.broadcast_to(n[:, None, None], rays.shape).copy())
    turned = F.affine(Normals(field), *options).numpy()
    # Where each pixel's point lies sideways in the room, carried by the same kernel, and turned as the camera is.
    side = F.affine(Disparity(torch.from_numpy((depth * rays)[:2])), *options).numpy() / scale
    cosine, sine = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    side_x, side_y = cosine * side[0] - sine * side[1], sine * side[0] + cosine * side[1]
    visible = got != 0
    offset = turned[0] * side_x + turned[1] * side_y + turned[2] * got
    np.testing.assert_allclose(offset[visible], distance / np.linalg.norm(n * [1, 1, scale]), rtol=1e-6)
    np.testing.assert_allclose((got * inverse)[visible], 1, rtol=1e-6)


def test_rotate_and_affine_of_v2_turn_as_they_turn_masks() -> None:
    one = sample(16, 16)["targets"]
    for angle in (90, -90, 180, 37):
        mask = F.rotate(tv_tensors.Mask(one["whole"][None] + 1), angle)
        depth = F.rotate(Depth((one["whole"][None] + 1).float()), angle)
        agree = (mask == depth).float().mean()
        # pixels half way between two may differ
        assert agree == 1 if angle % 90 == 0 else agree > 0.97
        again = F.affine(tv_tensors.Mask(one["whole"][None] + 1), -angle, [0.0, 0.0], 1.0, [0.0, 0.0])
        assert (again == turn(tv_tensors.Mask(one["whole"][None] + 1), -angle)).float().mean() > 0.97
    turned = v2.RandomRotation((30, 30))(Normals(one["normals"]))
    assert isinstance(turned, Normals)


def test_the_image_turns_with_its_targets_and_repeats_its_border() -> None:
    one = sample(12, 12)
    got = augment(one, SPECS, AugmentConfig(), Draw(**(STILL | {"angle": 90.0})))
    assert torch.equal(got["image"][0].long(), got["targets"]["number"])
    assert torch.equal(got["targets"]["number"], one["targets"]["number"].rot90(-1))
    ramp = (10 * torch.arange(16)).to(torch.uint8).expand(3, 16, 16).clone()
    diagonal = turn(tv_tensors.Image(ramp), 45.0)
    assert diagonal.dtype == torch.uint8
    # the ramp rises along the turned x axis, by 10 a pixel, until its border
    x, y = torch.meshgrid(torch.arange(16) - 7.5, torch.arange(16) - 7.5, indexing="xy")
    expected = (10 * (math.sqrt(0.5) * (x + y) + 7.5)).clamp(0, 150)
    assert (diagonal[0] - expected).abs().max() <= 0.5 + 1e-4  # rounded to a whole level


def boxes_of(number: Tensor) -> Tensor:
    """The box (x1, y1, x2, y2) of each value 1 and 2 of an instance map (H, W), x2 and y2 just outside."""
    masks = torch.stack([number == 1, number == 2])
    boxes: Tensor = masks_to_boxes(masks) + torch.tensor([0, 0, 1, 1])
    return boxes


@pytest.mark.parametrize(
    "name", ["flip", "crop", "pad", "resize", "zoom", "shift", "quarter turn", "half turn"]
)
def test_a_box_stays_the_box_of_its_mask(name: str) -> None:
    size = (24, 24)
    number = torch.zeros(size, dtype=torch.int64)
    number[9:13, 8:15] = 1
    number[10:12, 12:16] = 2
    mask = tv_tensors.Mask(number[None])
    boxes = tv_tensors.BoundingBoxes(boxes_of(number), format="XYXY", canvas_size=size)
    still: Any = ([0.0, 0.0], 1.0, [0.0, 0.0])
    transforms: dict[str, Any] = {
        "flip": F.horizontal_flip,
        "crop": lambda value: F.crop(value, 3, 5, 16, 17),
        "pad": lambda value: F.pad(value, [2, 3, 4, 5]),
        "resize": lambda value: F.resize(value, [48, 72]),
        "zoom": lambda value: F.affine(value, 0.0, [2.0, -4.0], 2.0, [0.0, 0.0]),
        "shift": lambda value: F.affine(value, 0.0, [3.0, -2.0], 1.0, [0.0, 0.0]),
        "quarter turn": lambda value: F.affine(value, 90.0, *still),
        "half turn": lambda value: F.affine(value, 180.0, *still),
    }
    moved = transforms[name](mask)
    got = zoom(mask, 2.0, [2.0, -4.0]) if name == "zoom" else moved
    if "turn" in name:
        got = turn(mask, 90.0 if name == "quarter turn" else 180.0)
    # whole-numbered moves, up to float32
    torch.testing.assert_close(
        boxes_of(got[0]).float(), transforms[name](boxes).as_subclass(Tensor).float(), rtol=0, atol=1e-3
    )


@settings(max_examples=30, deadline=None)
@given(angle=st.floats(-180, 180))
def test_a_turned_mask_lies_within_its_turned_box(angle: float) -> None:
    number = torch.zeros(32, 32, dtype=torch.int64)
    number[12:17, 10:20] = 1
    number[18:22, 14:17] = 2
    boxes = tv_tensors.BoundingBoxes(boxes_of(number), format="XYXY", canvas_size=(32, 32))
    turned = F.affine(boxes, angle, [0.0, 0.0], 1.0, [0.0, 0.0]).as_subclass(Tensor)
    got = boxes_of(turn(tv_tensors.Mask(number[None]), angle)[0])
    # half a pixel to the nearest one, at each side
    low, high = turned[:, :2] - 0.75, turned[:, 2:] + 0.75
    assert (got[:, :2] >= low).all()
    assert (got[:, 2:] <= high).all()
    # and it fills the box but for the rounding of its pixels at the corners
    assert (got[:, 2:] - got[:, :2] >= turned[:, 2:] - turned[:, :2] - 2.5).all()
