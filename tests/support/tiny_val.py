"""A tiny val split that is drawn, and what the report reads of it."""

from __future__ import annotations

import numpy as np
import torch

from compactmtl.config.recipe import Recipe
from compactmtl.data.base import Batch, Preprocessing, Sample
from compactmtl.errors import DataError
from compactmtl.report.samples import ValSplits
from tests.support.synthetic_runs import SIZE, SPECS


class TinyVal:
    """Eight images of a floor, a wall and a ball."""

    split = "val"
    specs = SPECS

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Sample:
        height, width = SIZE
        y, x = np.mgrid[0:height, 0:width].astype(np.float32)
        floor = y > height * 0.6
        ball = (x - width * (0.2 + 0.08 * index)) ** 2 + (y - height * 0.55) ** 2 < (height / 5) ** 2
        mask = np.where(ball, 3, np.where(floor, 1, 0))
        depth = np.where(ball, 2.0, np.where(floor, 6 - 4 * (y / height), 5.0))
        normals = np.stack([np.zeros_like(x), np.where(floor, -1.0, 0.0), np.where(floor, 0.0, -1.0)])
        image = np.stack([200 - 20 * depth, 60 + 60 * mask, 120 + x]).clip(0, 255)
        targets = {
            "segmentation": torch.from_numpy(mask).long(),
            "depth": torch.from_numpy(depth.astype(np.float32))[None],
            "normals": torch.from_numpy(normals.astype(np.float32)),
            "age": torch.tensor(20.0 + 5 * index),
            "gender": torch.tensor(index % 2),
        }
        return {"image": torch.from_numpy(image.astype(np.uint8)), "targets": targets}

    def identifier(self, index: int) -> str:
        return f"val/{index:05d}"


class TinySplits(ValSplits):
    """The tiny val split for every recipe; with `missing`, data that is not there."""

    def __init__(self, missing: bool = False) -> None:
        super().__init__()
        self.missing = missing
        self.loads = 0

    def dataset(self, recipe: Recipe) -> TinyVal:  # type: ignore[override]
        if self.missing:
            raise DataError("there is no folder nowhere", "set data.root")
        self.loads += 1
        return TinyVal()

    def preprocessing(self, recipe: Recipe, index: int) -> Preprocessing:
        return Preprocessing(size=SIZE)

    def loader(self, recipe: Recipe) -> list[Batch]:
        dataset = self.dataset(recipe)
        samples = [dataset[index] for index in range(len(dataset))]
        mean = torch.tensor(Preprocessing.mean).view(1, 3, 1, 1)
        std = torch.tensor(Preprocessing.std).view(1, 3, 1, 1)
        image = (torch.stack([sample["image"] for sample in samples]).float() / 255 - mean) / std
        targets = {name: torch.stack([sample["targets"][name] for sample in samples]) for name in SPECS}
        return [{"image": image, "targets": targets}]
