"""Instance maps move with the picture: mirrored, zoomed and shifted by whole pixels, unknown where nothing was seen."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from compactmtl.config.recipe import AugmentConfig
from compactmtl.data.base import Sample
from compactmtl.data.transforms import Draw, augment
from compactmtl.tasks import TargetSpec

SPECS = {"instances": TargetSpec("instances", classes=("a", "b"))}
STILL = {"flip": False, "zoom": 1.0, "place": (0.0, 0.0), "shift": (0.0, 0.0), "color": (1.0, 1.0, 1.0)}


def moved(instances: torch.Tensor, config: AugmentConfig, **choices: object) -> Sample:
    gray = (instances[0] * 20 + 40).to(torch.uint8)
    sample: Sample = {"image": gray.expand(3, -1, -1), "targets": {"instances": instances}}
    return augment(sample, SPECS, config, Draw(**{**STILL, **choices}))  # type: ignore[arg-type]


def scene() -> torch.Tensor:
    instances = torch.zeros(2, 8, 12, dtype=torch.int64)
    instances[0, 1:4, 2:5], instances[1, 1:4, 2:5] = 1, 1
    instances[0, 5:7, 6:11], instances[1, 5:7, 6:11] = 2, 0
    instances[0, 7, 0] = -1
    return instances


def test_a_mirror_image_has_its_instances_mirrored() -> None:
    flipped = moved(scene(), AugmentConfig(flip=True), flip=True)["targets"]["instances"]
    assert torch.equal(flipped, scene().flip(-1))


@given(across=st.integers(-3, 3), down=st.integers(-3, 3))
def test_a_shift_moves_them_and_leaves_the_border_unknown(across: int, down: int) -> None:
    result = moved(scene(), AugmentConfig(shift=3), shift=(across / 3, down / 3))
    expected = torch.full((2, 8 + 6, 12 + 6), -1)
    expected[:, 3:11, 3:15] = scene()
    expected = expected[:, 3 + down : 11 + down, 3 + across : 15 + across]
    assert torch.equal(result["targets"]["instances"], expected)


def test_a_doubled_picture_shows_each_pixel_of_its_middle_four_times() -> None:
    zoomed = moved(scene(), AugmentConfig(zoom=(1.0, 2.0)), zoom=2.0)["targets"]["instances"]
    middle = scene()[:, 2:6, 3:9]
    assert torch.equal(zoomed, middle.repeat_interleave(2, 1).repeat_interleave(2, 2))


@given(scale=st.floats(1.0, 3.0), x=st.floats(-1, 1), y=st.floats(-1, 1))
def test_number_and_class_stay_together_under_any_zoom(scale: float, x: float, y: float) -> None:
    zoomed = moved(scene(), AugmentConfig(zoom=(1.0, 3.0)), zoom=scale, place=(x, y))["targets"]["instances"]
    pairs = {tuple(pair) for pair in zoomed.flatten(1).T.tolist()}
    assert pairs <= {(0, 0), (1, 1), (2, 0), (-1, 0)}


def test_a_turned_picture_has_its_instances_turned_and_its_corners_unknown() -> None:
    instances = torch.zeros(2, 9, 9, dtype=torch.int64)
    instances[0, 1:4, 2:5], instances[1, 1:4, 2:5] = 1, 1
    quarter = moved(instances, AugmentConfig(rotate=90), angle=90.0)["targets"]["instances"]
    assert torch.equal(quarter, instances.rot90(-1, (-2, -1)))  # clockwise
    eighth = moved(instances, AugmentConfig(rotate=45), angle=45.0)["targets"]["instances"]
    assert eighth[:, 0, 0].tolist() == [-1, -1] and eighth[:, 4, 4].tolist() == [0, 0]
