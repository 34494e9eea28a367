"""The `scenes` data set: rendered rooms with exact segmentation, depth and normals; needs no download."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from compactmtl.config import validate_options
from compactmtl.config.recipe import DataConfig, Frozen, Share
from compactmtl.data import scenes_layout, scenes_raycast, scenes_render
from compactmtl.data.base import Split, image_fit
from compactmtl.data.cache import Arrays, content_key, user_cache
from compactmtl.data.files import numbers_of, source_of
from compactmtl.data.seeds import generator
from compactmtl.data.stored import StoredDataset
from compactmtl.errors import ConfigError
from compactmtl.tasks.base import TargetSpec

DESCRIPTION = "rendered rooms with segmentation, depth and normals; nothing to download"
DEFAULT_SIZE = (96, 128)
DEFAULT_ROOT = None
SPLITS: tuple[Split, ...] = ("train", "val", "test")

SPECS: Mapping[str, TargetSpec] = {
    # Every pixel is known; the index that means "unknown" is for the border that a random shift lays bare.
    "segmentation": TargetSpec("mask", classes=scenes_layout.CLASSES, ignore_index=255),
    # Over 200 training rooms, for a head that starts at the mean.
    "depth": TargetSpec("depth", unit="m", mean=3.6, std=1.4),
    "normals": TargetSpec("normals"),
}


class Options(Frozen):
    """`data.options` of scenes."""

    train: Annotated[int, Field(ge=1)] = Field(600, description="rooms in the training split")
    val: Annotated[int, Field(ge=1)] = Field(120, description="rooms in the validation split")
    test: Annotated[int, Field(ge=1)] = Field(120, description="rooms in the test split")
    seed: Annotated[int, Field(ge=0)] = Field(0, description="another seed is another data set")
    noise: Share = Field(0.015, description="sensor noise at mid gray, as a share of full scale")


class Scenes(StoredDataset):
    """Rooms of one split. A room is decided by (seed, split, number) and is the same at any picture size.

    Targets: `segmentation` (11 classes), `depth` (metres along the optical axis) and `normals` (camera frame),
    each of the ray through the pixel's center; colors are averaged over the pixel at edges.
    """

    def __init__(self, config: DataConfig, split: Split) -> None:
        options = validate_options(Options, config.options, "data.options")
        if config.root is not None:
            raise ConfigError("data.root: scenes are rendered and have no folder", "leave data.root out")
        self._options, self._fit = options, image_fit(config)
        self._source = source = source_of(split)
        count = {"train": options.train, "val": options.val, "test": options.test}[source]
        self._numbers = numbers_of([f"scene-{number}" for number in range(count)], config.holdout, split)

        def cached() -> Path:
            key = content_key(_code(), options.seed, options.noise, repr(self._fit), source, self._numbers)
            return user_cache() / "scenes" / key

        # A room is rendered when it is asked for: none can be damaged.
        super().__init__(config, split, SPECS, len(self._numbers), cached, fill=False)

    def identifier(self, index: int) -> str:
        """Such as scenes-0-train-00012: seed, split and number."""
        return f"scenes-{self._options.seed}-{self._source}-{self._numbers[index]:05d}"

    def room(self, index: int) -> scenes_layout.Room:
        """The scene itself, as the renderer takes it."""
        return scenes_layout.random_room(self._generator(index, 0))

    def _generator(self, index: int, use: int) -> np.random.Generator:
        split = SPLITS.index(self._source)
        return generator("scenes", self._options.seed, split, self._numbers[index], use)

    def _make(self, index: int) -> Arrays:
        room = self.room(index)
        frame = scenes_render.render(room, *self._fit.size)
        picture = scenes_render.develop(frame, room.exposure, self._options.noise, self._generator(index, 1))
        return {
            "image": self._fit.rgb(picture, "scenes"),
            "segmentation": frame.label,
            "depth": frame.depth[None],
            "normals": frame.normal,
        }


def load(config: DataConfig, split: Split) -> Scenes:
    """The rooms of a split; any split of SPLITS, and `holdout`."""
    return Scenes(config, split)


def problems(config: DataConfig) -> tuple[list[str], list[str]]:
    """Nothing can be missing: (problems, notes) of generated data are empty."""
    validate_options(Options, config.options, "data.options")
    return [], []


def _code() -> str:
    """A hash of the renderer, so that a cache on disk never outlives a change of it."""
    digest = hashlib.sha256()
    for module in (scenes_layout, scenes_raycast, scenes_render):
        digest.update(Path(str(module.__file__)).read_bytes())
    return digest.hexdigest()
