"""Data sets by name."""

from __future__ import annotations

from pathlib import Path

import pytest

import compactmtl.data
from compactmtl.config.recipe import AugmentConfig, DataConfig, Frozen
from compactmtl.data import DATASETS, load_dataset
from compactmtl.data.datasets import dataset_module
from compactmtl.errors import ConfigError


def test_a_name_with_keywords_is_a_config() -> None:
    dataset = load_dataset(
        "scenes", "val", size=(16, 24), options={"val": 3}, augment=AugmentConfig(flip=True)
    )
    assert len(dataset) == 3
    assert dataset[0]["image"].shape == (3, 16, 24)
    assert load_dataset("scenes", "val")[0]["image"].shape == (3, 96, 128)


def test_keywords_do_not_go_with_a_config() -> None:
    with pytest.raises(TypeError, match="model_copy"):
        load_dataset(DataConfig(name="scenes", size=(8, 8)), "val", batch_size=2)


def test_a_misspelt_name_or_keyword_names_the_right_one() -> None:
    with pytest.raises(ConfigError, match="no data set") as caught:
        load_dataset("utkfaces", "val")
    assert "utkface" in caught.value.hint
    with pytest.raises(ConfigError, match=r"data\.sise") as caught:
        load_dataset("scenes", "val", sise=(8, 8))
    assert "size" in caught.value.hint


@pytest.mark.parametrize("name", DATASETS)
def test_every_data_set_has_what_the_check_prints(name: str) -> None:
    module = dataset_module(name)
    assert module.DESCRIPTION
    assert {"train", "val"} <= set(module.SPLITS)
    assert issubclass(module.Options, Frozen)
    assert all(field.description for field in module.Options.model_fields.values())
    assert len(module.DEFAULT_SIZE) == 2


def test_every_public_name_exists() -> None:
    assert all(hasattr(compactmtl.data, name) for name in compactmtl.data.__all__)
    assert Path(str(compactmtl.data.__file__)).name == "__init__.py"
