"""A class of the user's as a data set: the documented example, its caches, and every mistake."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from compactmtl.cli.main import main
from compactmtl.config import trusting
from compactmtl.config.recipe import DataConfig
from compactmtl.data import check_dataset, load_dataset
from compactmtl.data.checked import checked
from compactmtl.data.datasets import dataset_module
from compactmtl.errors import ConfigError, DataError
from compactmtl.tasks import TargetSpec

DOCUMENT = Path(__file__).parents[2] / "docs" / "how-to" / "own-data.md"


@pytest.fixture(autouse=True)
def trusted() -> Iterator[None]:
    """What a class does when it may run; whether it may is tested on its own."""
    with trusting():
        yield


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the Python path with birds in folders of their kind, and the documented class."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 5), ("val", 2)):
        for kind in ("owl", "wren"):
            folder = tmp_path / "birds" / split / kind
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 255, (12, 10, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.jpg")
    found = re.search(r"```python\n(# mydata\.py\n.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    write(tmp_path, found[1])
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def write(place: Path, code: str) -> None:
    """Make `code` the module mydata, as if never imported."""
    (place / "mydata.py").write_text(code)
    sys.modules.pop("mydata", None)
    importlib.invalidate_caches()
    # Two writes within a second and of one length would otherwise give the first one's bytecode.
    for old in (place / "__pycache__").glob("mydata*"):
        old.unlink()


def config(place: Path, **fields: Any) -> DataConfig:
    given = {"name": "mydata:Birds", "size": (8, 6), "root": str(place / "birds")} | fields
    return DataConfig.model_validate(given)


@pytest.mark.parametrize("cache", ["none", "memory", "disk"])
def test_the_documented_class_is_a_data_set(cache: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(place / "xdg"))
    dataset = load_dataset(config(place, cache=cache), "train")
    assert len(dataset) == 10
    assert dataset.specs["kind"].classes == ("owl", "wren")
    assert [int(dataset[i]["targets"]["kind"]) for i in range(10)] == [0] * 5 + [1] * 5
    assert dataset[3]["image"].shape == (3, 8, 6)
    assert dataset.identifier(9).endswith("wren/4.jpg")
    assert torch.equal(dataset[9]["image"], load_dataset(config(place, cache="none"), "train")[9]["image"])


def test_the_example_has_about_twenty_lines() -> None:
    found = re.search(r"# mydata\.py\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    assert len([line for line in found[1].splitlines() if line.strip()]) <= 20


def test_the_check_and_its_picture(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    assert main(["data", "check", "mydata:Birds", f"root={place / 'birds'}", "size=[16,16]", "--trust"]) == 0
    printed = capsys.readouterr().out
    assert "Birds, classified by folder name." in printed
    assert "owl 50.0%, wren 50.0%" in printed
    assert (place / "data-mydata-Birds.png").is_file()


def test_the_holdout_comes_out_of_training(place: Path) -> None:
    kept, held = (load_dataset(config(place, holdout=0.3), split) for split in ("train", "holdout"))
    names = {part.identifier(i) for part in (kept, held) for i in range(len(part))}
    assert (len(kept), len(held), len(names)) == (7, 3, 10)


def test_the_disk_cache_follows_code_and_files(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(place / "xdg"))
    load_dataset(config(place, cache="disk"), "val")
    Image.new("RGB", (10, 12), "red").save(place / "birds/val/owl/0.jpg")
    changed = load_dataset(config(place, cache="disk"), "val")[0]["image"]
    assert changed[0].float().mean() > 200 and changed[1].float().mean() < 60
    code = (place / "mydata.py").read_text()
    write(place, code.replace("read_image(file, self.fit)", "255 - read_image(file, self.fit)"))
    assert torch.equal(load_dataset(config(place, cache="disk"), "val")[0]["image"], 255 - changed)


def test_the_disk_cache_does_not_follow_the_machine(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(place / "xdg"))
    folder = place / "xdg/compactmtl/external"
    load_dataset(config(place, cache="disk"), "train")
    load_dataset(
        config(place, cache="disk", workers=3, batch_size=5, share=0.5, augment={"flip": True}), "train"
    )
    assert len(list(folder.iterdir())) == 1
    load_dataset(config(place, cache="disk", size=(4, 6)), "train")
    assert len(list(folder.iterdir())) == 2


def test_a_class_may_declare_options_and_splits(place: Path) -> None:
    code = (
        (place / "mydata.py")
        .read_text()
        .replace(
            '    """Birds', '    splits = ("train", "val", "test")\n    default_size = (4, 4)\n    """Birds'
        )
    )
    options = "\nclass Options(Frozen):\n    night: bool = False\n\nBirds.Options = Options\n"
    write(place, "from compactmtl.config.recipe import Frozen\n" + code + options)
    module = dataset_module("mydata:Birds")
    assert module.SPLITS == ("train", "val", "test")
    assert module.DEFAULT_SIZE == (4, 4)
    load_dataset(config(place, options={"night": True}), "val")
    with pytest.raises(ConfigError, match=r"data\.options\.nigth"):
        load_dataset(config(place, options={"nigth": True}), "val")
    write(place, code + options.replace("Frozen", "object") + "\n")
    with pytest.raises(ConfigError, match="does not refuse unknown keys"):
        dataset_module("mydata:Birds")


@pytest.mark.parametrize(
    ("name", "match", "hint"),
    [
        ("mydata:", "does not name a class", "package.module:Class"),
        ("../x:Birds", "does not name a class", "package.module:Class"),
        ("nowhere:Birds", "no module nowhere", "PYTHONPATH"),
        ("mydata.inner:Birds", "no module mydata.inner", "PYTHONPATH"),
        ("mydata:Bird", "has no Bird", "Birds"),
        ("mydata:Path", "lacks __len__", "docs/how-to/own-data.md"),
        ("os:system", "is not a class", "docs/how-to/own-data.md"),
    ],
)
def test_names_that_are_no_data_set(name: str, match: str, hint: str, place: Path) -> None:
    with pytest.raises(ConfigError, match=match) as caught:
        load_dataset(config(place, name=name), "train")
    assert hint in caught.value.hint


def test_a_module_that_cannot_be_imported_says_where(place: Path) -> None:
    write(place, "x = 1\ny = x / 0\n")
    with pytest.raises(ConfigError, match=r"mydata\.py:2: ZeroDivisionError"):
        dataset_module("mydata:Birds")
    write(place, "import a_package_that_is_not_there\n")
    with pytest.raises(ConfigError, match="needs the module a_package_that_is_not_there"):
        dataset_module("mydata:Birds")


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        ("torch.tensor(self.kinds.index(file.parent.name))", "torch.tensor(7)", "holds 7; its 2 classes"),
        ("torch.tensor(self.kinds.index(file.parent.name))", "torch.tensor(1.0)", "float32 .*expected int64"),
        ("read_image(file, self.fit)", "read_image(file)", "expected uint8 .3, 8, 6."),
        ('{"kind": kind}}', '{"sort": kind}}', "targets are sort; specs say kind"),
        ("        kind = ", "        kind = 1 / 0 or ", r"mydata\.py:\d+: ZeroDivisionError"),
        ('{"image":', '{"picture":', "not a Sample"),
        ('{"kind": kind}}', '["kind"]}', "not a Sample"),
        ('{"kind": kind}}', '{"kind": kind, 3: kind}}', "targets are 3, kind; specs say kind"),
        ('{"kind": kind}}', '{"kind": None}}', "target kind .* is object"),
        ('{"kind": kind}}', '{"kind": [[1], [1, 2]]}}', "target kind .* is no array"),
        ('{"kind": kind}}', '{"kind": kind}, "own_size": 12}', r"own_size is 12, expected height and width"),
        ('{"kind": kind}}', '{"kind": kind}, "own_size": (12, 10, 3)}', r"own_size is \(12, 10, 3\)"),
        ('{"kind": kind}}', '{"kind": kind}, "own_size": (0, 10)}', r"own_size is \(0, 10\)"),
        ('{"kind": kind}}', '{"kind": kind}, "own_size": (12.5, 10)}', r"own_size is \(12.5, 10\)"),
        ('{"kind": kind}}', '{"kind": kind}, "own_size": "ab"}', r"own_size is 'ab'"),
        ('{"kind": kind}}', '{"kind": kind}, "own_size": None}', r"own_size is None"),
    ],
)
def test_a_sample_that_does_not_fit_is_named(old: str, new: str, match: str, place: Path) -> None:
    code = (place / "mydata.py").read_text()
    assert old in code
    write(place, code.replace(old, new))
    with pytest.raises(DataError, match=match) as caught:
        load_dataset(config(place), "train")
    assert "birds/train" in caught.value.message
    assert any(re.search(match, problem) for problem in check_dataset(config(place)).problems)


def test_what_the_constructor_does_wrong_is_told(place: Path) -> None:
    code = (place / "mydata.py").read_text()
    write(
        place,
        code.replace("self.fit, self.specs = image_fit(config),", "self.fit, self.spec = image_fit(config),"),
    )
    with pytest.raises(ConfigError, match="no `specs`"):
        load_dataset(config(place), "train")
    write(place, code.replace("config.root", "config.roof"))
    with pytest.raises(DataError, match="making split train fails"):
        load_dataset(config(place), "train")
    write(place, code)
    with pytest.raises(DataError, match="holds no sample"):
        load_dataset(config(place, root=str(place / "none")), "train")


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        ("        return len(", "        return -len(", "len.. fails: ValueError"),
        ("        return len(", "        return 1.5 * len(", "len.. fails: TypeError"),
        (
            "        return str(",
            "        return 1 / 0 or str(",
            r"identifier.0. fails: .*mydata\.py:\d+: ZeroDivisionError",
        ),
    ],
)
def test_samples_that_cannot_be_counted_or_named_are_a_fault_of_the_class(
    old: str, new: str, match: str, place: Path
) -> None:
    code = (place / "mydata.py").read_text()
    assert old in code
    write(place, code.replace(old, new))
    with pytest.raises(DataError, match=f"mydata:Birds: {match}"):
        load_dataset(config(place), "train")


@pytest.mark.parametrize(
    ("line", "match"),
    [
        ('splits = "train"', "splits is 'train'"),
        ("splits = 3", "splits is 3"),
        ('splits = ("train", "vla")', r"splits is \('train', 'vla'\)"),
        ('splits = ("val",)', r"splits is \('val',\)"),
        ('resizes = "letterbox"', "resizes is 'letterbox'"),
        ('resizes = ("letterbocks",)', "resizes is"),
        ("resizes = [[]]", "resizes is"),
        ("default_size = 224", "default_size is 224"),
        ("default_size = (224, 0)", "default_size is"),
        ("default_size = (True, 3)", "default_size is"),
        ("default_root = 3", "default_root is 3"),
    ],
)
def test_attributes_of_no_meaning_are_refused(line: str, match: str, place: Path) -> None:
    code = (place / "mydata.py").read_text()
    write(place, code.replace('    """Birds', f'    {line}\n    """Birds'))
    with pytest.raises(ConfigError, match=f"mydata:Birds.{match}"):
        load_dataset(config(place), "train")


@pytest.mark.parametrize(
    "own", ["(12, 10)", "[12, 10]", "torch.tensor([12, 10])", "self.fit.size and torch.Size((12, 10))"]
)
def test_an_own_size_may_be_any_two_whole_numbers(own: str, place: Path) -> None:
    code = (
        (place / "mydata.py")
        .read_text()
        .replace('    """Birds', '    resizes = ("letterbox",)\n    """Birds')
    )
    write(place, code.replace('{"kind": kind}}', f'{{"kind": kind}}, "own_size": {own}}}'))
    assert load_dataset(config(place, resize="letterbox"), "train")[0]["own_size"] == (12, 10)


def held(spec: TargetSpec, value: torch.Tensor) -> dict[str, np.ndarray[Any, Any]]:
    """What is stored of a sample of 2 x 3 pixels with this target."""
    sample = {"image": torch.zeros(3, 2, 3, dtype=torch.uint8), "targets": {"it": value}}
    return checked(sample, {"it": spec}, DataConfig(name="own:Data", size=(2, 3)), "sample 1")


def test_an_unknown_number_is_kept() -> None:
    assert np.isnan(held(TargetSpec("scalar"), torch.tensor(torch.nan))["it"])


@pytest.mark.parametrize(
    ("spec", "value", "match"),
    [
        (TargetSpec("scalar"), torch.tensor(torch.inf), "infinite"),
        (TargetSpec("depth"), torch.full((1, 2, 3), torch.nan), "not finite"),
        (TargetSpec("depth"), torch.full((1, 2, 3), -1.0), "negative"),
        (TargetSpec("normals"), torch.ones(3, 2, 3), "neither of length 1 nor 0"),
        (TargetSpec("multilabel", classes=("a", "b")), torch.tensor([1.0, 0.5]), "other than 1"),
        (TargetSpec("instances", classes=("a",)), torch.full((2, 2, 3), 40000), "number outside"),
        (TargetSpec("instances", classes=("a",)), torch.ones(2, 2, 3).long(), "class outside 0 to 0"),
    ],
)
def test_values_of_no_meaning_are_refused(spec: TargetSpec, value: torch.Tensor, match: str) -> None:
    with pytest.raises(DataError, match=f"sample 1: target it .*{match}"):
        held(spec, value)


def test_values_of_every_kind_pass() -> None:
    crowd = torch.stack([torch.tensor([[-1, 0, 0], [1, 1, 2]]), torch.zeros(2, 3).long()])
    held(TargetSpec("instances", classes=("a",)), crowd)
    held(TargetSpec("multilabel", classes=("a", "b", "c")), torch.tensor([1.0, 0.0, -1.0]))
    normals = torch.zeros(3, 2, 3)
    normals[2, 0] = -1
    held(TargetSpec("normals"), normals)


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        ('TargetSpec("mask", classes=self.kinds, ignore_index=-1)', "ignore_index -1 cannot be stored"),
        ('TargetSpec("mask", classes=self.kinds, mirrored=(("owl", "bat"),))', "mirrored names 'bat'"),
    ],
)
def test_specifications_that_cannot_be_kept_are_refused(spec: str, match: str, place: Path) -> None:
    code = (place / "mydata.py").read_text()
    write(place, code.replace('TargetSpec("class", classes=self.kinds)', spec))
    with pytest.raises(ConfigError, match=f"mydata:Birds, target kind: {match}"):
        load_dataset(config(place), "train")
