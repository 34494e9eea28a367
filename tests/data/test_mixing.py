"""Batches of several data sets: their shares, every image once before it comes again, and no dependence on workers."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compactmtl.config.recipe import DataConfig
from compactmtl.config.sources import MixingConfig
from compactmtl.config.validate import validate_options
from compactmtl.data import Batch, build_loader, load_dataset
from compactmtl.data.mixing import MixedSampler, PartSampler, _times, shares
from compactmtl.errors import ConfigError
from tests.support.layouts.ccp import write_ccp
from tests.support.layouts.utkface import write_utkface

FACES: dict[str, Any] = {"name": "utkface", "tasks": ["age"]}
CLOTHES: dict[str, Any] = {"name": "ccp", "tasks": ["segmentation"]}
NAMES = ("a", "b", "c")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_utkface(folder, count=7)
    write_ccp(folder / "ccp", count=3)
    return folder


def sampler(counts: list[int], batch_size: int = 8, seed: int = 0, **mixing: Any) -> MixedSampler:
    names = list(NAMES[: len(counts)])
    return MixedSampler(MixingConfig.model_validate(mixing), names, counts, batch_size, seed)


def epoch(one: MixedSampler, number: int, start: int = 0) -> list[list[int]]:
    one.set_epoch(number)
    one.set_start(start)
    return [list(indices) for _, indices in one]


def source_of(index: int, counts: list[int]) -> int:
    return next(n for n, end in enumerate(itertools.accumulate(counts)) if index % sum(counts) < end)


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(1, 60), min_size=1, max_size=3),
    batch_size=st.integers(3, 16),
    by=st.sampled_from(("size", "sqrt")),
    seed=st.integers(0, 5),
)
def test_joined_batches_have_every_source_and_follow_the_shares(
    counts: list[int], batch_size: int, by: str, seed: int
) -> None:
    one = sampler(counts, batch_size, seed, by=by)
    batches = epoch(one, 1)
    drawn = [Counter(source_of(index, counts) for index in batch) for batch in batches]
    assert all(len(batch) == batch_size for batch in batches)
    assert all(set(some) == set(range(len(counts))) for some in drawn)
    for number, share in enumerate(one.shares):
        total = sum(some[number] for some in drawn)
        assert abs(total - share * batch_size * len(batches)) <= len(counts)
    assert sum(one.shares) == pytest.approx(1)


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(1, 40), min_size=1, max_size=3),
    batches=st.sampled_from(("joined", "alternating")),
    by=st.sampled_from(("size", "sqrt")),
    seed=st.integers(0, 5),
)
def test_no_image_comes_again_before_all_of_its_source_came(
    counts: list[int], batches: str, by: str, seed: int
) -> None:
    one = sampler(counts, 4, seed, by=by, batches=batches, epoch=40)
    drawn = [index for number in (1, 2, 3) for batch in epoch(one, number) for index in batch]
    for number in range(len(counts)):
        own = [index % sum(counts) for index in drawn if source_of(index, counts) == number]
        times = Counter(own)
        assert (
            max(times.values())
            - min(times.get(n, 0) for n in range(sum(counts)) if source_of(n, counts) == number)
            <= 1
        )


def test_an_image_that_comes_again_in_an_epoch_has_another_number() -> None:
    one = sampler([30, 3], by="shares", shares={"a": 0.5, "b": 0.5})
    for number in (1, 2, 3):
        drawn = [index for batch in epoch(one, number) for index in batch]
        assert len(set(drawn)) == len(drawn)
        assert len({index % 33 for index in drawn}) < len(drawn)


@pytest.mark.parametrize("mixing", [{}, {"batches": "alternating"}, {"by": "sqrt", "epoch": 9}])
def test_a_pass_begins_anywhere(mixing: dict[str, Any]) -> None:
    one = sampler([31, 9], **mixing)
    for number in (1, 4, -2, 0):
        whole = epoch(one, number)
        for start in (0, 1, 3, len(whole)):
            assert epoch(one, number, start) == whole[start:]


def test_epochs_seeds_and_nothing_else_change_the_order() -> None:
    assert epoch(sampler([31, 9]), 1) == epoch(sampler([31, 9]), 1)
    assert epoch(sampler([31, 9]), 1) != epoch(sampler([31, 9]), 2)
    assert epoch(sampler([31, 9]), 1) != epoch(sampler([31, 9], seed=1), 1)
    assert epoch(sampler([31, 9]), 1) != epoch(sampler([31, 9]), -1)


def test_alternating_batches_are_of_one_source_each() -> None:
    one = sampler([30, 10], 5, batches="alternating", epoch=16)
    owners = [{source_of(index, [30, 10]) for index in batch} for batch in epoch(one, 1)]
    assert all(len(some) == 1 for some in owners)
    assert [sum(some == {n} for some in owners) for n in (0, 1)] == [12, 4]
    # and none waits for long
    places = [n for n, some in enumerate(owners) if some == {1}]
    assert max(later - earlier for earlier, later in itertools.pairwise(places)) <= 5


@pytest.mark.parametrize(
    ("mixing", "steps"),
    [
        ({}, 5),  # 40 images
        ({"epoch": 7}, 7),
        ({"epoch": "a"}, 5),  # 30 of them at three quarters of 8 a batch
        ({"epoch": "b"}, 5),
        ({"epoch": "b", "by": "shares", "shares": {"a": 0.5, "b": 0.5}}, 3),  # 10 at 4 a batch
        ({"epoch": "a", "by": "shares", "shares": {"a": 0.5, "b": 0.5}}, 8),
        ({"epoch": "b", "batches": "alternating"}, 8),  # 2 batches of 8, which are a quarter
    ],
)
def test_an_epoch_is_what_the_recipe_says(mixing: dict[str, Any], steps: int) -> None:
    assert len(sampler([30, 10], 8, **mixing)) == steps


def test_shares() -> None:
    sizes, joined = (100, 400), MixingConfig(batches="alternating")
    names = ("a", "b")
    assert shares(joined, names, sizes, 10) == pytest.approx([0.2, 0.8])
    assert shares(joined.model_copy(update={"by": "sqrt"}), names, sizes, 10) == pytest.approx([1 / 3, 2 / 3])
    # one image a batch at least
    assert shares(MixingConfig(), names, (1, 999), 10) == pytest.approx([0.1, 0.9])


def test_an_epoch_without_a_batch_of_a_source_is_refused() -> None:
    with pytest.raises(ConfigError, match="an epoch of 2 batches has none of source b") as caught:
        sampler([100, 1], batches="alternating", epoch=2)
    assert caught.value.exit_code == 2
    assert "data.mixing.epoch" in caught.value.hint


def test_a_pass_in_order_has_batches_of_one_source() -> None:
    one = PartSampler([5, 3], 4)
    assert [list(indices) for _, indices in one] == [[0, 1, 2, 3], [4], [5, 6, 7]]
    one.set_start(1)
    assert [list(indices) for _, indices in one] == [[4], [5, 6, 7]]
    assert len(one) == 3


def config(root: Path, **fields: Any) -> DataConfig:
    given = {"root": str(root), "size": [32, 24], "batch_size": 4, "sources": [FACES, CLOTHES]}
    augment = {"flip": True, "zoom": [1.0, 1.4], "shift": 2, "color": 0.3}
    return validate_options(DataConfig, given | {"augment": augment} | fields, "data")


def drawn(data: DataConfig, number: int = 1, start: int = 0) -> list[Batch]:
    loader = build_loader(load_dataset(data, "train"), data, train=True, seed=3)
    loader.sampler.set_epoch(number)
    loader.sampler.set_start(start)
    return list(loader)


def same(one: list[Batch], other: list[Batch]) -> bool:
    return len(one) == len(other) and all(
        torch.equal(a["image"], b["image"])
        and a["sources"] == b["sources"]
        and all(
            torch.equal(a["targets"][n], b["targets"][n]) or a["targets"][n].isnan().any()
            for n in a["targets"]
        )
        for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("batches", ["joined", "alternating"])
def test_batches_do_not_depend_on_workers_or_on_an_interruption(root: Path, batches: str) -> None:
    given = config(root, mixing={"batches": batches, "epoch": 5})
    whole = drawn(given, 2)
    assert same(drawn(given.model_copy(update={"workers": 2}), 2), whole)
    assert same(drawn(given, 2, start=3), whole[3:])
    assert not same(drawn(given, 1), whole)


def test_each_source_has_its_own_augmentation_and_normalization(root: Path) -> None:
    plain = {"flip": False, "zoom": [1.0, 1.0], "shift": 0, "color": 0.0}
    own = [FACES | {"augment": plain, "mean": [0.0] * 3, "std": [1.0] * 3}, CLOTHES]
    given = config(root, sources=own)
    dataset = load_dataset(given, "train")
    batch = drawn(given)[0]
    faces = {bytes(dataset[n]["image"].numpy().tobytes()) for n in range(7)}
    for image, source in zip(batch["image"], batch["sources"], strict=True):
        raw = (image * 255).round()
        is_plain = bool((raw >= 0).all()) and raw.to(torch.uint8).numpy().tobytes() in faces
        assert is_plain == (source == "utkface")


def test_alternating_sources_may_differ_in_size(root: Path) -> None:
    own = [FACES | {"size": [16, 16]}, CLOTHES]
    batches = drawn(config(root, sources=own, mixing={"batches": "alternating", "epoch": 4}))
    shapes = {tuple(batch["image"].shape[2:]): set(batch["sources"]) for batch in batches}
    assert shapes == {(16, 16): {"utkface"}, (32, 24): {"ccp"}}


@pytest.mark.parametrize(
    ("often", "words"), [(1.0, "once"), (1.36, "1.4 times"), (128.2, "128 times"), (0.04, "0.04 times")]
)
def test_how_often_an_image_comes_is_said_without_exponents(often: float, words: str) -> None:
    assert _times(often) == words
