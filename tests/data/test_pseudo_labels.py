"""A teacher's labels in a data set: where they go, that they move with the image, and how they are counted and kept."""

from __future__ import annotations

from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from compactmtl.config.recipe import DataConfig
from compactmtl.config.validate import validate_options
from compactmtl.data import build_loader, load_dataset
from compactmtl.data.base import Sample, VisionDataset
from compactmtl.data.labels import anything_known, known_labels
from compactmtl.data.pseudo_labels import (
    Filled,
    PseudoLabels,
    Taught,
    mirrored,
    pseudo_labels,
    resized,
    unlabeled,
)
from compactmtl.data.sources import SourcesDataset
from tests.support.layouts.folder import write_folder
from tests.support.layouts.utkface import write_utkface

SIZE = (24, 32)


def brightness(sample: Sample) -> tuple[Tensor, Tensor]:
    """A class of each pixel that its brightness decides; sure of what is not between two."""
    values = sample["image"][0].float() / 60
    return values.round().clamp(0, 2).long(), (values - values.round()).abs() < 0.4


def constant(value: Any, sure: Any = True) -> Callable[[Sample], tuple[Tensor, Tensor]]:
    """A teacher that says the same of every sample."""

    def label(sample: Sample) -> tuple[Tensor, Tensor]:
        tensor = torch.as_tensor(value)
        return tensor, torch.as_tensor(sure).expand(tensor.shape)

    return label


def config(root: Path, **fields: Any) -> DataConfig:
    given = {"name": "folder", "root": str(root), "size": list(SIZE), "batch_size": 5, "cache": "none"}
    return validate_options(DataConfig, given | fields, "data")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Five training images; the first two have no mask, no number and no class, and tags but for one."""
    write_folder(tmp_path / "data", split=True)
    for number in (0, 2):
        (tmp_path / "data" / "segmentation" / "train" / f"{number:03d}.png").unlink()
    for table in ("height", "weather"):
        path = tmp_path / "data" / f"{table}.csv"
        kept = [
            line for line in path.read_text().splitlines() if not line.startswith(("train/000", "train/002"))
        ]
        path.write_text("\n".join(kept) + "\n")
    return tmp_path / "data"


def labels_of(
    dataset: VisionDataset,
    target: str,
    label: Callable[[Sample], tuple[Tensor, Tensor]],
    cache: Any = "memory",
    folder: Path = Path(),
) -> PseudoLabels:
    return pseudo_labels(dataset, target, unlabeled(dataset, target), label, SIZE, cache, lambda: folder)


def test_samples_without_a_label_are_found(root: Path) -> None:
    dataset = load_dataset(config(root), "train")
    assert unlabeled(dataset, "segmentation") == unlabeled(dataset, "height") == [0, 1]
    assert unlabeled(dataset, "depth") == []  # pixels alone are unknown there
    assert unlabeled(dataset, "things") == [2]  # a tag of it


def test_only_what_is_unknown_is_labeled(root: Path) -> None:
    dataset = load_dataset(config(root), "train")
    labels = [
        labels_of(dataset, "segmentation", brightness),
        labels_of(dataset, "height", constant(7.5)),
        labels_of(dataset, "weather", constant(1)),
        labels_of(dataset, "things", constant([1.0, 1.0])),
    ]
    taught = Taught(dataset, labels)
    for index in range(len(dataset)):
        own, with_labels = dataset[index]["targets"], taught[index]["targets"]
        assert {name: value.dtype for name, value in own.items()} == {
            name: value.dtype for name, value in with_labels.items()
        }
        if index < 2:
            label, sure = brightness(dataset[index])
            assert torch.equal(with_labels["segmentation"], torch.where(sure, label, 255))
            assert with_labels["height"] == 7.5
            assert with_labels["weather"] == 1
        else:
            assert torch.equal(with_labels["segmentation"], own["segmentation"])
            assert with_labels["height"] == own["height"]
            assert with_labels["weather"] == own["weather"]
        for name in ("depth", "normals"):
            assert torch.equal(with_labels[name], own[name])
        assert torch.equal(with_labels["things"][own["things"] >= 0], own["things"][own["things"] >= 0])
        assert (with_labels["things"] >= 0).all()


def test_what_the_teacher_is_not_sure_of_stays_unknown(root: Path) -> None:
    dataset = load_dataset(config(root), "train")
    taught = Taught(dataset, [labels_of(dataset, "height", constant(7.5, False))])
    assert taught[0]["targets"]["height"].isnan()


def test_counts_of_labels_stay_those_of_the_data_set(root: Path) -> None:
    dataset = load_dataset(config(root), "train")
    one = labels_of(dataset, "segmentation", brightness)
    one.fill()
    assert known_labels(Taught(dataset, [one]), ["segmentation"]) == {"segmentation": 3}
    counted = one.counted()
    expected = [brightness(dataset[index])[1] for index in (0, 1)]
    assert counted == Filled(0, 0, 2, 2, int(sum(sure.sum() for sure in expected)), 2 * 24 * 32)


def test_an_image_of_which_the_teacher_is_sure_of_nothing_is_not_counted(root: Path) -> None:
    dataset = load_dataset(config(root), "train")
    one = labels_of(dataset, "height", constant(7.5, False))
    one.fill()
    assert one.counted() == Filled(0, 0, 2, 0, 0, 0)


def test_a_label_moves_with_its_image(root: Path) -> None:
    """What the teacher says of a picture's mirror image is the mirror of what it says of the picture."""
    data = config(root, augment={"flip": True})
    dataset = load_dataset(data, "train")
    taught = Taught(dataset, [labels_of(dataset, "segmentation", brightness)])
    flipped = 0
    for epoch in range(1, 5):
        loader = build_loader(taught, data, train=True, seed=0)
        loader.sampler.set_epoch(epoch)
        plain = build_loader(dataset, data, train=True, seed=0)
        plain.sampler.set_epoch(epoch)
        for batch, without in zip(loader, plain, strict=True):
            assert torch.equal(batch["image"], without["image"])
            mean, std = (torch.tensor(one).view(3, 1, 1) for one in (data.mean, data.std))
            for image, mask, own in zip(
                batch["image"],
                batch["targets"]["segmentation"],
                without["targets"]["segmentation"],
                strict=True,
            ):
                if (own == 255).all():
                    picture = ((image * std + mean) * 255).round().to(torch.uint8)
                    label, sure = brightness({"image": picture, "targets": {}})
                    assert torch.equal(mask, torch.where(sure, label, 255))
                    flipped += not any(torch.equal(picture, dataset[index]["image"]) for index in (0, 1))
                else:
                    assert torch.equal(mask, own)
    assert flipped  # else nothing moved


def test_padding_stays_unknown(root: Path) -> None:
    data = config(root, size=[32, 32], resize="letterbox")
    dataset = load_dataset(data, "train")
    whole = constant(torch.ones(32, 32, dtype=torch.int64))
    one = pseudo_labels(dataset, "segmentation", [0, 1], whole, (32, 32), "memory", lambda: Path())
    sample = Taught(dataset, [one])[0]
    inside = sample["inside"] > 0
    assert not inside.all()
    assert (sample["targets"]["segmentation"][inside] == 1).all()
    assert (sample["targets"]["segmentation"][~inside] == 255).all()


def test_another_process_has_the_labels_without_the_teacher(root: Path) -> None:
    dataset = load_dataset(config(root), "train")
    one = labels_of(dataset, "segmentation", brightness)  # a lambda or a session could not be handed over
    one.fill()
    taught = Taught(dataset, [one])
    copied = ForkingPickler.loads(bytes(ForkingPickler.dumps(taught)))
    assert torch.equal(copied[0]["targets"]["segmentation"], taught[0]["targets"]["segmentation"])


def test_kept_on_disk_they_are_made_once(root: Path, tmp_path: Path) -> None:
    dataset = load_dataset(config(root), "train")
    asked = []

    def counting(sample: Sample) -> tuple[Tensor, Tensor]:
        asked.append(sample)
        return brightness(sample)

    for _ in range(2):
        one = labels_of(dataset, "segmentation", counting, "disk", tmp_path / "cache")
        one.fill()
    assert len(asked) == 2
    label, sure = brightness(dataset[1])
    assert torch.equal(Taught(dataset, [one])[1]["targets"]["segmentation"], torch.where(sure, label, 255))


def test_of_several_data_sets_each_has_its_own(root: Path) -> None:
    write_utkface(root, count=3)
    data = validate_options(
        DataConfig,
        {
            "root": str(root),
            "size": list(SIZE),
            "batch_size": 4,
            "sources": [
                {"name": "folder", "tasks": ["segmentation", "height"]},
                {"name": "utkface", "tasks": ["age"]},
            ],
        },
        "data",
    )
    dataset = load_dataset(data, "train")
    assert isinstance(dataset, SourcesDataset)
    rooms, faces = dataset.parts
    assert unlabeled(rooms, "segmentation") == [0, 1]
    assert unlabeled(faces, "segmentation") == [0, 1, 2]
    with_labels = SourcesDataset(
        "train",
        [
            rooms.taught([labels_of(rooms, "age", constant(30.0))]),
            faces.taught([labels_of(faces, "segmentation", brightness)]),
        ],
    )
    assert with_labels[0]["targets"]["age"] == 30
    assert (with_labels[0]["targets"]["segmentation"] == 255).all()  # no teacher of it there
    label, sure = brightness(faces[2])
    assert torch.equal(with_labels[7]["targets"]["segmentation"], torch.where(sure, label, 255))
    assert with_labels[7]["targets"]["age"] == faces[2]["targets"]["age"]
    assert known_labels(with_labels, ["age", "segmentation"]) == {"age": 3, "segmentation": 3}
    chosen = with_labels.chosen([7, 1])
    assert torch.equal(chosen[1]["targets"]["segmentation"], with_labels[7]["targets"]["segmentation"])
    assert chosen[0]["targets"]["age"] == 30


def test_a_teachers_picture_and_its_mirror(root: Path) -> None:
    dataset = load_dataset(config(root), "train")
    sample = resized(dataset[3], (12, 16))
    assert sample["image"].shape == (3, 12, 16)
    assert sample["targets"] == {}
    normals = {"normals": dataset[3]["targets"]["normals"]}
    back = mirrored({"image": dataset[3]["image"], "targets": normals}, dataset.specs)
    assert torch.equal(back["image"], dataset[3]["image"].flip(-1))
    turned = normals["normals"].flip(-1) * torch.tensor([-1.0, 1.0, 1.0]).view(3, 1, 1)
    assert torch.equal(back["targets"]["normals"], turned)
    assert anything_known(dataset.specs["normals"], turned.numpy()[None]).all()
