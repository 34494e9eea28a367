"""`data.resize` and `data.channels` of every data set: images, targets and padding go the same way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from compactmtl.config.recipe import AugmentConfig, DataConfig
from compactmtl.data import Preprocessing, build_loader, image_fit, load_dataset
from compactmtl.data.coco import CocoDataset
from compactmtl.data.files import FileDataset
from compactmtl.data.jitter import jitter
from compactmtl.data.transforms import Draw, augment
from compactmtl.errors import ConfigError, DataError
from compactmtl.tasks.base import TargetSpec
from compactmtl.tasks.instance_decoding import Instances
from compactmtl.tasks.instance_scoring import InstanceMetrics
from compactmtl.tasks.placement import Placement
from tests.support.layouts.camvid import write_camvid
from tests.support.layouts.ccp import write_ccp
from tests.support.layouts.celebamask import write_celebamask
from tests.support.layouts.cityscapes import write_cityscapes
from tests.support.layouts.coco import write_coco
from tests.support.layouts.folder import write_folder
from tests.support.layouts.nyuv2 import write_nyuv2, write_nyuv2_png
from tests.support.layouts.rgbd import write_rgbd
from tests.support.layouts.utkface import write_utkface

WRITERS: dict[str, Callable[[Path], Any]] = {
    "camvid": write_camvid,
    "ccp": write_ccp,
    "celebamask": write_celebamask,
    "cityscapes": write_cityscapes,
    "coco": write_coco,
    "folder": write_folder,
    "nyuv2": write_nyuv2,
    "rgbd": write_rgbd,
    "utkface": write_utkface,
}
TALL = (64, 24)  # of another shape than any picture of the layouts
FILL = Preprocessing(TALL, resize="letterbox").fit.fill


@pytest.fixture(scope="module", params=WRITERS)
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    root = tmp_path_factory.mktemp(request.param)
    WRITERS[request.param](root)
    return request.param, root


def load(written: tuple[str, Path], **fields: Any) -> Any:
    name, root = written
    return load_dataset(name, "train", root=root, size=TALL, cache="none", **fields)


@pytest.mark.parametrize("how", ["letterbox", "crop"])
def test_every_target_lies_where_its_image_does(written: tuple[str, Path], how: Any) -> None:
    dataset = load(written, resize=how)
    sample = dataset[0]
    place = Placement.of(how, sample["own_size"], TALL)
    assert not place.whole
    inside = torch.from_numpy(place.inside()) > 0
    assert bool(inside.all()) is (how == "crop")
    padding = sample["image"][:, ~inside]
    assert (padding == torch.tensor(FILL, dtype=torch.uint8)[:, None]).all()
    for name, target in sample["targets"].items():
        spec = dataset.specs[name]
        if target.ndim < 2:
            continue
        unknown = {"mask": spec.ignore_index, "instances": -1}.get(spec.kind, 0)
        assert unknown is not None
        assert (target[..., ~inside] == unknown).all(), name
        assert (target[..., inside] != unknown).any(), name


def test_a_letterbox_shows_what_a_stretch_to_its_part_shows(written: tuple[str, Path]) -> None:
    sample = load(written, resize="letterbox")[0]
    place = Placement.of("letterbox", sample["own_size"], TALL)
    name, root = written
    expected = load_dataset(name, "train", root=root, size=place.scaled, cache="none")[0]
    part = (..., *place.visible)
    assert torch.equal(sample["image"][part], expected["image"])
    for target, value in expected["targets"].items():
        if value.ndim >= 2:
            assert torch.equal(sample["targets"][target][part], value), target


@pytest.mark.parametrize("cache", ["memory", "disk", "none"])
def test_every_cache_keeps_where_the_image_lies(
    tmp_path: Path, cache: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_folder(tmp_path / "data", size=(24, 32))
    for _ in range(2):
        dataset = load_dataset(
            "folder", "train", root=tmp_path / "data", size=(32, 32), resize="letterbox", cache=cache
        )
        sample = dataset[0]
        assert sample["own_size"] == (24, 32)
        assert sample["inside"].sum() == 24 * 32
    stretched = load_dataset("folder", "train", root=tmp_path / "data", size=(32, 32), cache=cache)[0]
    assert "own_size" not in stretched and stretched["targets"]["segmentation"].shape == (32, 32)


@pytest.mark.parametrize(("how", "kept"), [("stretch", 1), ("crop", 1), ("letterbox", 2)])
def test_a_disk_cache_depends_on_the_mean_where_it_pads(
    tmp_path: Path, how: Any, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_folder(tmp_path / "data", size=(24, 32))
    for mean in ((0.5, 0.5, 0.5), (0.2, 0.3, 0.4)):
        load_dataset(
            "folder", "train", root=tmp_path / "data", size=(32, 32), resize=how, mean=mean, cache="disk"
        )
    assert len(list((tmp_path / "cache/compactmtl/folder").iterdir())) == kept


def test_gray_of_every_data_set(written: tuple[str, Path]) -> None:
    gray, color = load(written, channels=1)[0]["image"], load(written)[0]["image"]
    assert gray.shape == (1, *TALL) and color.shape == (3, *TALL)
    exact = (color.float() * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(0)
    assert (gray[0] - exact).abs().max() <= 3  # each rounds at another place


def test_a_fourth_channel_that_is_not_there_is_refused(written: tuple[str, Path]) -> None:
    with pytest.raises(DataError, match="channel"):
        load(written, channels=4)[0]


def test_every_sample_that_fills_the_picture_needs_no_padding() -> None:
    dataset = load_dataset("scenes", "val", size=(16, 24), options={"val": 2}, resize="letterbox", channels=1)
    assert dataset[0]["image"].shape == (1, 16, 24)
    assert "inside" not in dataset[0]


def test_mean_and_std_are_as_many_as_the_channels() -> None:
    config = DataConfig.model_validate({"name": "scenes", "size": (8, 8), "channels": 5})
    assert config.mean == (0.449,) * 5 and config.std == (0.226,) * 5
    assert DataConfig(name="scenes", size=(8, 8)).mean == (0.485, 0.456, 0.406)
    with pytest.raises(ConfigError, match="mean needs one value for each of the 1 channels, found 3"):
        load_dataset("scenes", "val", channels=1, mean=[0.5, 0.5, 0.5])


def test_a_class_of_ones_own_says_that_it_can_letterbox() -> None:
    with pytest.raises(ConfigError, match="does not say that it can letterbox"):
        load_dataset("tests.data.test_resize:Own", "train", trust=True, resize="letterbox", size=(8, 8))


class Own:
    """A data set that heeds nothing of data.resize."""

    specs: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, config: DataConfig, split: str) -> None: ...

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {}

    def identifier(self, index: int) -> str:
        return str(index)


@pytest.mark.parametrize(
    "choices",
    [
        Draw(True, 1.0, (0, 0), (0, 0), (1, 1, 1)),
        Draw(False, 1.3, (0.4, -0.6), (0, 0), (1, 1, 1)),
        Draw(True, 1.0, (0, 0), (0.5, -0.7), (1, 1, 1)),
        Draw(False, 1.0, (0, 0), (0, 0), (1, 1, 1), angle=90.0),
    ],
)
def test_padding_moves_with_the_image(tmp_path: Path, choices: Draw) -> None:
    write_folder(tmp_path, size=(24, 32))
    dataset = load_dataset(
        "folder", "train", root=tmp_path, size=(32, 32), resize="letterbox", mean=[0.0, 0.0, 0.0]
    )
    sample = dataset[0]
    sample["image"][:, sample["inside"] > 0] |= 1  # nothing but padding is 0
    moved = augment(sample, dataset.specs, AugmentConfig(shift=6), choices)
    shown = (moved["image"] > 0).any(0)
    edge = shown != (moved["inside"] > 0)  # a zoom mixes the rows beside the padding
    assert edge.sum() <= 2 * 32
    assert (moved["targets"]["depth"][0, moved["inside"] == 0] == 0).all()
    assert (moved["targets"]["segmentation"][moved["inside"] == 0] == 255).all()


def test_colors_change_without_padding_and_padding_not_at_all() -> None:
    images = torch.rand(2, 3, 8, 8) * 255
    inside = torch.zeros(2, 8, 8, dtype=torch.uint8)
    inside[:, 2:6] = 1
    factors = torch.tensor([[1.3, 0.6, 1.2], [0.8, 1.2, 0.5]])
    found = jitter(images, factors, inside)
    torch.testing.assert_close(found[:, :, 2:6], jitter(images[:, :, 2:6], factors))
    assert torch.equal(found[:, :, :2], images[:, :, :2])


@pytest.mark.parametrize("channels", [1, 4, 5])
def test_color_of_other_channels_is_brightness_and_contrast(channels: int) -> None:
    images = 60 + torch.rand(2, channels, 6, 6) * 60
    factors = torch.tensor([[1.2, 1.0, 0.2], [1.0, 0.5, 1.7]])
    bright, flat = jitter(images, factors)
    torch.testing.assert_close(bright, images[0] * 1.2)
    mean = images[1].mean()
    torch.testing.assert_close(flat, mean + (images[1] - mean) * 0.5)


def test_a_batch_of_letterboxes_is_augmented_the_same_for_any_number_of_workers(tmp_path: Path) -> None:
    write_folder(tmp_path, size=(24, 32))
    config = DataConfig.model_validate(
        {
            "name": "folder", "root": str(tmp_path), "size": (32, 32), "batch_size": 4, "resize": "letterbox",
            "augment": {"flip": True, "zoom": (1.0, 1.4), "rotate": 10, "shift": 3, "color": 0.4},
        }
    )  # fmt: skip
    dataset = load_dataset(config, "train")
    own, *others = (
        list(build_loader(dataset, config.model_copy(update={"workers": count}), train=True, seed=0))
        for count in (0, 1, 2)
    )
    assert own[0]["image"].shape == (4, 3, 32, 32) and torch.isfinite(own[0]["image"]).all()
    assert not torch.equal(own[0]["image"], own[1]["image"])
    for batches in others:
        assert len(batches) == len(own) == 2
        for batch, expected in zip(batches, own, strict=True):
            assert torch.equal(batch["image"], expected["image"])
            assert all(
                torch.equal(batch["targets"][name].nan_to_num(), target.nan_to_num())
                for name, target in expected["targets"].items()
            )


def test_instances_of_a_letterbox_are_scored_at_the_images_own_size(tmp_path: Path) -> None:
    write_coco(tmp_path)
    scores = {}
    for how in ("stretch", "letterbox", "crop"):
        dataset = load_dataset("coco", "train", root=tmp_path, size=(160, 96), resize=how)
        assert isinstance(dataset, CocoDataset)
        drawn: list[Instances] = []
        metrics = InstanceMetrics("it", dataset.specs["instances"].classes, lambda output: drawn.pop(0))  # noqa: B023
        for index in range(len(dataset)):
            sample = dataset[index]
            numbers, labels = sample["targets"]["instances"]
            every = numbers[numbers > 0].unique()
            numbers = torch.where(numbers > 0, torch.searchsorted(every, numbers) + 1, 0)
            classes = torch.stack([labels[numbers == n + 1][0] for n in range(len(every))])
            drawn.append(Instances(numbers, classes, torch.ones(len(every))))
            target = sample["targets"]["instances"][None]
            metrics.update(torch.zeros(1, 1), target, [sample["references"]["instances"]])
            boxes, _ = dataset.boxes(index)
            assert (boxes >= 0).all() and (boxes <= np.array([96, 160, 96, 160])).all()
        scores[how] = metrics.compute()["ap50"]
    assert scores["stretch"] > 0.9 and scores["letterbox"] > 0.9  # resampling costs thin edges
    assert scores["crop"] < scores["letterbox"]  # what was cut off is missed


class Heeding(Own):
    """A data set that does."""

    specs = {"it": TargetSpec("mask", classes=("a", "b"))}  # noqa: RUF012
    resizes = ("letterbox",)

    def __init__(self, config: DataConfig, split: str) -> None:
        self.fit = image_fit(config)

    def __getitem__(self, index: int) -> dict[str, Any]:
        mask = np.ones((4, 8), np.uint8)
        image = torch.from_numpy(self.fit.picture(np.full((1, 4, 8), 9, np.uint8)))
        labels = torch.from_numpy(self.fit.map(mask, 255)).long()
        return {"image": image, "targets": {"it": labels}, "own_size": (4, 8)}


def test_a_class_that_letterboxes_has_its_padding_ignored() -> None:
    fields = {"resize": "letterbox", "channels": 1, "size": (8, 8)}
    dataset = load_dataset("tests.data.test_resize:Heeding", "train", trust=True, **fields)
    assert dataset.specs["it"].ignore_index == 255
    sample = dataset[0]
    assert sample["inside"].sum() == 32 and (sample["targets"]["it"] == 255).sum() == 32


def test_a_recipe_without_these_keys_is_the_run_that_it_was() -> None:
    """Defaults decide no hash, so that runs of earlier versions are resumed."""
    fields = DataConfig(name="scenes", size=(8, 8)).model_dump(exclude_defaults=True)
    assert fields == {"name": "scenes", "size": (8, 8)}
    gray = DataConfig(name="scenes", size=(8, 8), channels=1)
    assert DataConfig.model_validate_json(gray.model_dump_json(), strict=True) == gray


@pytest.mark.parametrize("how", ["camvid", "ccp", "celebamask", "cityscapes", "folder", "nyuv2 png", "rgbd"])
def test_a_map_of_another_size_is_named_with_its_image(tmp_path: Path, how: str) -> None:
    name, _, form = how.partition(" ")
    (write_nyuv2_png if form else WRITERS[name])(tmp_path)
    dataset = load_dataset(name, "train", root=tmp_path, size=(24, 32), cache="none")
    assert isinstance(dataset, FileDataset)
    sources = dataset.sources(0)
    maps = [path for path in sources.files if path.suffix == ".png" and str(path) != dataset.identifier(0)]
    for path in maps:
        with Image.open(path) as picture:
            values = np.asarray(picture)
        Image.fromarray(np.ascontiguousarray(values[:, : values.shape[1] // 2])).save(path)
    with pytest.raises(DataError, match="pixels") as caught:
        dataset[0]
    assert dataset.identifier(0) in caught.value.message
    assert any(str(path) in caught.value.message for path in maps)


@pytest.mark.parametrize("how", [*WRITERS, "nyuv2 png"])
def test_an_image_file_is_opened_once_for_a_sample(
    tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, _, form = how.partition(" ")
    (write_nyuv2_png if form else WRITERS[name])(tmp_path)
    dataset = load_dataset(name, "train", root=tmp_path, size=TALL, cache="none")
    opened: list[str] = []
    former = Image.open

    def counting(file: Any, *args: Any, **kwargs: Any) -> Image.Image:
        opened.append(str(getattr(file, "name", file)))
        return former(file, *args, **kwargs)

    monkeypatch.setattr(Image, "open", counting)
    dataset[0]
    assert opened.count(dataset.identifier(0)) <= 1  # none of a file of arrays
