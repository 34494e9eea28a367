"""A split whose samples are made once and kept as `data.cache` says: what data sets of files, of one's own and of
rendered rooms share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from compactmtl.config.recipe import DataConfig
from compactmtl.data.base import Sample, Split
from compactmtl.data.cache import Arrays, Layout, open_store
from compactmtl.tasks.base import TargetSpec


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


class StoredDataset(ABC):
    """Samples of one split, stored as arrays: the image uint8 (3, H, W) and each target of `specs` at `config.size`.

    A subclass sets what its `_make` needs before it calls `__init__`. `folder` gives the folder of a disk cache, and is
    asked for one alone; its name must change with whatever decides the arrays. `fill` makes every sample of a memory
    cache at once, so that a damaged one fails here and not in the middle of training.
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
        self.specs = specs
        self._count = count
        layouts = {"image": Layout((3, *config.size), "uint8")}
        layouts |= {name: layout(spec, config.size) for name, spec in specs.items()}
        home = folder() if config.cache == "disk" else Path()
        self._store = open_store(config.cache, count, layouts, self._make, home)
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
        return {"image": torch.from_numpy(arrays["image"]), "targets": targets}

    def labeled(self, target: str) -> NDArray[np.bool_] | None:
        """Which samples have a label of a target: bool (N,), all of them; None where a subclass cannot say."""
        return np.ones(self._count, np.bool_)

    @abstractmethod
    def identifier(self, index: int) -> str:
        """What a sample is called, such as its image file's path."""

    @abstractmethod
    def _make(self, index: int) -> Arrays:
        """The arrays of one sample. Raises DataError naming a file that is damaged."""
