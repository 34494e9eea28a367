"""COCO in its real layout: instances, overlaps, crowds, stuff, boxes and damaged files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from compactmtl.config.recipe import DataConfig
from compactmtl.data import build_loader, check_dataset, load_dataset
from compactmtl.data.check import sample_sheet
from compactmtl.data.coco import CocoDataset
from compactmtl.data.coco_annotations import box_of, draw
from compactmtl.data.coco_stuff import STUFF, THINGS, stuff_table
from compactmtl.errors import ConfigError, DataError
from compactmtl.tasks.instance_scoring import to_rle
from tests.support.layouts.coco import CATEGORIES, SIZE, write_coco

HALF = (SIZE[0] // 2, SIZE[1] // 2)


def config(root: Path, *, size: tuple[int, int] = SIZE, **fields: Any) -> DataConfig:
    return DataConfig.model_validate({"name": "coco", "size": size, "root": str(root)} | fields)


def coco(root: Path, split: Any = "train", **fields: Any) -> CocoDataset:
    dataset = load_dataset(config(root, **fields), split)
    assert isinstance(dataset, CocoDataset)
    return dataset


def edit(folder: Path, split: str, change: Any) -> None:
    path = folder / "annotations" / f"instances_{split}2017.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_the_formats_are_those_of_the_specification(tmp_path: Path) -> None:
    write_coco(tmp_path)
    dataset = coco(tmp_path, size=HALF)
    assert dataset.specs["instances"].classes == tuple(CATEGORIES.values())
    assert dataset.specs["segmentation"].classes == ("background", *CATEGORIES.values())
    sample = dataset[0]
    assert (sample["image"].dtype, sample["image"].shape) == (torch.uint8, (3, *HALF))
    instances = sample["targets"]["instances"]
    assert (instances.dtype, instances.shape) == (torch.int64, (2, *HALF))
    assert sample["targets"]["segmentation"].shape == HALF
    assert len(dataset) == 4 and dataset.identifier(0).endswith("000000000009.jpg")


@pytest.mark.parametrize("cache", ["memory", "disk", "none"])
def test_instances_lie_where_their_polygons_are_the_smaller_on_top(tmp_path: Path, cache: str) -> None:
    write_coco(tmp_path)
    numbers, labels = coco(tmp_path, cache=cache)[0]["targets"]["instances"]
    expected = torch.zeros(SIZE, dtype=torch.int64)
    expected[50:, 60:] = -1  # the crowd
    expected[8:32, 10:40] = expected[36:52, 10:40] = 1  # a person in two parts
    expected[16:40, 30:50] = 2  # the dog in front
    assert torch.equal(numbers, expected)
    assert torch.equal(labels[numbers == 1], torch.zeros_like(labels[numbers == 1]))
    assert set(labels[numbers == 2].tolist()) == {1} and set(labels[numbers == -1].tolist()) == {2}


def test_segmentation_is_the_class_of_each_pixel_and_crowds_have_theirs(tmp_path: Path) -> None:
    write_coco(tmp_path)
    labels = coco(tmp_path)[0]["targets"]["segmentation"]
    assert [int(labels[y, x]) for y, x in ((0, 0), (20, 12), (20, 35), (55, 70))] == [0, 1, 2, 3]


def test_things_and_stuff_come_from_the_maps_where_asked_for(tmp_path: Path) -> None:
    write_coco(tmp_path, stuff=True)
    dataset = coco(tmp_path, options={"stuff": True})
    spec, labels = dataset.specs["segmentation"], dataset[0]["targets"]["segmentation"]
    assert spec.classes == (*CATEGORIES.values(), *STUFF)
    names = [spec.classes[int(labels[y, x])] for y, x in ((0, 0), (20, 12), (20, 35), (55, 2))]
    assert names == ["sky-other", "person", "dog", "grass"]
    assert int(labels[-1, 0]) == spec.ignore_index


def test_stuff_without_its_maps_says_where_they_are_to_be_had(tmp_path: Path) -> None:
    write_coco(tmp_path)
    with pytest.raises(DataError, match="stuffthingmaps") as error:
        coco(tmp_path, options={"stuff": True})
    assert "cocostuff" in error.value.hint


def test_the_table_of_stuff_covers_every_number_in_use() -> None:
    names = [THINGS[number] for number in sorted(THINGS)]
    table = stuff_table(names)
    assert (len(THINGS), len(STUFF)) == (80, 91)
    assert sorted(set(table.tolist())) == [*range(171), 255]
    assert table[0] == 0 and table[89] == 79 and table[91] == 80 and table[181] == 170 and table[11] == 255


def test_a_choice_of_classes_leaves_out_the_others_and_images_without(tmp_path: Path) -> None:
    folder = write_coco(tmp_path)

    def no_dog(content: dict[str, Any]) -> None:
        first = content["images"][0]["id"]
        content["annotations"] = [
            one for one in content["annotations"] if (one["image_id"], one["category_id"]) != (first, 18)
        ]

    edit(folder, "train", no_dog)
    dataset = coco(tmp_path, options={"classes": ["dog"]})
    assert len(dataset) == 3 and dataset.specs["instances"].classes == ("dog",)
    assert set(dataset[0]["targets"]["instances"][0].flatten().tolist()) == {0, 1}
    assert len(coco(tmp_path, options={"classes": ["dog"], "empty": True})) == 4
    with pytest.raises(ConfigError, match="no class 'cat'"):
        coco(tmp_path, options={"classes": ["cat"]})


def test_boxes_are_in_pixels_of_the_network_and_leave_out_crowds(tmp_path: Path) -> None:
    write_coco(tmp_path)
    boxes, labels = coco(tmp_path, size=HALF).boxes(0)
    np.testing.assert_allclose(boxes, [[5, 4, 20, 26], [15, 8, 25, 20]], atol=1e-4)  # float32
    assert labels.tolist() == [0, 1]


def test_run_lengths_polygons_and_compressed_run_lengths_draw_alike(tmp_path: Path) -> None:
    from pycocotools import mask

    polygon = [[10.0, 8.0, 40.0, 8.0, 40.0, 32.0, 10.0, 32.0]]
    compressed = mask.merge(mask.frPyObjects(polygon, *SIZE))
    inside = mask.decode(compressed)
    edges = np.flatnonzero(np.diff(inside.ravel(order="F"))) + 1
    plain = {"size": list(SIZE), "counts": np.diff([0, *edges, inside.size]).tolist()}
    drawn = [
        draw([{"segmentation": form, "area": 1, "iscrowd": 0, "label": 0}], SIZE, SIZE)[0]
        for form in (polygon, compressed, plain)
    ]
    assert (drawn[0] == drawn[1]).all() and (drawn[1] == drawn[2]).all() and drawn[0].sum() == 24 * 30


@pytest.mark.parametrize(
    "polygon",
    [
        [0.0, 0.0, 1e9, 0.0, 1e9, 1e9],
        [0.0, 0.0, 1e300, 0.0, 5.0, 5.0],
        [0.0, 0.0, float("nan"), 0.0, 5.0, 5.0],
        [1e9, 1e9, 1e9 + 5, 1e9, 1e9, 1e9 + 5],
        [0.0, 0.0, 60_000.0, 0.0] * 20,
    ],
)
def test_a_polygon_whose_outline_no_memory_holds_is_refused(polygon: list[float]) -> None:
    """pycocotools asks for memory for each pixel of the outline, and ends the process where it gets none."""
    with pytest.raises(DataError, match="a polygon is"):
        draw([{"segmentation": [polygon], "area": 1, "iscrowd": 0, "label": 0}], SIZE, SIZE)
    with pytest.raises(DataError, match="a polygon is"):
        box_of([polygon], SIZE)


def test_evaluation_carries_the_instances_at_the_images_own_size(tmp_path: Path) -> None:
    write_coco(tmp_path)
    dataset, setting = coco(tmp_path, "val", size=(16, 16)), config(tmp_path, size=(16, 16), batch_size=3)
    batches = list(build_loader(dataset, setting, train=False, seed=0))
    assert [len(batch["references"]["instances"]) for batch in batches] == [3, 1]
    reference = batches[0]["references"]["instances"][0]
    assert (reference.height, reference.width, len(reference.annotations)) == (*SIZE, 3)
    assert "references" not in next(iter(build_loader(dataset, setting, train=True, seed=0)))


def test_a_set_of_few_images_may_repeat_them_in_training_only(tmp_path: Path) -> None:
    write_coco(tmp_path)
    options = {"repeat": 3, "train_on": "val"}
    train, val = (coco(tmp_path, split, options=options) for split in ("train", "val"))
    assert (len(train), len(val)) == (12, 4)
    assert train.identifier(5) == train.identifier(1) == val.identifier(1)
    assert torch.equal(train[5]["image"], val[1]["image"])


def test_the_check_counts_and_shows(tmp_path: Path) -> None:
    write_coco(tmp_path)
    report = check_dataset(config(tmp_path))
    assert (report.counts, report.problems) == ({"train": 4, "val": 4}, [])
    assert "train: 8 instances, 1 crowds" in report.notes
    assert sample_sheet(coco(tmp_path), 2).ndim == 3


def test_the_check_finds_what_does_not_fit(tmp_path: Path) -> None:
    folder = write_coco(tmp_path)
    first, second, third, _ = sorted((folder / "train2017").iterdir())
    first.write_bytes(first.read_bytes()[:200])
    second.unlink()
    Image.new("RGB", (40, 30)).save(third)
    Image.new("RGB", (40, 30)).save(folder / "val2017" / "extra.jpg")
    report = check_dataset(config(tmp_path))
    text = "\n".join(report.problems)
    assert len(report.problems) == 3 and first.name in text and second.name in text
    assert "40x30 pixels, but its annotations are of 80x60" in text
    assert any("extra.jpg" in note for note in report.notes)


def test_an_empty_segmentation_is_passed_over_and_told(tmp_path: Path) -> None:
    folder = write_coco(tmp_path)
    edit(folder, "val", lambda content: content["annotations"][0].update(segmentation=[]))
    numbers, labels = coco(tmp_path, "val")[0]["targets"]["instances"]
    assert set(labels[numbers > 0].tolist()) == {1}  # the dog alone
    assert any(
        "1 annotations of val have an empty segmentation" in n for n in check_dataset(config(tmp_path)).notes
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda content: content.pop("categories"), "'categories'"),
        (lambda content: content["images"][0].pop("height"), "'height'"),
        (lambda content: content["annotations"][0].update(image_id=5), "an image 5 that is not listed"),
        (lambda content: content["annotations"][0].update(category_id=99), "category 99, which has no name"),
    ],
)
def test_a_wrong_annotation_file_is_named_with_the_key(tmp_path: Path, change: Any, said: str) -> None:
    folder = write_coco(tmp_path)
    edit(folder, "train", change)
    with pytest.raises(DataError, match=r"instances_train2017\.json") as error:
        coco(tmp_path)
    assert said in error.value.message


@pytest.mark.parametrize(
    "none",
    [
        [[1.0, 2.0, 3.0]],
        {"counts": [20, 30, 728], "size": None},
        {"counts": [-20, 30, 758], "size": None},
        {"counts": [20.5, 29.5, 718], "size": None},
        {"counts": "0000", "size": None},
        {"counts": "oo9", "size": None},
        {"counts": "oo", "size": None},
    ],
    ids=[
        "a corner and a half",
        "too few pixels",
        "less than none",
        "half a pixel",
        "compressed",
        "not to be decoded",
        "breaks off",
    ],
)
def test_a_segmentation_that_is_none_is_named_with_its_image(tmp_path: Path, none: Any) -> None:
    folder = write_coco(tmp_path)

    def change(content: Any) -> None:
        first = content["annotations"][0]
        image = next(one for one in content["images"] if one["id"] == first["image_id"])
        size = [image["height"], image["width"]]
        first.update(segmentation={**none, "size": size} if isinstance(none, dict) else none)

    edit(folder, "train", change)
    with pytest.raises(DataError, match=r"000000000009\.jpg"):
        coco(tmp_path)


def test_missing_data_says_where_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        coco(tmp_path)
    assert "cocodataset.org" in error.value.hint
    (write_coco(tmp_path) / "annotations" / "instances_train2017.json").unlink()
    with pytest.raises(DataError, match=r"instances_train2017\.json: no such file"):
        coco(tmp_path)
    assert len(coco(tmp_path, "val")) == 4


def test_an_image_without_a_stuff_map_has_its_instances(tmp_path: Path) -> None:
    folder = write_coco(tmp_path, stuff=True)
    before = load_dataset(config(tmp_path, options={"stuff": True}), "train")
    whole = [before[index] for index in range(len(before))]
    sorted((folder / "stuffthingmaps" / "train2017").iterdir())[0].unlink()
    dataset = load_dataset(config(tmp_path, options={"stuff": True}), "train")
    assert len(dataset) == len(whole)
    assert torch.equal(dataset[0]["targets"]["instances"], whole[0]["targets"]["instances"])
    assert (dataset[0]["targets"]["segmentation"] == 255).all()
    report = check_dataset(config(tmp_path, options={"stuff": True}))
    assert report.known["train"] == {"instances": 4, "segmentation": 3}
    assert any(note.startswith("1 of the images of train have no segmentation") for note in report.notes)


def test_compressed_run_lengths_are_read_as_pycocotools_writes_them() -> None:
    from pycocotools import mask

    random = np.random.default_rng(0)
    for share in (0.0, 0.02, 0.5, 1.0):
        for size in ((1, 1), (24, 32), (61, 47)):
            drawn = np.asfortranarray(random.random(size) < share, np.uint8)
            coded = mask.encode(drawn)
            assert to_rle({"size": list(size), "counts": coded["counts"]}, size)["counts"] == coded["counts"]
