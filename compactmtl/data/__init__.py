"""Data sets, joint transforms and loaders."""

from compactmtl.data.base import Batch, DataReport, Preprocessing, Sample, Split, VisionDataset
from compactmtl.data.check import check_dataset
from compactmtl.data.datasets import DATASETS, load_dataset
from compactmtl.data.images import denormalize, normalize, read_image
from compactmtl.data.loader import EpochSampler, Loader, build_loader, preprocessing

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
    "load_dataset",
    "normalize",
    "preprocessing",
    "read_image",
]
