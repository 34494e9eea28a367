"""Several data sets as one: targets by task, unknown where a data set has none, classes by name."""

from __future__ import annotations

from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from compactmtl.config.recipe import DataConfig
from compactmtl.config.validate import validate_options
from compactmtl.data import build_loader, load_dataset
from compactmtl.data.check import check_dataset
from compactmtl.data.labels import label_lines
from compactmtl.data.sources import SourcesDataset, choose, first, spread
from compactmtl.errors import ConfigError, DataError
from tests.support.layouts.camvid import write_camvid
from tests.support.layouts.ccp import write_ccp
from tests.support.layouts.folder import write_folder
from tests.support.layouts.utkface import write_utkface

FACES: dict[str, Any] = {"name": "utkface", "tasks": ["age", "gender"]}
CLOTHES: dict[str, Any] = {
    "name": "ccp",
    "tasks": ["segmentation", "tags"],
    "options": {"classes": "grouped"},
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Faces (6 a split), clothes (3) and streets (4)."""
    folder = tmp_path_factory.mktemp("data")
    write_utkface(folder, count=6)
    write_ccp(folder / "ccp", count=3)
    write_camvid(folder, count=4)
    return folder


def config(root: Path, *sources: dict[str, Any], **fields: Any) -> DataConfig:
    given = {
        "root": str(root),
        "size": [32, 24],
        "batch_size": 4,
        "sources": list(sources or (FACES, CLOTHES)),
    }
    return validate_options(DataConfig, given | fields, "data")


def sources(root: Path, *given: dict[str, Any], split: Any = "train", **fields: Any) -> SourcesDataset:
    dataset = load_dataset(config(root, *given, **fields), split)
    assert isinstance(dataset, SourcesDataset)
    return dataset


def folder_source(folder: Path, names: list[str], alias: str, **more: Any) -> dict[str, Any]:
    """A folder of one's own whose masks have these classes in the place of floor, wall and block."""
    write_folder(folder, split=True)
    text = (folder / "dataset.yaml").read_text().replace("[floor, wall, block]", f"[{', '.join(names)}]")
    (folder / "dataset.yaml").write_text(text)
    return {"name": "folder", "alias": alias, "root": str(folder), "tasks": ["segmentation"]} | more


def test_samples_come_one_data_set_after_the_other(root: Path) -> None:
    dataset = sources(root)
    faces = load_dataset("utkface", "train", root=str(root), size=(32, 24))
    clothes = load_dataset("ccp", "train", root=str(root), size=(32, 24), options={"classes": "grouped"})
    assert len(dataset) == 9
    assert [dataset.identifier(index) for index in (0, 6)] == [faces.identifier(0), clothes.identifier(0)]
    assert torch.equal(dataset[2]["image"], faces[2]["image"])
    assert torch.equal(dataset[7]["targets"]["segmentation"], clothes[1]["targets"]["segmentation"])
    assert dataset[2]["targets"]["age"] == faces[2]["targets"]["age"]


def test_what_a_data_set_does_not_label_is_unknown(root: Path) -> None:
    dataset = sources(root)
    face, photo = dataset[0]["targets"], dataset[8]["targets"]
    assert face["segmentation"].shape == (32, 24)
    ignore = dataset.specs["segmentation"].ignore_index
    assert set(face["segmentation"].flatten().tolist()) == {ignore}
    assert face["tags"].tolist() == [-1.0] * 10
    assert photo["age"].isnan()
    assert photo["gender"] == dataset.specs["gender"].ignore_index
    for name in dataset.specs:
        assert face[name].dtype == photo[name].dtype


def test_every_kind_of_target_can_be_unknown(root: Path, tmp_path: Path) -> None:
    write_folder(tmp_path, split=True)
    tasks = ["segmentation", "depth", "normals", "weather", "things", "height"]
    own = {"name": "folder", "root": str(tmp_path), "tasks": tasks}
    dataset = sources(root, own, FACES)
    from compactmtl.data.labels import anything_known

    for name in tasks:
        known = dataset[0]["targets"][name].numpy()[None]
        unknown = dataset[len(dataset) - 1]["targets"][name].numpy()[None]
        assert known.shape == unknown.shape
        assert anything_known(dataset.specs[name], known).all(), name
        assert not anything_known(dataset.specs[name], unknown).any(), name


def test_labels_are_counted_by_source_and_task(root: Path) -> None:
    dataset = sources(root)
    lines = label_lines({"train": dataset}, {name: name for name in dataset.specs})
    assert lines[:3] == (
        "labels of train of utkface: age 6 of 6, gender 6 of 6",
        "labels of train of ccp: segmentation 3 of 3, tags 3 of 3",
        "labels of train: age 6 of 9, gender 6 of 9, segmentation 3 of 9, tags 3 of 9",
    )
    assert any(line.startswith("note: utkface: 1 names do not parse") for line in lines)


def test_a_data_set_without_a_label_of_its_task_is_named(root: Path, tmp_path: Path) -> None:
    own = folder_source(tmp_path, ["floor", "wall", "block"], "rooms", tasks=["height"])
    (tmp_path / "height.csv").write_text("image,value\nval/001.jpg,3\nval/003.jpg,4\n")
    dataset = sources(root, own, FACES)
    with pytest.raises(DataError, match="'height': not one sample of split train of rooms has a label"):
        label_lines({"train": dataset}, {name: name for name in dataset.specs})
    targets = {"tall": "height", "taller": "height"}  # a teacher of one of them labels the target of both
    assert label_lines({"train": dataset}, targets, taught={"height"})


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_data_set_whose_labels_are_all_unmapped_is_named(root: Path, tmp_path: Path, split: str) -> None:
    one = folder_source(tmp_path / "one", ["floor", "wall", "block"], "one")
    mapped = {"classes": {"segmentation": {"lamp": "block"}}, "unmapped": "ignore"}
    other = folder_source(tmp_path / "other", ["sofa", "bed", "lamp"], "other", **mapped)
    for path in (tmp_path / "other" / "segmentation" / split).iterdir():
        Image.fromarray(np.zeros((24, 32), np.uint8)).save(path)  # sofas alone
    dataset = sources(root, one, other, split=split)
    with pytest.raises(
        DataError, match=f"not one sample of split {split} of other has a class of it"
    ) as caught:
        label_lines({split: dataset}, {"segmentation": "segmentation"})
    assert "`classes`" in caught.value.hint
    lamp = next((tmp_path / "other" / "segmentation" / split).iterdir())
    Image.fromarray(np.full((24, 32), 2, np.uint8)).save(lamp)
    assert label_lines({split: sources(root, one, other, split=split)}, {"segmentation": "segmentation"})


def test_a_target_under_another_name(root: Path) -> None:
    dataset = sources(root, FACES | {"targets": {"gender": "ethnicity"}}, CLOTHES)
    assert len(dataset.specs["gender"].classes) == 5


def test_a_target_that_is_not_there_is_named(root: Path) -> None:
    with pytest.raises(ConfigError, match="utkface has no target 'ages' for task 'age'") as caught:
        sources(root, FACES | {"targets": {"age": "ages"}}, CLOTHES)
    assert "did you mean 'age'" in caught.value.hint


def test_classes_in_another_order_are_mapped_by_name(root: Path, tmp_path: Path) -> None:
    one = folder_source(tmp_path / "one", ["floor", "wall", "block"], "one")
    other = folder_source(tmp_path / "other", ["block", "floor", "wall"], "other")
    dataset = sources(root, one, other)
    assert dataset.specs["segmentation"].classes == ("floor", "wall", "block")
    mine, theirs = dataset[0]["targets"]["segmentation"], dataset[5]["targets"]["segmentation"]
    table = torch.tensor([2, 0, 1])  # the same pixels: what is 0 in the one is block in the other
    known = mine != 255
    assert torch.equal(theirs[known], table[mine[known]])
    assert torch.equal(theirs == 255, mine == 255)


def test_other_classes_need_a_mapping(root: Path, tmp_path: Path) -> None:
    one = folder_source(tmp_path / "one", ["floor", "wall", "block"], "one")
    other = folder_source(tmp_path / "other", ["ground", "wall", "cube"], "other")
    with pytest.raises(
        ConfigError, match="other has classes that segmentation does not have: ground, cube"
    ) as error:
        sources(root, one, other)
    assert "`classes: {segmentation: {ground: …}}`" in error.value.hint
    given = {"classes": {"segmentation": {"ground": "floor", "cube": "block"}}}
    dataset = sources(root, one, other | given)
    assert torch.equal(dataset[0]["targets"]["segmentation"], dataset[5]["targets"]["segmentation"])
    half = {"classes": {"segmentation": {"ground": "floor"}}}
    with pytest.raises(ConfigError, match="does not have: cube"):
        sources(root, one, other | half)
    ignored = sources(root, one, other | half | {"unmapped": "ignore"})
    mine, theirs = (ignored[index]["targets"]["segmentation"] for index in (0, 5))
    assert torch.equal(theirs, torch.where(mine == 2, 255, mine))


def test_fewer_classes_need_a_word_too(root: Path, tmp_path: Path) -> None:
    one = folder_source(tmp_path / "one", ["floor", "wall", "block"], "one")
    other = folder_source(tmp_path / "other", ["floor", "wall"], "other")
    for path in (tmp_path / "other" / "segmentation").rglob("*.png"):
        from PIL import Image

        Image.fromarray(torch.zeros(24, 32, dtype=torch.uint8).numpy()).save(path)
    with pytest.raises(ConfigError, match="other does not have block of segmentation"):
        sources(root, one, other)
    dataset = sources(root, one, other | {"classes": {"segmentation": {"floor": "floor"}}})
    assert (dataset[5]["targets"]["segmentation"] == 0).all()


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ({"grund": "floor"}, "'grund' is no class of folder"),
        ({"ground": "flor"}, "'flor' is no class of segmentation"),
    ],
)
def test_a_mapping_with_a_missing_class(
    root: Path, tmp_path: Path, classes: dict[str, str], message: str
) -> None:
    one = folder_source(tmp_path / "one", ["floor", "wall", "block"], "one")
    other = folder_source(
        tmp_path / "other", ["ground", "wall", "block"], "other", classes={"segmentation": classes}
    )
    with pytest.raises(ConfigError, match=message) as caught:
        sources(root, one, other)
    assert caught.value.exit_code == 2
    assert "did you mean" in caught.value.hint


def test_several_classes_become_one(root: Path, tmp_path: Path) -> None:
    own = folder_source(
        tmp_path,
        ["floor", "wall", "block"],
        "one",
        classes={"segmentation": {"wall": "room", "floor": "room"}},
    )
    dataset = sources(root, own, FACES)
    assert dataset.specs["segmentation"].classes == ("room", "block")
    assert set(dataset[0]["targets"]["segmentation"].flatten().tolist()) == {0, 1, 255}


def test_tags_that_became_one_are_present_where_one_is(root: Path, tmp_path: Path) -> None:
    from compactmtl.config.sources import SourceConfig
    from compactmtl.data.class_map import Labels, class_map, combined
    from compactmtl.tasks import TargetSpec

    first_one = Labels(
        SourceConfig(name="a", tasks=("t",)), "t", TargetSpec("multilabel", ("x", "y", "z")), 3
    )
    source = SourceConfig(name="b", tasks=("t",), classes={"t": {"u": "x", "v": "x", "w": "y"}})
    other = Labels(source, "t", TargetSpec("multilabel", ("u", "v", "w")), 3)
    spec = combined("t", [first_one, other])
    mapping = class_map("t", other, spec)
    for given, expected in (
        ([1, 0, 0], [1, 0, -1]),
        ([0, 0, 1], [0, 1, -1]),
        ([-1, 0, -1], [-1, -1, -1]),
        ([-1, 1, 0], [1, 0, -1]),
    ):
        assert mapping(torch.tensor(given, dtype=torch.float32)).tolist() == expected


def test_two_data_sets_with_one_scalar_have_the_statistics_of_all(root: Path) -> None:
    both = [FACES | {"tasks": ["age"], "alias": alias} for alias in ("one", "two")]
    alone = load_dataset("utkface", "train", root=str(root), size=(32, 24)).specs["age"]
    spec = sources(root, *both).specs["age"]
    assert [spec.mean, spec.std] == pytest.approx([alone.mean, alone.std])


def test_a_task_is_of_one_kind_and_unit(root: Path, tmp_path: Path) -> None:
    own = folder_source(
        tmp_path, ["floor", "wall", "block"], "rooms", tasks=["age"], targets={"age": "weather"}
    )
    with pytest.raises(ConfigError, match="age has kind 'scalar' in utkface and 'class' in rooms"):
        sources(root, FACES, own)
    with pytest.raises(ConfigError, match="age has unit 'years' in utkface and 'cm' in rooms"):
        sources(root, FACES, own | {"targets": {"age": "height"}})


def test_own_sizes_are_of_training_alone(root: Path) -> None:
    given = (FACES | {"size": [16, 16]}, CLOTHES)
    mixing = {"batches": "alternating"}
    train = sources(root, *given, mixing=mixing)
    assert train[0]["image"].shape == (3, 16, 16)
    assert train[0]["targets"]["segmentation"].shape == (16, 16)
    assert train[6]["image"].shape == (3, 32, 24)
    assert sources(root, *given, mixing=mixing, split="val")[0]["image"].shape == (3, 32, 24)


def test_names_in_a_fingerprint_begin_with_the_source(root: Path) -> None:
    from compactmtl.data.fingerprint import fingerprint

    names = list(fingerprint(sources(root)))
    assert names[0].startswith("utkface/")
    assert names[6].startswith("ccp/")
    assert len(set(names)) == 9


def test_the_first_and_the_spread_samples_are_of_every_source(root: Path) -> None:
    dataset = sources(root)
    assert first(dataset, 3) == [0, 1, 6]
    assert first(dataset, 1) == [0, 6]
    assert first(dataset, 100) == list(range(9))
    assert spread(dataset, 3) == [0, 3, 6]
    assert spread(dataset, 18) == [n // 2 for n in range(18)]
    for count in range(1, 12):  # a kit knows how many it packed, and nothing else
        assert first(dataset, len(first(dataset, count))) == first(dataset, count)
    chosen = choose(dataset, first(dataset, 3))
    assert [chosen.identifier(n) for n in range(3)] == [dataset.identifier(n) for n in (0, 1, 6)]
    plain = load_dataset("utkface", "train", root=str(root), size=(32, 24))
    assert (first(plain, 2), first(plain, 99), spread(plain, 3)) == ([0, 1], [0, 1, 2, 3, 4, 5], [0, 2, 4])


def test_a_check_counts_by_source_and_task(root: Path) -> None:
    report = check_dataset(config(root))
    assert report.problems == []
    assert report.counts["train"] == 9
    assert report.counts["train of utkface"] == 6
    assert report.known["train of ccp"] == {"segmentation": 3, "tags": 3}
    assert report.known["val"] == {"age": 6, "gender": 6, "segmentation": 3, "tags": 3}
    assert "age" in report.targets


def test_evaluation_has_batches_of_one_source(root: Path) -> None:
    given = config(root)
    batches = list(build_loader(load_dataset(given, "val"), given, train=False, seed=0))
    assert [batch["sources"] for batch in batches] == [["utkface"] * 4, ["utkface"] * 2, ["ccp"] * 3]


def test_several_data_sets_can_be_handed_to_a_worker_that_is_started_anew(root: Path) -> None:
    given = config(root, cache="none", augment={"flip": True, "shift": 2})
    loader = build_loader(load_dataset(given, "train"), given, train=True, seed=0)
    view = ForkingPickler.loads(ForkingPickler.dumps(loader.dataset))
    for batch, keys in zip(loader, loader.sampler, strict=True):
        assert torch.equal(view[keys]["image"], batch["image"])
