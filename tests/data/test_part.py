"""A share of the training split: which samples it has, and that nothing else changes."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from compactmtl.config.recipe import DataConfig
from compactmtl.data import load_dataset
from compactmtl.data.base import VisionDataset

OPTIONS = {"train": 12, "val": 4}


def part(share: float, split: str = "train", **fields: float) -> VisionDataset:
    return load_dataset("scenes", split, size=(16, 24), options=OPTIONS, share=share, **fields)  # type: ignore[arg-type]


def names(dataset: VisionDataset) -> set[str]:
    return {dataset.identifier(index) for index in range(len(dataset))}


def test_a_smaller_share_is_a_part_of_a_larger_one() -> None:
    quarter, half, whole = (part(share) for share in (0.25, 0.5, 1.0))
    assert [len(dataset) for dataset in (quarter, half, whole)] == [3, 6, 12]
    assert names(quarter) < names(half) < names(whole)


def test_samples_and_specifications_are_the_whole_splits() -> None:
    half, whole = part(0.5), part(1.0)
    assert half.specs == whole.specs
    numbers = {whole.identifier(index): index for index in range(len(whole))}
    for index in range(len(half)):
        expected = whole[numbers[half.identifier(index)]]
        assert torch.equal(half[index]["image"], expected["image"])


def test_other_splits_stay_whole_and_held_out_samples_stay_out() -> None:
    assert len(part(0.25, "val")) == 4
    held = part(0.5, "holdout", holdout=0.25)
    assert len(held) == 3
    assert not names(held) & names(part(0.5, holdout=0.25))


@pytest.mark.parametrize("share", [0.0, 1.5])
def test_a_share_of_nothing_or_of_more_than_all(share: float) -> None:
    with pytest.raises(ValidationError):
        DataConfig(name="scenes", size=(16, 24), share=share)


def test_the_least_share_has_a_sample() -> None:
    assert len(part(0.001)) == 1
