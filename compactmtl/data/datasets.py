"""Data sets by name: a module of this package, or a class of the user's own as `package.module:Class`."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, cast

from pydantic import BaseModel

from compactmtl.artifacts.files import expanded
from compactmtl.config import validate_options
from compactmtl.config.lookup import name_hint
from compactmtl.config.recipe import DataConfig
from compactmtl.config.sources import of_source
from compactmtl.config.trust import trusting
from compactmtl.data.base import Split, VisionDataset
from compactmtl.data.external import external, is_external
from compactmtl.data.part import Part
from compactmtl.data.registry import DATASETS
from compactmtl.data.sources import load_sources
from compactmtl.errors import ConfigError, DataError


class DatasetModule(Protocol):
    """What every data set's module has; `external` gives the same for a class of the user's."""

    @property
    def DESCRIPTION(self) -> str:
        """One line for the check."""

    @property
    def DEFAULT_SIZE(self) -> tuple[int, int]:
        """Height and width where none is given."""

    @property
    def DEFAULT_ROOT(self) -> str | None:
        """Folder where none is given; none for generated data."""

    @property
    def SPLITS(self) -> tuple[Split, ...]:
        """Train, val and, where there is one, test."""

    @property
    def Options(self) -> type[BaseModel]:
        """Model of data.options."""

    def load(self, config: DataConfig, split: Split) -> VisionDataset:
        """One split; raises DataError."""

    def problems(self, config: DataConfig) -> tuple[list[str], list[str]]:
        """(problems, notes): what would stop training, and what is passed over."""


def dataset_module(name: str) -> DatasetModule:
    """The module of a data set; ConfigError with the nearest names where there is none."""
    if is_external(name):
        return cast(DatasetModule, external(name))
    if name not in DATASETS:
        hint = f"{name_hint(name, DATASETS)}; a class of your own is package.module:Class"
        raise ConfigError(f"data.name: no data set {name!r}", hint)
    return cast(DatasetModule, importlib.import_module(f"compactmtl.data.{name}"))


def splits_of(config: DataConfig) -> tuple[Split, ...]:
    """The splits of a data section's data set; of several those that all of them have."""
    offered = [dataset_module(name).SPLITS for name in sorted(config.names)]
    return tuple(split for split in offered[0] if all(split in others for others in offered))


def check_root(config: DataConfig) -> None:
    """Raise what loading a data set raises where data.root is no folder; one of the user's own may take any root."""
    sections = [of_source(config, source, deployed=True) for source in config.sources] or [config]
    for one in sections:
        if one.root is not None and not is_external(one.name) and not expanded(one.root).is_dir():
            load_dataset(one.model_copy(update={"cache": "none"}), "train")


def load_dataset(
    config: DataConfig | str, split: Split, *, trust: bool = False, **fields: Any
) -> VisionDataset:
    """Load one split of a data set. Samples are decoded and resized, but neither augmented nor normalized.

    Args:
        config: the `data` section of a recipe; or the name of a data set, with the other keys of the section as keywords, as
            in load_dataset("scenes", "val", size=(96, 128)).
        split: "train", "holdout", "val" or "test".
        trust: allow the import of a class of your own, package.module:Class.

    Raises:
        UntrustedError: for a class of your own without `trust`, or `with trusting()` around the call.
        ConfigError: for an unknown name, key or option, or `holdout` without data.holdout.
        DataError: for data that is missing, empty or damaged.
    """
    with trusting(trust):
        return _load(config, split, fields)


def _load(config: DataConfig | str, split: Split, fields: Mapping[str, Any]) -> VisionDataset:
    if isinstance(config, str):
        module = dataset_module(config)
        given = {"size": module.DEFAULT_SIZE, "root": module.DEFAULT_ROOT} | dict(fields)
        plain = {key: _plain(value) for key, value in ({"name": config} | given).items()}
        config = validate_options(DataConfig, plain, "data")
    elif fields:
        raise TypeError("keywords go with a data set's name; change a DataConfig with model_copy(update=...)")
    if config.sources:
        return load_sources(config, split, _load_one)
    return _load_one(config, split)


def _load_one(config: DataConfig, split: Split) -> VisionDataset:
    module = dataset_module(config.name)
    if split not in (*module.SPLITS, "holdout"):
        raise DataError(f"{config.name} has no split {split!r}", f"its splits are {', '.join(module.SPLITS)}")
    if split == "holdout" and config.holdout == 0:
        raise ConfigError("data.holdout is 0, so there is no split holdout", "set data.holdout, such as 0.1")
    check_inputs(config)
    whole = module.load(config, split)
    return Part(whole, config.share) if split == "train" and config.share < 1 else whole


def check_inputs(config: DataConfig) -> None:
    """Raise ConfigError where the data set gives one picture, and the recipe names inputs."""
    if config.inputs and not (config.name == "folder" or is_external(config.name)):
        raise ConfigError(
            f"data.inputs: the data set {config.name} gives one picture, and {', '.join(config.inputs)} are named",
            "name a class of your own as package.module:Class, or data.name=folder, which give inputs by name",
        )


def _plain(value: Any) -> Any:
    """A keyword as a recipe would hold it."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    return str(value) if isinstance(value, Path) else value
