"""Batches are the same for any number of workers and after any resumption, and new in every epoch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from compactmtl.config.recipe import AugmentConfig, DataConfig
from compactmtl.data import Batch, Sample, build_loader, denormalize, load_dataset, preprocessing
from compactmtl.data.loader import EpochSampler
from compactmtl.errors import DataError
from compactmtl.tasks import TargetSpec

AUGMENT = {"flip": True, "zoom": [1.0, 1.4], "shift": 2, "color": 0.3}


def config(**fields: Any) -> DataConfig:
    given = {"name": "scenes", "size": (16, 24), "batch_size": 4, "options": {"train": 10, "val": 5}}
    return DataConfig.model_validate(given | {"augment": AUGMENT} | fields)


def batches(
    data: DataConfig, epoch: int = 1, start: int = 0, train: bool = True, seed: int = 0
) -> list[Batch]:
    loader = build_loader(load_dataset(data, "train" if train else "val"), data, train=train, seed=seed)
    loader.sampler.set_epoch(epoch)
    loader.sampler.set_start(start)
    return list(loader)


def same(first: list[Batch], second: list[Batch]) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a["image"], b["image"])
        and all(torch.equal(a["targets"][name], b["targets"][name]) for name in a["targets"])
        for a, b in zip(first, second, strict=True)
    )


def test_a_batch_has_the_specified_formats() -> None:
    batch = batches(config())[0]
    assert (batch["image"].dtype, batch["image"].shape) == (torch.float32, (4, 3, 16, 24))
    targets = batch["targets"]
    assert (targets["segmentation"].dtype, targets["segmentation"].shape) == (torch.int64, (4, 16, 24))
    assert targets["depth"].shape == (4, 1, 16, 24)
    assert targets["normals"].shape == (4, 3, 16, 24)
    assert type(targets["depth"]) is torch.Tensor


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(workers: int) -> None:
    assert same(batches(config()), batches(config(workers=workers)))


@pytest.mark.slow
def test_workers_follow_the_epoch_and_share_the_cache() -> None:
    data = config(workers=2)
    dataset = load_dataset(data, "train")
    loader = build_loader(dataset, data, train=True, seed=0)
    for epoch in (1, 2):
        loader.sampler.set_epoch(epoch)
        assert same(list(loader), batches(config(), epoch))
    assert dataset._store._ready.all()  # type: ignore[attr-defined]  # rendered in the workers, seen here


@pytest.mark.slow
def test_epochs_and_seeds_differ() -> None:
    assert not same(batches(config(), 1), batches(config(), 2))
    assert not same(batches(config(), 1), batches(config(), 1, seed=1))


@pytest.mark.slow
def test_an_epoch_resumes_at_any_batch() -> None:
    whole = batches(config())
    for start in range(len(whole) + 1):
        assert same(batches(config(), start=start), whole[start:])


def test_a_sample_is_augmented_alike_in_any_batch() -> None:
    def by_depth(data: DataConfig) -> dict[float, torch.Tensor]:
        found = {}
        for batch in batches(data):
            for image, depth in zip(batch["image"], batch["targets"]["depth"], strict=True):
                found[float(depth.double().sum())] = image
        return found

    small, large = by_depth(config(batch_size=3)), by_depth(config(batch_size=5))
    common = small.keys() & large.keys()
    assert len(common) >= 9  # one sample may be left out of a last batch
    for key in common:
        torch.testing.assert_close(
            small[key], large[key], rtol=0, atol=1e-5
        )  # means over other batch strides


ALONE = {"flip": True, "zoom": [1.3, 1.6], "rotate": 40, "shift": 5}


class Painted:
    """Pictures that show their mask, depth and normals in gray, so that pixels and targets can be held together."""

    split = "train"

    def __init__(self) -> None:
        self.specs: Mapping[str, TargetSpec] = {
            "mask": TargetSpec("mask", classes=("a", "b", "c"), ignore_index=255),
            "depth": TargetSpec("depth", unit="m"),
            "normals": TargetSpec("normals"),
        }

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> Sample:
        mask = torch.zeros(40, 48, dtype=torch.long)
        mask[:, 30:] = 1
        mask[25:, 4 + index : 20] = 2
        image = (100 * mask).to(torch.uint8).expand(3, -1, -1)
        normals = torch.nn.functional.one_hot(mask, 3).permute(2, 0, 1).float()
        return {"image": image, "targets": {"mask": mask, "depth": 1.0 + mask[None], "normals": normals}}

    def identifier(self, index: int) -> str:
        return str(index)


def painted(**augment: Any) -> list[Batch]:
    data = config(size=(40, 48), augment=augment, batch_size=6)
    loader = build_loader(Painted(), data, train=True, seed=0)
    loader.sampler.set_epoch(1)
    return list(loader)


def test_every_geometric_key_is_tried_alone() -> None:
    assert set(ALONE) | {"color"} == set(AugmentConfig.model_fields)
    assert all(AugmentConfig.model_validate({key: value}).moves for key, value in ALONE.items())
    assert not AugmentConfig(color=0.5).moves and not AugmentConfig().moves


@pytest.mark.parametrize("key", list(ALONE))
def test_each_key_alone_moves_pixels_and_all_targets_together(key: str) -> None:
    (plain,), (moved,) = painted(), painted(**{key: ALONE[key]})
    assert not torch.equal(plain["image"], moved["image"])
    facts = preprocessing(config(size=(40, 48)))
    gray = denormalize(moved["image"], facts)[:, 0].float()
    mask, depth, normals = (moved["targets"][name] for name in ("mask", "depth", "normals"))
    seen = (gray / 100).round()  # edges are interpolated in the picture alone
    known = mask != 255
    assert (seen == mask)[known].float().mean() > 0.93
    # a zoom brings depth nearer and tilts normals to the camera; what they are of is the same pixel
    zoomed = depth.amax((1, 2, 3), keepdim=True) / 3
    assert torch.equal((depth / zoomed).round()[:, 0][known], 1.0 + mask[known])
    assert torch.equal(normals.abs().argmax(1)[known & (mask == 2)], mask[known & (mask == 2)])
    assert ((normals.square().sum(1) - 1).abs() < 1e-5)[known].all()


def test_torchs_global_random_state_is_left_alone() -> None:
    before = torch.random.get_rng_state()
    batches(config())
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_gpus_batches_are_page_locked_where_asked() -> None:
    data = config()
    dataset = load_dataset(data, "train")
    assert build_loader(dataset, data, train=True, seed=0, pin=True).pin_memory
    assert not build_loader(dataset, data, train=True, seed=0).pin_memory


def test_validation_is_whole_in_order_and_unchanged() -> None:
    data = config()
    dataset = load_dataset(data, "val")
    got = torch.cat([batch["image"] for batch in batches(data, train=False)])
    want = torch.stack([dataset[i]["image"] for i in range(5)]).float() / 255
    facts = preprocessing(data)
    want = (want - torch.tensor(facts.mean).view(3, 1, 1)) / torch.tensor(facts.std).view(3, 1, 1)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


@given(st.integers(1, 40), st.integers(1, 9), st.booleans())
def test_a_pass_visits_each_sample_once(count: int, size: int, shuffle: bool) -> None:
    sampler = EpochSampler(count, size, shuffle=shuffle, seed=0)
    passes = [indices for _, indices in sampler]
    assert len(passes) == len(sampler) > 0
    visited = [index for indices in passes for index in indices]
    assert len(set(visited)) == len(visited)
    left_out = count - len(visited)
    assert left_out == (1 if shuffle and count > size > 1 and count % size == 1 else 0)
    if not shuffle:
        assert visited == list(range(count))


def test_a_start_serves_one_pass() -> None:
    sampler = EpochSampler(10, 2, shuffle=True, seed=0)
    sampler.set_start(3)
    assert [len(list(sampler)), len(list(sampler))] == [2, 5]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_sample_is_a_plain_error_also_from_a_worker(workers: int, tmp_path: Path) -> None:
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        (tmp_path / split / "30_0_0_20170101.jpg").write_bytes(b"not a picture")
    data = DataConfig(name="utkface", size=(8, 8), root=str(tmp_path), cache="none", workers=workers)
    with pytest.raises(DataError) as caught:
        list(build_loader(load_dataset(data, "val"), data, train=False, seed=0))
    assert "30_0_0_20170101.jpg" in caught.value.message
    assert "Traceback" not in caught.value.message
    assert caught.value.hint
