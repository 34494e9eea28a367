"""Data sets by name. Each is a module with DESCRIPTION, DEFAULT_SIZE, DEFAULT_ROOT, SPLITS, Options, load, problems."""

from __future__ import annotations

import difflib
import importlib
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from pydantic import BaseModel

from compactmtl.config import validate_options
from compactmtl.config.recipe import DataConfig
from compactmtl.data.base import Split, VisionDataset
from compactmtl.errors import ConfigError, DataError

DATASETS = ("scenes", "utkface")


def dataset_module(name: str) -> ModuleType:
    """The module of a data set; ConfigError with the nearest names where there is none."""
    if name not in DATASETS:
        near = difflib.get_close_matches(name, DATASETS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"the data sets are {', '.join(DATASETS)}"
        raise ConfigError(f"data.name: no data set {name!r}", hint)
    return importlib.import_module(f"compactmtl.data.{name}")


def load_dataset(config: DataConfig | str, split: Split, **fields: Any) -> VisionDataset:
    """One split of a data set, decoded and resized but neither augmented nor normalized.

    Args:
        config: the `data` section of a recipe; or a data set's name, and its other fields as keywords, as in
            load_dataset("scenes", "val", size=(96, 128)).
        split: train, holdout, val or test.

    Raises:
        ConfigError: for an unknown name, field or option, or `holdout` without data.holdout.
        DataError: for data that is missing, empty or damaged.
    """
    if isinstance(config, str):
        module = dataset_module(config)
        given = {"size": module.DEFAULT_SIZE, "root": module.DEFAULT_ROOT} | fields
        plain = {key: _plain(value) for key, value in ({"name": config} | given).items()}
        config = validate_options(DataConfig, plain, "data")
    elif fields:
        raise TypeError("keywords go with a data set's name; change a DataConfig with model_copy(update=...)")
    module = dataset_module(config.name)
    if split not in (*module.SPLITS, "holdout"):
        raise DataError(f"{config.name} has no split {split!r}", f"its splits are {', '.join(module.SPLITS)}")
    if split == "holdout" and config.holdout == 0:
        raise ConfigError("data.holdout is 0, so there is no split holdout", "set data.holdout, such as 0.1")
    return cast(VisionDataset, module.load(config, split))


def _plain(value: Any) -> Any:
    """A keyword as a recipe would hold it."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    return str(value) if isinstance(value, Path) else value
