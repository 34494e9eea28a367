"""The geometry of joint transforms, against the ray caster, against analytic planes, and against torchvision."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from compactmtl.config.recipe import AugmentConfig
from compactmtl.data.base import Sample
from compactmtl.data.jitter import jitter
from compactmtl.data.scenes_layout import Camera, random_room
from compactmtl.data.scenes_raycast import cast, pixel_rays
from compactmtl.data.scenes_render import render
from compactmtl.data.transforms import Depth, Disparity, Draw, Normals, augment, draw, zoom
from compactmtl.tasks.base import TargetSpec

SPECS = {
    "mask": TargetSpec("mask", classes=("a", "b", "c"), ignore_index=255),
    "depth": TargetSpec("depth", unit="m"),
    "normals": TargetSpec("normals"),
    "age": TargetSpec("scalar", unit="years"),
}
STILL: dict[str, Any] = {
    "flip": False,
    "zoom": 1.0,
    "place": (0.0, 0.0),
    "shift": (0.0, 0.0),
    "color": (1.0, 1.0, 1.0),
}
share = st.floats(-1, 1)


def room_sample(seed: int = 3, size: tuple[int, int] = (33, 45)) -> tuple[Tensor, Tensor]:
    frame = render(random_room(np.random.default_rng(seed)), *size)
    return torch.from_numpy(frame.depth[None]), torch.from_numpy(frame.normal)


def sample(height: int = 12, width: int = 16) -> Sample:
    rng = torch.Generator().manual_seed(0)
    normals = torch.nn.functional.normalize(torch.randn(3, height, width, generator=rng), dim=0)
    normals[:, :2] = 0
    depth = torch.rand(1, height, width, generator=rng) + 0.5
    depth[:, :, :3] = 0
    mask = torch.randint(0, 3, (height, width), generator=rng)
    mask[3] = 255
    image = torch.randint(0, 256, (3, height, width), generator=rng, dtype=torch.uint8)
    return {
        "image": image,
        "targets": {"mask": mask, "depth": depth, "normals": normals, "age": torch.tensor(31.0)},
    }


def run(one: Sample, span: int = 0, **choices: Any) -> Sample:
    return augment(one, SPECS, AugmentConfig(shift=span), Draw(**(STILL | choices)))


def seen_through(camera: Camera, seed: int, move: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Depth and normals of a room of 33 x 45 pixels whose principal point is moved by (x, y) pixels."""
    room = random_room(np.random.default_rng(seed))
    rays = pixel_rays(33, 45, camera, offset=(-move[0], -move[1]))
    hits = cast(room, camera.position, rays)
    normal = camera.axes.T @ hits.normal
    return hits.t.reshape(33, 45), (normal / np.linalg.norm(normal, axis=0)).reshape(3, 33, 45)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("move", [(0.0, 0.0), (6.0, -3.0)])
def test_a_zoom_is_what_the_camera_sees_of_the_room_squeezed_along_the_view(
    seed: int, move: tuple[float, float]
) -> None:
    scale = 3
    eye = random_room(np.random.default_rng(seed)).camera
    squeezed = Camera(eye.position, eye.axes * np.array([1, 1, scale], np.float32))
    want_depth, want_normals = seen_through(squeezed, seed, move)
    depth, normals = room_sample(seed)
    got_depth = zoom(Depth(depth), scale, list(move)).numpy()[0]
    got_normals = zoom(Normals(normals), scale, list(move)).numpy()
    # Odd sizes and a zoom by 3: every third pixel shows exactly the ray of one pixel of the picture before.
    rows, columns = np.arange(16 % 3, 33, 3), np.arange(22 % 3, 45, 3)
    exact = np.ix_(rows, columns)
    same = np.abs(got_depth[exact] / want_depth[exact] - 1) < 1e-4
    assert same.mean() > 0.99  # rounding may turn a ray at an edge
    difference = np.abs(got_normals - want_normals)[:, rows[:, None], columns[None, :]]
    assert (difference.max(axis=0)[same] < 1e-3).mean() > 0.99


@pytest.mark.parametrize("seed", range(5))
def test_a_flip_is_what_a_mirrored_camera_sees(seed: int) -> None:
    room = random_room(np.random.default_rng(seed))
    mirrored = Camera(room.camera.position, room.camera.axes * np.array([-1, 1, 1], np.float32))
    want, plain = render(room, 24, 32, mirrored), render(room, 24, 32)
    depth = F.horizontal_flip(Depth(torch.from_numpy(plain.depth[None])))
    normals = F.horizontal_flip(Normals(torch.from_numpy(plain.normal)))
    np.testing.assert_allclose(depth[0].numpy(), want.depth, rtol=1e-4)
    np.testing.assert_allclose(normals.numpy(), want.normal, atol=1e-4)


@settings(max_examples=50)
@given(
    st.tuples(share, share, st.floats(0.2, 1)),
    st.floats(0.5, 5),
    st.floats(1, 4),
    st.tuples(share, share),
)
def test_a_zoomed_plane_is_a_plane_with_the_turned_normal(
    normal: tuple[float, float, float], distance: float, scale: float, place: tuple[float, float]
) -> None:
    """Points (X, Y, Z) with n . P = d become (X, Y, Z / s): they must lie on a plane square to the new normal."""
    height, width, focal = 10, 14, 60.0
    n = np.array(normal) / np.linalg.norm(normal)
    x, y = (np.arange(width) + 0.5 - width / 2) / focal, (np.arange(height) + 0.5 - height / 2) / focal
    rays = np.stack([*np.meshgrid(x, y), np.ones((height, width))])
    depth = distance / np.einsum("c,chw->hw", n, rays)
    points = depth * rays
    move = [scale * place[0], scale * place[1]]
    got = zoom(Depth(torch.from_numpy(depth)[None]), scale, move)[0].numpy()
    turned = zoom(
        Normals(torch.from_numpy(np.broadcast_to(n[:, None, None], rays.shape).copy())), scale, move
    ).numpy()
    visible = got != 0
    lateral = torch.from_numpy(points)  # where each pixel's point lies sideways, moved by the same zoom
    sideways = zoom(tv_tensors.Mask(lateral), scale, move).numpy()[:2]
    offset = turned[0] * sideways[0] + turned[1] * sideways[1] + turned[2] * got
    expected = distance / np.linalg.norm(n * [1, 1, scale])
    np.testing.assert_allclose(offset[visible], expected, rtol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(turned, axis=0)[visible], 1, rtol=1e-6)


@settings(max_examples=40)
@given(st.floats(1, 3), st.tuples(share, share), st.tuples(share, share), st.integers(0, 4), st.booleans())
def test_unknown_stays_unknown_and_nothing_is_mixed(
    scale: float, place: tuple[float, float], shift: tuple[float, float], span: int, flip: bool
) -> None:
    one = sample()
    got = run(one, span, zoom=scale, place=place, shift=shift, flip=flip)["targets"]
    before = one["targets"]
    assert set(got["mask"].flatten().tolist()) <= {0, 1, 2, 255}
    known = set((before["depth"][before["depth"] > 0] / scale).tolist())
    assert set(got["depth"][got["depth"] > 0].tolist()) <= known
    length = got["normals"].norm(dim=0)
    assert ((length - 1).abs() < 1e-5).logical_or(length == 0).all()
    assert torch.equal(got["age"], before["age"])
    assert got["mask"].shape == before["mask"].shape


@settings(max_examples=40)
@given(st.floats(1, 3), st.tuples(share, share), st.tuples(share, share), st.integers(0, 4), st.booleans())
def test_disparity_stays_inverse_depth(
    scale: float, place: tuple[float, float], shift: tuple[float, float], span: int, flip: bool
) -> None:
    """Focal length times baseline is a constant of the camera, which no transform of the picture may change."""
    constant = 7.5
    one = sample()
    depth = one["targets"]["depth"]
    disparity = torch.where(depth > 0, constant / depth.clamp_min(1e-6), 0)
    pair: Sample = {"image": one["image"], "targets": {"depth": depth, "disparity": disparity}}
    specs = {"depth": TargetSpec("depth", unit="m"), "disparity": TargetSpec("disparity", unit="px")}
    choices = Draw(**(STILL | {"zoom": scale, "place": place, "shift": shift, "flip": flip}))
    got = augment(pair, specs, AugmentConfig(shift=span), choices)["targets"]
    known = got["depth"] > 0
    assert torch.equal(got["disparity"] > 0, known)
    product = got["depth"][known] * got["disparity"][known]
    torch.testing.assert_close(product, torch.full_like(product, constant))


@pytest.mark.parametrize("scale", [1.5, 2.0])
def test_a_zoomed_pair_of_pictures_has_the_disparity_of_the_zoomed_left_one(scale: float) -> None:
    """A point at columns (x, x - d) of a stereo pair is at (s x, s x - s d) of the pair zoomed by s."""
    width = 16
    left = torch.arange(width, dtype=torch.float64)
    disparity = 0.25 * left + 1  # a slanted plane: where each left pixel is seen in the right picture
    got = zoom(Disparity(disparity.expand(1, 4, width).clone()), scale, [0.0, 0.0])[0, 0]
    place = ((left + 0.5 - width / 2) / scale + width / 2 - 0.5).round()  # the left pixel that is shown
    right = place - disparity[place.long()]
    torch.testing.assert_close(got, scale * (place - right))


def test_image_and_targets_move_together() -> None:
    height, width = 12, 16
    index = torch.arange(height * width).view(height, width)
    one: Sample = {
        "image": index.to(torch.uint8).expand(3, -1, -1).clone(),
        "targets": {"mask": index, "depth": index[None] + 1.0},
    }
    specs = {"mask": TargetSpec("mask", ignore_index=-1), "depth": TargetSpec("depth")}
    got = augment(one, specs, AugmentConfig(shift=3), Draw(**(STILL | {"flip": True, "shift": (-0.7, 0.4)})))
    inside = got["targets"]["mask"] >= 0
    assert torch.equal(got["image"][0][inside].long(), got["targets"]["mask"][inside])
    assert torch.equal(got["targets"]["depth"][0][inside], got["targets"]["mask"][inside] + 1.0)
    assert (got["targets"]["depth"][0][~inside] == 0).all()
    assert int((~inside).sum()) == height * width - (height - 1) * (width - 2)


def test_a_shift_repeats_the_border_of_the_image() -> None:
    one = sample()
    got = run(one, 4, shift=(1.0, 0.0))
    assert torch.equal(got["image"][:, :, :-4], one["image"][:, :, 4:])
    assert torch.equal(got["image"][:, :, -4:], one["image"][:, :, -1:].expand(-1, -1, 4))
    assert (got["targets"]["mask"][:, -4:] == 255).all()


def test_a_flip_exchanges_classes_that_know_left_from_right() -> None:
    one = sample()
    one["targets"] = {"mask": one["targets"]["mask"], "plain": one["targets"]["mask"].clone()}
    plain = TargetSpec("mask", classes=("left", "right", "nose"), ignore_index=255)
    sided = dataclasses.replace(plain, mirrored=(("left", "right"),))
    got = augment(one, {"mask": sided, "plain": plain}, AugmentConfig(), Draw(**(STILL | {"flip": True})))
    there = one["targets"]["mask"].flip(-1)
    assert torch.equal(got["targets"]["plain"], there)
    expected = torch.tensor([1, 0, 2])[there.clamp(max=2)]
    assert torch.equal(got["targets"]["mask"], torch.where(there == 255, there, expected))
    still = augment(one, {"mask": sided, "plain": plain}, AugmentConfig(), Draw(**STILL))
    assert torch.equal(still["targets"]["mask"], one["targets"]["mask"])


def test_a_specification_comes_back_from_json_with_its_pairs() -> None:
    spec = TargetSpec("mask", classes=("a", "b"), mirrored=(("a", "b"),))
    kept = json.loads(json.dumps(dataclasses.asdict(spec)))
    assert TargetSpec(**{**kept, "classes": tuple(kept["classes"])}) == spec


def test_a_mask_without_an_ignore_index_repeats_its_border() -> None:
    one = sample()
    one["targets"] = {"mask": one["targets"]["mask"] % 3}
    specs = {"mask": TargetSpec("mask", classes=("a", "b", "c"))}
    got = augment(one, specs, AugmentConfig(shift=4), Draw(**(STILL | {"shift": (1.0, 0.0)})))
    assert torch.equal(got["targets"]["mask"][:, -4:], one["targets"]["mask"][:, -1:].expand(-1, 4))


@pytest.mark.parametrize("place", [(-1.0, -1.0), (1.0, 1.0), (1.0, -1.0)])
def test_a_zoom_never_shows_what_was_not_seen(place: tuple[float, float]) -> None:
    one = sample()
    one["targets"]["depth"] += 1  # all known
    got = run(one, zoom=1.7, place=place)
    assert (got["targets"]["depth"] > 0).all()
    corner = (0 if place[1] < 0 else -1, 0 if place[0] < 0 else -1)
    assert torch.equal(got["image"][:, corner[0], corner[1]], one["image"][:, corner[0], corner[1]])


@pytest.mark.parametrize("scale", [1.0, 1.3, 2.0])
def test_zoom_is_torchvisions_affine(scale: float) -> None:
    one, move = sample(), [1.0, -2.0]
    image, mask = tv_tensors.Image(one["image"]), tv_tensors.Mask(one["targets"]["mask"][None])
    want = F.affine(image, 0.0, move, scale, [0.0, 0.0], interpolation=v2.InterpolationMode.BILINEAR)
    inside = F.affine(
        torch.full_like(image, 255), 0.0, move, scale, [0.0, 0.0], interpolation=v2.InterpolationMode.BILINEAR
    )
    difference = (zoom(image, scale, move).int() - want.int()).abs()
    assert difference[inside == 255].max() <= 1  # a rounding of one of 255 levels
    want_mask = F.affine(mask, 0.0, move, scale, [0.0, 0.0])
    assert (
        zoom(mask, scale, move) == want_mask
    ).float().mean() > 0.9  # pixels half way between two may differ


def test_any_v2_transform_treats_depth_and_normals_right_or_refuses() -> None:
    one = sample()["targets"]
    flip = v2.Compose([v2.RandomHorizontalFlip(p=1.0)])
    depth, normals = flip(Depth(one["depth"]), Normals(one["normals"]))
    assert isinstance(depth, Depth)
    assert isinstance(normals, Normals)
    assert torch.equal(normals.flip(-1)[0], -one["normals"][0])
    refusing = (
        v2.RandomRotation((10, 20), expand=True),
        v2.RandomVerticalFlip(p=1.0),
        v2.RandomAffine(10, shear=5),
    )
    for refused in refusing:
        with pytest.raises(TypeError):
            refused(Normals(one["normals"]))
        with pytest.raises(TypeError):
            refused(Disparity(one["depth"]))
    disparity = v2.RandomHorizontalFlip(p=1.0)(Disparity(one["depth"]))
    assert isinstance(disparity, Disparity)
    assert torch.equal(disparity.flip(-1), one["depth"])
    larger = v2.Resize((24, 32))(Depth(one["depth"]))
    assert set(larger.flatten().tolist()) == set(one["depth"].flatten().tolist())
    padded = v2.Pad(2, fill=7)(Depth(one["depth"]))
    assert (padded[:, :2] == 0).all()


def test_choices_depend_on_their_numbers_and_not_on_each_other() -> None:
    full = AugmentConfig(flip=True, zoom=(1.0, 1.5), shift=4, color=0.3)
    assert draw(full, 1, 2, 3) == draw(full, 1, 2, 3)
    assert len({draw(full, s, e, i).place for s in (0, 1) for e in (0, 1) for i in (0, 1)}) == 8
    without = draw(full.model_copy(update={"flip": False, "color": 0.0}), 1, 2, 3)
    assert without.zoom == draw(full, 1, 2, 3).zoom
    assert without.shift == draw(full, 1, 2, 3).shift
    assert without.color == (1.0, 1.0, 1.0)
    turned = draw(full.model_copy(update={"rotate": 30.0}), 1, 2, 3)
    assert turned == replace(draw(full, 1, 2, 3), angle=turned.angle)
    assert draw(full, 1, 2, 3).angle == 0


def test_choices_fill_their_ranges() -> None:
    config = AugmentConfig(flip=True, zoom=(1.0, 1.5), shift=4, color=0.3, rotate=20)
    many = [draw(config, 0, 0, i) for i in range(400)]
    assert 0.4 < np.mean([d.flip for d in many]) < 0.6
    zooms = [d.zoom for d in many]
    assert 1.0 <= min(zooms) < 1.02
    assert 1.48 < max(zooms) <= 1.5
    angles = [d.angle for d in many]
    assert -20 <= min(angles) < -19
    assert 19 < max(angles) <= 20
    color = np.array([d.color for d in many])
    assert 0.7 <= color.min() < 0.71
    assert 1.29 < color.max() <= 1.3


def test_jitter_is_torchvisions_brightness_contrast_saturation() -> None:
    images = (
        torch.rand(4, 3, 8, 8) * 100 + 50
    )  # far enough from 0 and 255 that torchvision clips nothing between
    factors = torch.tensor([[1.1, 0.9, 1.2], [0.9, 1.1, 0.8], [1.0, 1.0, 1.0], [1.2, 0.8, 1.0]])
    got = jitter(images, factors)
    for image, (brightness, contrast, saturation), result in zip(images, factors.tolist(), got, strict=True):
        want = F.adjust_brightness(image / 255, brightness)
        want = F.adjust_saturation(F.adjust_contrast(want, contrast), saturation) * 255
        torch.testing.assert_close(
            result, want, rtol=1e-3, atol=0.05
        )  # torchvision's gray weights have 4 digits
    torch.testing.assert_close(got[2], images[2])
