"""Data sets, joint transforms and loaders."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compactmtl.data.base import (
        Batch,
        DataReport,
        Preprocessing,
        Sample,
        Split,
        VisionDataset,
        image_fit,
        preprocessing,
    )
    from compactmtl.data.check import check_dataset
    from compactmtl.data.datasets import load_dataset
    from compactmtl.data.images import denormalize, normalize, read_image, read_picture
    from compactmtl.data.loader import EpochSampler, Loader, build_loader
    from compactmtl.data.registry import DATASETS

# A public name's module is imported when the name is asked for: reading a bundle loads no torch.
_HOME = {
    "Batch": "base",
    "DATASETS": "registry",
    "DataReport": "base",
    "EpochSampler": "loader",
    "Loader": "loader",
    "Preprocessing": "base",
    "Sample": "base",
    "Split": "base",
    "VisionDataset": "base",
    "build_loader": "loader",
    "check_dataset": "check",
    "denormalize": "images",
    "image_fit": "base",
    "load_dataset": "datasets",
    "normalize": "images",
    "preprocessing": "base",
    "read_image": "images",
    "read_picture": "images",
}

__all__ = [
    "DATASETS",
    "Batch",
    "DataReport",
    "EpochSampler",
    "Loader",
    "Preprocessing",
    "Sample",
    "Split",
    "VisionDataset",
    "build_loader",
    "check_dataset",
    "denormalize",
    "image_fit",
    "load_dataset",
    "normalize",
    "preprocessing",
    "read_image",
    "read_picture",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
