"""CelebAMask-HQ: merging parts, classes, attributes and the official split."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from compactmtl.config.recipe import DataConfig
from compactmtl.data import check_dataset, load_dataset
from compactmtl.data.celebamask import (
    ATTRIBUTES,
    CLASSES,
    MAPPING,
    MERGED,
    PARTS,
    SPLITS,
    find_parts,
    merge_parts,
    read_mapping,
)
from compactmtl.data.labels import known_labels
from compactmtl.errors import ConfigError, DataError
from tests.support.layouts.celebamask import write_celebamask
from tools.prepare_celebamask import main as prepare


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_celebamask(tmp_path, count=4)


def config(root: Path, **fields: Any) -> DataConfig:
    return DataConfig.model_validate({"name": "celebamask", "size": (64, 64), "root": str(root)} | fields)


def test_the_split_is_celebas_by_the_mapping(root: Path) -> None:
    for number, split in enumerate(SPLITS):
        dataset = load_dataset(config(root), split)
        stems = [int(Path(dataset.identifier(i)).stem) for i in range(len(dataset))]
        assert stems == [number, number + 3, number + 6, number + 9]


def test_the_mappings_bounds(tmp_path: Path) -> None:
    lines = [f"{i} {o} {o + 1:06d}.jpg" for i, o in enumerate((0, 162770, 162771, 182637, 182638, 202598))]
    path = tmp_path / MAPPING
    path.write_text("idx orig_idx orig_file\n" + "\n".join(lines))
    assert list(read_mapping(path).values()) == ["train", "train", "val", "val", "test", "test"]
    path.write_text("idx orig_idx orig_file\n0 x 3.jpg\n")
    with pytest.raises(DataError, match=":2: expected idx"):
        read_mapping(path)


def test_later_parts_cover_earlier_ones(root: Path) -> None:
    sample = load_dataset(config(root), "train")[0]
    labels = sample["targets"]["segmentation"]
    assert (labels.dtype, labels.shape, sample["image"].shape) == (torch.int64, (64, 64), (3, 64, 64))
    names = [[CLASSES[labels[y, x]] for x in (4, 28, 20)] for y in (4, 12, 28, 36, 60)]
    assert names == [
        ["background", "hair", "hair"],
        ["background", "hair", "hair"],
        ["background", "skin", "l_eye"],
        ["background", "nose", "skin"],
        ["background", "neck", "background"],
    ]


def test_an_absent_part_has_no_file(root: Path) -> None:
    dataset = load_dataset(config(root), "train")
    without = next(i for i in range(4) if Path(dataset.identifier(i)).stem == "3")
    assert PARTS.index("nose") + 1 not in dataset[without]["targets"]["segmentation"]


def test_three_classes_are_background_skin_and_hair(root: Path) -> None:
    fine = load_dataset(config(root), "val")[0]["targets"]["segmentation"]
    dataset = load_dataset(config(root, options={"classes": 3}), "val")
    coarse = dataset[0]["targets"]["segmentation"]
    assert dataset.specs["segmentation"].classes == ("background", "skin", "hair")
    for name, region in (("background", 0), ("nose", 1), ("l_eye", 1), ("neck", 1), ("hair", 2)):
        assert (coarse[fine == CLASSES.index(name)] == region).all()


def test_attributes_are_one_target_and_one_each(root: Path) -> None:
    dataset = load_dataset(config(root, options={"attributes": ["Smiling", "Male"]}), "train")
    assert list(dataset.specs) == ["segmentation", "attributes", "smiling", "male"]
    assert dataset.specs["attributes"].classes == ("Smiling", "Male")
    lines = (root / "CelebAMask-HQ" / ATTRIBUTES).read_text().splitlines()
    for index in range(4):
        number = int(Path(dataset.identifier(index)).stem)
        file, *values = lines[2 + number].split()
        assert file == f"{number}.jpg"
        given = dict(zip(lines[1].split(), values, strict=True))
        targets = dataset[index]["targets"]
        expected = [float(given["Smiling"] == "1"), float(given["Male"] == "1")]
        assert targets["attributes"].tolist() == expected
        assert [targets["smiling"].item(), targets["male"].item()] == expected
        assert targets["male"].dtype == torch.int64


def test_an_unknown_attribute_names_those_there_are(root: Path) -> None:
    with pytest.raises(ConfigError, match="'Smile'") as caught:
        load_dataset(config(root, options={"attributes": ["Smile"]}), "train")
    assert "Smiling" in caught.value.hint


def test_without_lists_the_split_is_fixed_and_said_and_attributes_are_not_offered(tmp_path: Path) -> None:
    root = write_celebamask(tmp_path, count=10, side=8, lists=False)
    sizes = [len(load_dataset(config(root), split)) for split in ("train", "val", "test")]
    assert sizes == [24, 3, 3]
    assert list(load_dataset(config(root), "val").specs) == ["segmentation"]
    notes = " ".join(check_dataset(config(root)).notes)
    assert ATTRIBUTES in notes and "not the official split" in notes
    with pytest.raises(DataError, match=ATTRIBUTES):
        load_dataset(config(root, options={"attributes": ["Male"]}), "train")


def test_images_without_masks_are_passed_over(root: Path) -> None:
    shutil.copy(root / "CelebAMask-HQ/CelebA-HQ-img/0.jpg", root / "CelebAMask-HQ/CelebA-HQ-img/99.jpg")
    report = check_dataset(config(root))
    assert report.problems == []
    assert "1 images have no mask" in report.notes[0]
    assert sum(report.counts.values()) == 12


def test_damage_is_named(root: Path) -> None:
    mask = root / "CelebAMask-HQ/CelebAMask-HQ-mask-anno/0/00003_skin.png"
    mask.write_bytes(b"")
    assert str(mask) in check_dataset(config(root)).problems[0]
    lists = root / "CelebAMask-HQ" / ATTRIBUTES
    lists.write_text(lists.read_text().replace("0.jpg  ", "0.jpg 7 ", 1))
    assert f"{ATTRIBUTES}:3" in check_dataset(config(root)).problems[0]


def test_prepared_label_maps_give_the_same_and_a_second_run_makes_none(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = [load_dataset(config(root), split)[i] for split in ("train", "test") for i in range(4)]
    assert prepare([str(root)]) == 0
    assert "12 faces merged, 0 were there" in capsys.readouterr().out
    merged = root / "CelebAMask-HQ" / MERGED
    assert sorted(path.name for path in merged.iterdir()) == sorted(f"{n}.png" for n in range(12))
    shutil.rmtree(root / "CelebAMask-HQ" / "CelebAMask-HQ-mask-anno")
    again = [load_dataset(config(root), split)[i] for split in ("train", "test") for i in range(4)]
    for a, b in zip(parts, again, strict=True):
        assert torch.equal(a["targets"]["segmentation"], b["targets"]["segmentation"])


def test_preparing_goes_on_where_it_was_and_past_damage(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = root / "CelebAMask-HQ"
    whole = (folder / "CelebAMask-HQ-mask-anno/0/00005_hair.png").read_bytes()
    (folder / "CelebAMask-HQ-mask-anno/0/00005_hair.png").write_bytes(b"")
    assert prepare([str(root)]) == 2
    printed = capsys.readouterr()
    assert "11 faces merged" in printed.out and "00005_hair.png" in printed.err
    (folder / "CelebAMask-HQ-mask-anno/0/00005_hair.png").write_bytes(whole)
    assert prepare([str(root)]) == 0
    assert "1 faces merged, 11 were there" in capsys.readouterr().out
    assert prepare([str(root / "nowhere")]) == 2


def test_parts_of_unequal_size_are_refused(tmp_path: Path) -> None:
    for name, side in (("skin", 4), ("hair", 5)):
        Image.fromarray(np.full((side, side), 255, np.uint8)).save(tmp_path / f"00000_{name}.png")
    (tmp_path / "CelebAMask-HQ-mask-anno").mkdir()
    for path in tmp_path.glob("*.png"):
        path.rename(tmp_path / "CelebAMask-HQ-mask-anno" / path.name)
    found, _ = find_parts(tmp_path)
    with pytest.raises(DataError, match="00000_hair"):
        merge_parts(found[0])


def test_a_flip_exchanges_left_and_right(root: Path) -> None:
    spec = load_dataset(config(root, options={"classes": 19}), "train").specs["segmentation"]
    assert spec.mirrored == (("l_eye", "r_eye"), ("l_brow", "r_brow"), ("l_ear", "r_ear"))
    sided = {name for name in spec.classes if name.startswith(("l_", "r_")) and not name.endswith("lip")}
    assert sided == {name for pair in spec.mirrored for name in pair}
    assert not load_dataset(config(root, options={"classes": 3}), "train").specs["segmentation"].mirrored


def test_a_face_without_a_mask_or_a_row_is_unknown_to_that_task_alone(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root, tmp_path / "faces")
    folder = next((tmp_path / "faces").rglob("CelebA-HQ-img")).parent
    before = load_dataset(config(tmp_path / "faces"), "train")
    whole = [before[index] for index in range(len(before))]
    masked, listed = (Path(before.identifier(index)) for index in (0, 1))
    for mask in (folder / "CelebAMask-HQ-mask-anno").rglob(f"{int(masked.stem):05d}_*.png"):
        mask.unlink()
    path = folder / "CelebAMask-HQ-attribute-anno.txt"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if not line.startswith(f"{listed.name} ")))
    dataset = load_dataset(config(tmp_path / "faces"), "train")
    assert len(dataset) == len(whole)
    face, other = dataset[0]["targets"], dataset[1]["targets"]
    assert (face["segmentation"] == 255).all()
    assert torch.equal(face["attributes"], whole[0]["targets"]["attributes"])
    assert torch.equal(other["segmentation"], whole[1]["targets"]["segmentation"])
    assert other["attributes"].tolist() == [-1, -1]
    assert other["male"] == dataset.specs["male"].ignore_index
    count = len(dataset)
    assert known_labels(dataset, dataset.specs) == dict.fromkeys(dataset.specs, count - 1)
    assert before.specs["male"].ignore_index is None  # as it was where nothing is unknown
