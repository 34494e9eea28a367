"""A module of the user's own with two outputs, its data and its evaluation: what `export_bundle` is given in tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from compactmtl.config.target import LatencyConfig, Target

SIZE = (16, 24)
FAST = LatencyConfig(warmup=1, repeats=3, settle=0)
FLOAT = Target(backend="onnxruntime", latency=FAST)
INT8 = Target(backend="onnxruntime", precision="int8", latency=FAST)


class Scene(nn.Module):
    """Depth (B, 1, H, W), positive, and the scores of five classes (B, 5)."""

    def __init__(self, width: int = 8, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.depth = nn.Conv2d(width, 1, 3, padding=1)
        self.scores = nn.Linear(width, 5)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """An image (B, 3, H, W)."""
        features = self.stem(image)
        return {
            "depth": nn.functional.softplus(self.depth(features)),
            "scores": self.scores(features.amax((2, 3))),
        }


def scene(width: int = 8, seed: int = 0) -> Scene:
    """The module in eval mode."""
    model = Scene(width, seed)
    model.eval()
    return model


def images(count: int = 12) -> Tensor:
    """Noise (count, 3, 16, 24), the same each time."""
    return torch.randn(count, 3, *SIZE, generator=torch.Generator().manual_seed(1))


def loader(count: int = 12, batch: int = 4) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of images and labels, as a DataLoader gives them."""
    whole = images(count)
    for start in range(0, count, batch):
        yield whole[start : start + batch], torch.zeros(batch, dtype=torch.int64)


def scorer(model: nn.Module, batch: int = 5) -> Callable[[Callable[..., Any]], Mapping[str, Any]]:
    """An evaluation against what `model` says: the share of equal classes, and the error of depth."""
    whole = images()
    with torch.no_grad():
        truth = model(whole)

    def evaluate(predict: Callable[..., Any]) -> dict[str, Any]:
        hits, error = 0, 0.0
        for start in range(0, len(whole), batch):
            found = predict(whole[start : start + batch])
            part = slice(start, start + batch)
            hits += int((found["scores"].argmax(1) == truth["scores"][part].argmax(1)).sum())
            error += float((found["depth"] - truth["depth"][part]).abs().sum())
        return {
            "scores.accuracy": hits / len(whole),
            "depth.abs_err": (1 + error / truth["depth"].numel(), False),
        }

    return evaluate
