"""MultiMNIST made from every form that MNIST comes in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from compactmtl.config.recipe import DataConfig
from compactmtl.data import check_dataset, load_dataset
from compactmtl.data.multimnist import overlay, pair_up
from compactmtl.errors import DataError
from tests.support.layouts.multimnist import Form, write_multimnist


def config(root: Path, **fields: Any) -> DataConfig:
    return DataConfig.model_validate({"name": "multimnist", "size": (36, 36), "root": str(root)} | fields)


@pytest.mark.parametrize("form", ["keras", "arrays", "idx"])
def test_both_digits_are_where_their_labels_say(form: Form, tmp_path: Path) -> None:
    root = write_multimnist(tmp_path, count=10, form=form)
    counts = {"keras": (50, 10, 10), "arrays": (80, 10, 10), "idx": (50, 10, 10)}[form]
    report = check_dataset(config(root))
    assert tuple(report.counts.values()) == counts
    dataset = load_dataset(config(root), "train")
    for index in range(len(dataset)):
        sample = dataset[index]
        image, targets = sample["image"], sample["targets"]
        assert image.shape == (3, 36, 36)
        assert torch.equal(image[0], image[2])
        # The fixture's digits are gray levels: 25 times the class, and less than 4 of noise.
        assert image[0, :8, :8].float().mean() // 25 == targets["left"]
        assert image[0, -8:, -8:].float().mean() // 25 == targets["right"]
        assert not image[0, :8, -8:].any()


def test_the_brighter_digit_shows() -> None:
    left, right = np.full((28, 28), 90, np.uint8), np.full((28, 28), 200, np.uint8)
    canvas = overlay(left, right)
    assert (
        (canvas[8:28, 8:28] == 200).all()
        and (canvas[:8, :28] == 90).all()
        and (canvas[28:, 28:] == 200).all()
    )
    np.testing.assert_array_equal(canvas[::-1, ::-1], overlay(right, left))


def test_pairs_depend_on_seed_and_split_alone_and_use_every_digit_alike() -> None:
    here = Path()
    pairs = pair_up(30, 70, 0, "train", here)
    assert pairs == pair_up(30, 70, 0, "train", here)
    assert pairs != pair_up(30, 70, 1, "train", here)
    assert [p.left for p in pairs] != [p.left for p in pair_up(30, 70, 0, "val", here)]
    for side in ("left", "right"):
        uses = np.bincount([getattr(pair, side) for pair in pairs], minlength=30)
        assert set(uses) == {2, 3}
    assert pair_up(30, 40, 0, "train", here) == pairs[:40]


def test_no_digit_is_in_two_splits(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (100, 28, 28)).astype(np.uint8)
    images[:, 0, 0] = np.arange(100)
    np.savez(tmp_path / "mnist10k.npz", images=images, labels=np.arange(100) // 10)
    seen = {}
    for split in ("train", "val", "test"):
        dataset = load_dataset(config(tmp_path), split)
        seen[split] = {int(dataset[i]["image"][0, 0, 0]) for i in range(len(dataset))}
    assert [len(numbers) for numbers in seen.values()] == [80, 10, 10]
    assert len(set.union(*seen.values())) == 100


def test_options_and_size(tmp_path: Path) -> None:
    root = write_multimnist(tmp_path, count=4)
    dataset = load_dataset(config(root, size=(28, 20), options={"train": 33, "seed": 5}), "train")
    assert len(dataset) == 33
    assert dataset[32]["image"].shape == (3, 28, 20)
    assert dataset.identifier(32) == "multimnist-train-00032"
    assert len(load_dataset(config(root, holdout=0.5), "holdout")) == 10
    assert len(load_dataset(config(root / "mnist.npz"), "val")) == 4


@pytest.mark.parametrize("case", ["missing", "half npz", "half idx", "other arrays", "colored", "labels"])
def test_what_is_wrong_is_named(case: str, tmp_path: Path) -> None:
    name = "mnist.npz"
    match case:
        case "missing":
            name = "looked for"
        case "half npz":
            path = write_multimnist(tmp_path) / name
            path.write_bytes(path.read_bytes()[:200])
        case "half idx":
            path = write_multimnist(tmp_path, form="idx") / "MNIST/raw/train-images-idx3-ubyte.gz"
            path.write_bytes(path.read_bytes()[:200])
            name = "train-images"
        case "other arrays":
            np.savez(tmp_path / name, pictures=np.zeros(3))
        case "colored":
            np.savez(tmp_path / name, images=np.zeros((3, 28, 28, 3), np.uint8), labels=np.zeros(3, np.uint8))
        case "labels":
            np.savez(tmp_path / name, images=np.zeros((3, 28, 28), np.uint8), labels=np.full(3, 10))
    with pytest.raises(DataError, match=name) as caught:
        load_dataset(config(tmp_path), "train")
    assert "mnist.npz" in caught.value.hint


def test_an_npz_of_objects_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "mnist.npz", images=np.array([{}], object), labels=np.zeros(1))
    with pytest.raises(DataError, match="not a whole"):
        load_dataset(config(tmp_path), "train")
