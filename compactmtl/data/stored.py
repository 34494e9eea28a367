"""A split whose samples are made once and kept as `data.cache` says: what data sets of files, of one's own and of
rendered rooms share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from compactmtl.config.inputs import InputConfig
from compactmtl.config.recipe import DataConfig
from compactmtl.data.base import Sample, Split
from compactmtl.data.cache import Arrays, Layout, open_store
from compactmtl.data.fit import PADDED
from compactmtl.data.unreadable import skips, with_mend
from compactmtl.errors import ConfigError, DataError
from compactmtl.tasks.base import TargetSpec
from compactmtl.tasks.placement import Placement, Size


def layout(spec: TargetSpec, size: tuple[int, int]) -> Layout:
    """How a target of one sample is stored."""
    match spec.kind:
        case "mask":
            return Layout(size, "uint8")
        case "depth" | "disparity":
            return Layout((1, *size), "float32")
        case "normals":
            return Layout((3, *size), "float32")
        case "instances":
            return Layout((2, *size), "int16")
        case "class":
            return Layout((), "int64")
        case "multilabel":
            return Layout((len(spec.classes),), "float32")
        case "scalar":
            return Layout((), "float32")


def input_layout(one: InputConfig, size: Size) -> Layout:
    """How an input of one sample is stored."""
    return Layout((one.channels, *size), "uint8") if one.is_picture else Layout((one.channels,), "float32")


def stored_as(name: str) -> str:
    """The array of a sample that holds an input beside the first picture; no target has this name."""
    return f"input {name}"


OWN_SIZE = "own size"  # the array of a sample that holds its upright image's height and width


def fitted_specs(specs: Mapping[str, TargetSpec], config: DataConfig) -> dict[str, TargetSpec]:
    """The specifications with an ignore index in each mask, where `data.resize` can leave pixels without a label.

    Raises ConfigError for a mask whose classes leave no value for it.
    """
    if config.resize == "stretch":
        return dict(specs)
    fitted = {}
    for name, spec in specs.items():
        if spec.kind == "mask" and spec.ignore_index is None:
            if len(spec.classes) > PADDED:
                raise ConfigError(
                    f"data.resize: target {name} has {len(spec.classes)} classes, which leave no value for padding",
                    "use data.resize=stretch, or name an ignore_index",
                )
            spec = replace(spec, ignore_index=PADDED)
        fitted[name] = spec
    return fitted


class StoredDataset(ABC):
    """Samples of one split, stored as arrays: the image uint8 (C, H, W) and each target of `specs` at `config.size`.

    Each further input of `config.inputs` is an array, too, named by `stored_as`.

    Where `data.resize` keeps the image's shape, `_make` also gives `OWN_SIZE`, unless every image fills the picture.

    A subclass sets what its `_make` needs before it calls `__init__`. `folder` gives the folder of a disk cache, and is
    asked for one alone; its name must change with whatever decides the arrays. `fill` makes every sample of a memory
    cache at once, so that a damaged one fails here and not in the middle of training, unless `data.on_error` says to skip it.
    """

    def __init__(
        self,
        config: DataConfig,
        split: Split,
        specs: Mapping[str, TargetSpec],
        count: int,
        folder: Callable[[], Path],
        *,
        fill: bool = True,
    ) -> None:
        self.split: str = split
        self.specs: Mapping[str, TargetSpec] = fitted_specs(specs, config)
        self._count = count
        self._size, self._resize, self._config = config.size, config.resize, config
        layouts = {"image": Layout((config.picture.channels, *config.size), "uint8")}
        self._others = tuple(config.others)
        layouts |= {stored_as(name): input_layout(one, config.size) for name, one in config.others.items()}
        if config.resize != "stretch":
            layouts[OWN_SIZE] = Layout((2,), "int32")
        layouts |= {name: layout(spec, config.size) for name, spec in specs.items()}
        home = folder() if config.cache == "disk" else Path()
        self._store = open_store(config.cache, count, layouts, self._made, home, skip=skips(config, split))
        if fill and config.cache == "memory":
            self._store.fill()

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Sample:
        arrays = self._store.read(index)
        targets = {}
        for name, spec in self.specs.items():
            value = torch.from_numpy(np.asarray(arrays[name]))
            targets[name] = value.long() if spec.kind in ("mask", "class", "instances") else value
        sample: Sample = {"image": torch.from_numpy(arrays["image"]), "targets": targets}
        if self._others:
            # a copy where the array may not be written, as of a file that is mapped: torch warns of such
            others = {name: np.require(arrays[stored_as(name)], requirements="W") for name in self._others}
            sample["others"] = {name: torch.from_numpy(value) for name, value in others.items()}
        if OWN_SIZE in arrays:
            height, width = arrays[OWN_SIZE].tolist()
            place = Placement.of(self._resize, (height, width), self._size)
            if not place.whole:
                sample["own_size"] = (height, width)
                sample["inside"] = torch.from_numpy(place.inside())
        return sample

    def labeled(self, target: str) -> NDArray[np.bool_] | None:
        """Which samples have a label of a target: bool (N,), all of them; None where a subclass cannot say."""
        return np.ones(self._count, np.bool_)

    def _made(self, index: int) -> Arrays:
        """The arrays of one sample as they are stored."""
        try:
            arrays = self._make(index)
        except DataError as error:
            raise with_mend(error, self._config, self.split) from error
        size = arrays.pop(OWN_SIZE, np.array(self._size, np.int32))
        return arrays if self._resize == "stretch" else {**arrays, OWN_SIZE: size}

    @abstractmethod
    def identifier(self, index: int) -> str:
        """What a sample is called, such as its image file's path."""

    @abstractmethod
    def _make(self, index: int) -> Arrays:
        """The arrays of one sample. Raises DataError naming a file that is damaged."""


def own_size(image: Size) -> Arrays:
    """What `_make` adds of an upright image of this height and width."""
    return {OWN_SIZE: np.array(image, np.int32)}
