"""Teachers that label training images: ONNX files here, read and fed as the recipe says; runs in test_label_runs.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from compactmtl.config import Recipe, Resolved, resolve_recipe
from compactmtl.data import load_dataset
from compactmtl.data.base import Batch, Sample
from compactmtl.data.loader import Loader
from compactmtl.errors import ArtifactError, CompactError, ConfigError, DataError
from compactmtl.train.build import build_session
from compactmtl.train.dry_run import check_recipe, dry_run
from compactmtl.train.pseudo_labels import records
from compactmtl.train.session import Session
from tests.support.label_onnx import STEEP, write_brightness
from tests.support.layouts.folder import write_folder
from tests.support.onnx_files import TwoHeads, write_onnx

RECIPE = """
data:
  name: folder
  root: rooms
  size: [24, 32]
  batch_size: 5
  pseudo_labels: {teachers}
tasks:
  segmentation: {{kind: segmentation, head: {{kind: fcn, width: 4}}}}
  height: {{kind: regression}}
  weather: {{kind: classification}}
model: {{encoder: {{name: test_resnet}}}}
train: {{epochs: 1, threads: 1}}
"""
PLAIN = "mean: [0, 0, 0], std: [1, 1, 1]"
UNLABELED = ("train/000", "train/004", "val/001")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Rooms of which two in train and one in val have no mask, no number and no class; and teachers of each."""
    folder = write_folder(tmp_path / "rooms", split=True)
    for name in UNLABELED:
        (folder / "segmentation" / f"{name}.png").unlink()
    for table in ("height", "weather"):
        lines = (folder / f"{table}.csv").read_text().splitlines()
        kept = [line for line in lines if not line.startswith(UNLABELED)]
        (folder / f"{table}.csv").write_text("\n".join(kept) + "\n")
    write_brightness(tmp_path / "three.onnx")
    write_brightness(tmp_path / "two.onnx", classes=2)
    return tmp_path


def recipe(root: Path, teachers: str, *overrides: str) -> Resolved:
    path = root / "recipe.yaml"
    path.write_text(RECIPE.format(teachers=teachers))
    return resolve_recipe(path, list(overrides))


def first_epoch(loader: Loader) -> Batch:
    """The training split in one batch."""
    loader.sampler.set_epoch(1)
    (batch,) = list(loader)
    return batch


def session_of(root: Path, teachers: str, *overrides: str) -> tuple[Session, Batch]:
    session = build_session(recipe(root, teachers, *overrides).recipe)
    return session, first_epoch(session.train_loader)


def lacking(recipe: Recipe, target: str) -> list[Sample]:
    """The training samples without a label, in the order of the split."""
    dataset: Any = load_dataset(recipe.data, "train")
    flags = dataset.labeled(target)
    return [dataset[index] for index in range(len(dataset)) if not flags[index]]


def answers(values: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """The class of a brightness and its probability, as the file computes them."""
    steps = torch.arange(classes).view(-1, *[1] * values.ndim).double()
    logits = STEEP * (values * steps - steps**2 / (2 * (classes - 1)))
    shares = logits.softmax(0)
    return shares.argmax(0), shares.amax(0)


def in_batch(batch: Batch, sample: Sample, recipe: Recipe) -> int:
    """The row of a sample."""
    mean, std = (torch.tensor(one).view(3, 1, 1) for one in (recipe.data.mean, recipe.data.std))
    pictures = ((batch["image"] * std + mean) * 255).round().to(torch.uint8)
    (row,) = [n for n, picture in enumerate(pictures) if torch.equal(picture, sample["image"])]
    return row


@pytest.mark.parametrize("after", ["", "Softmax"])
def test_a_file_labels_what_has_no_label_where_it_is_sure(root: Path, after: str) -> None:
    write_brightness(root / "net.onnx", after=after)
    values = "values: probabilities, " if after else ""
    session, batch = session_of(
        root, f"{{segmentation: {{teacher: net.onnx, confidence: 0.9, {values}{PLAIN}}}}}"
    )
    rows, pixels = [], 0
    for sample in lacking(session.recipe, "segmentation"):
        rows.append(in_batch(batch, sample, session.recipe))
        label, chance = answers(sample["image"][0].double() / 255, 3)
        found = batch["targets"]["segmentation"][rows[-1]]
        clear = (chance - 0.9).abs() > 1e-4  # float32
        assert clear.double().mean() > 0.9
        assert torch.equal(found[clear], torch.where(chance >= 0.9, label, 255)[clear])
        pixels += int((found != 255).sum())
    assert len(rows) == 2
    (line,) = [line for line in session.data.notes if line.startswith("pseudo-labels")]
    share = f"({pixels / (2 * 24 * 32):.1%} of their pixels)"
    assert line == (
        f"pseudo-labels of train: segmentation: 3 known, 2 filled by {root / 'net.onnx'} at confidence >= 0.9 {share}, of 5"
    )
    # all else is as without a teacher
    _, plain = session_of(root, "{}")
    others = [row for row in range(5) if row not in rows]
    assert torch.equal(batch["image"], plain["image"])
    assert torch.equal(batch["targets"]["segmentation"][others], plain["targets"]["segmentation"][others])
    assert (plain["targets"]["segmentation"][rows] == 255).all()
    for name in ("height", "weather"):
        assert torch.equal(batch["targets"][name].nan_to_num(-1), plain["targets"][name].nan_to_num(-1))
    assert "labels of train: segmentation 3 of 5, height 3 of 5, weather 3 of 5" in session.data.notes
    assert session.data.taught[0].record()["sha256"]


def test_what_is_measured_has_no_such_label(root: Path) -> None:
    teachers = f"{{segmentation: {{teacher: three.onnx, {PLAIN}}}, height: {{teacher: three.onnx, {PLAIN}}}}}"
    session, batch = session_of(root, teachers)
    assert batch["targets"]["height"].isfinite().all()
    known = 0
    for one in session.select_loader:
        known += int(one["targets"]["height"].isfinite().sum())
        assert (
            (one["targets"]["segmentation"] != 255).flatten(1).any(1) == one["targets"]["height"].isfinite()
        ).all()
    assert known == 4  # one of five has none


def test_a_class_and_a_number_of_a_picture(root: Path) -> None:
    teachers = f"""{{weather: {{teacher: two.onnx, confidence: 0.8, {PLAIN}}},
      height: {{teacher: three.onnx, agreement: 0.01, {PLAIN}}}}}"""
    session, batch = session_of(root, teachers)
    for sample in lacking(session.recipe, "height"):
        row = in_batch(batch, sample, session.recipe)
        mean = sample["image"][0].double().mean() / 255
        label, chance = answers(mean, 2)
        expected = label if chance >= 0.8 else session.tasks["weather"].spec.ignore_index
        assert batch["targets"]["weather"][row] == expected
        # its mirror image has the same mean, so that the two agree
        assert float(batch["targets"]["height"][row]) == pytest.approx(100 * float(mean), rel=1e-5)
    lines = [line for line in session.data.notes if line.startswith("pseudo-labels")]
    assert lines[1] == (
        f"pseudo-labels of train: height: 3 known, 2 filled by {root / 'three.onnx'} at agreement <= 0.01, of 5"
    )


def test_classes_in_another_order_are_mapped_by_name(root: Path) -> None:
    plain = f"{{segmentation: {{teacher: three.onnx, {PLAIN}}}}}"
    turned = f"{{segmentation: {{teacher: three.onnx, classes: [block, floor, wall], {PLAIN}}}}}"
    (session, one), (_, other) = session_of(root, plain), session_of(root, turned)
    row = in_batch(one, lacking(session.recipe, "segmentation")[0], session.recipe)
    mine, theirs = one["targets"]["segmentation"][row], other["targets"]["segmentation"][row]
    assert len(set(mine.flatten().tolist())) > 1
    assert torch.equal(theirs, torch.tensor([2, 0, 1])[mine])  # their 0 is block, which is our 2


def test_class_indices_are_taken_as_they_are(root: Path) -> None:
    write_brightness(root / "net.onnx", after="ArgMax")
    (_, one) = session_of(root, f"{{segmentation: {{teacher: net.onnx, values: class index, {PLAIN}}}}}")
    (_, other) = session_of(root, f"{{segmentation: {{teacher: three.onnx, {PLAIN}}}}}")
    assert torch.equal(one["targets"]["segmentation"], other["targets"]["segmentation"])


def test_a_file_of_another_size_is_given_pictures_of_it(root: Path) -> None:
    write_brightness(root / "net.onnx", size=(12, 16))
    session, batch = session_of(root, f"{{segmentation: {{teacher: net.onnx, {PLAIN}}}}}")
    row = in_batch(batch, lacking(session.recipe, "segmentation")[0], session.recipe)
    found = batch["targets"]["segmentation"][row]
    assert found.shape == (24, 32)
    assert torch.equal(found, found[::2, ::2].repeat_interleave(2, 0).repeat_interleave(2, 1))
    assert len(set(found.flatten().tolist())) > 1


def test_an_output_by_another_name(root: Path) -> None:
    write_brightness(root / "net.onnx", names=("a", "b", "c"))
    _, batch = session_of(root, f"{{height: {{teacher: net.onnx, output: c, {PLAIN}}}}}")
    assert batch["targets"]["height"].isfinite().all()


@pytest.mark.slow
def test_two_sessions_have_the_same_labels(root: Path) -> None:
    teachers = f"{{segmentation: {{teacher: three.onnx, confidence: 0.8, {PLAIN}}}}}"
    (_, one), (_, other) = session_of(root, teachers), session_of(root, teachers, "data.workers=1")
    assert torch.equal(one["targets"]["segmentation"], other["targets"]["segmentation"])


@pytest.mark.slow
def test_kept_on_disk_they_are_of_these_images_and_this_teacher(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(root / "cache"))
    teachers = f"{{height: {{teacher: three.onnx, {PLAIN}}}}}"
    _, one = session_of(root, teachers, "data.cache=disk")
    folders = list((root / "cache" / "compactmtl" / "pseudo_labels").iterdir())
    _, other = session_of(root, teachers, "data.cache=disk")
    assert torch.equal(one["targets"]["height"], other["targets"]["height"])
    assert list((root / "cache" / "compactmtl" / "pseudo_labels").iterdir()) == folders
    write_brightness(root / "three.onnx", times=200.0)
    _, changed = session_of(root, teachers, "data.cache=disk")
    assert not torch.equal(one["targets"]["height"], changed["targets"]["height"])
    assert len(list((root / "cache" / "compactmtl" / "pseudo_labels").iterdir())) == 2


def test_a_dry_run_asks_only_for_what_it_reads(root: Path) -> None:
    teachers = f"{{segmentation: {{teacher: three.onnx, confidence: 0.9, {PLAIN}}}}}"
    found = dry_run(recipe(root, teachers).recipe)
    assert (
        f"pseudo-labels of train: segmentation: 2 images to label by {root / 'three.onnx'} at confidence >= 0.9"
        in found.data
    )


def test_a_short_training_asks_only_for_what_it_reads(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(root / "cache"))
    teachers = f"{{height: {{teacher: three.onnx, {PLAIN}}}}}"
    short = ("data.batch_size=2", "train.max_steps=2", "data.cache=disk")
    session = build_session(recipe(root, teachers, *short).recipe)
    (found,) = session.data.taught
    assert (found.asked, found.filled, records(session.data.taught)) == (2, None, [])
    assert not (root / "cache" / "compactmtl" / "pseudo_labels").exists()
    batches = list(session.batches(1, 0, 3))
    assert all(batch["targets"]["height"].isfinite().all() for batch in batches)
    # with workers, which have no teacher, and where each image is read, all are labeled first
    for more in (("data.workers=1",), ("train.max_steps=3",)):
        (found,) = build_session(recipe(root, teachers, *short, *more).recipe).data.taught
        assert found.filled is not None and found.filled.filled == 2


def test_a_split_that_only_a_teacher_labels_can_be_learned(root: Path) -> None:
    for path in (root / "rooms" / "segmentation" / "train").iterdir():
        path.unlink()
    with pytest.raises(DataError, match="not one sample of split train has a label"):
        build_session(recipe(root, "{}").recipe)
    session, _ = session_of(root, f"{{segmentation: {{teacher: three.onnx, {PLAIN}}}}}")
    assert any("0 known, 5 filled" in line for line in session.data.notes)
    write_brightness(root / "flat.onnx", steep=0.0)
    with pytest.raises(DataError, match=r"is sure of none at confidence >= 0\.9"):
        session_of(root, f"{{segmentation: {{teacher: flat.onnx, confidence: 0.9, {PLAIN}}}}}")


FAULTS: dict[str, tuple[str, type[CompactError], str, str]] = {
    "no file": ("segmentation: {teacher: gone.onnx}", ConfigError, "there is no file", "gone.onnx"),
    "no folder": ("segmentation: {teacher: gone}", ConfigError, "gone is not there", "finished run"),
    "another folder": ("segmentation: {teacher: rooms}", ConfigError, "holds neither a run nor a bundle", "finished run"),
    "another file": ("segmentation: {teacher: recipe.yaml}", ConfigError, "recipe.yaml is a file", ".onnx"),
    "no onnx": ("segmentation: {teacher: text.onnx}", ArtifactError, "text.onnx is not a model", ""),
    "no output": ("segmentation: {teacher: three.onnx, output: segmentatoin}", ConfigError, "has no output", "did you mean 'segmentation'"),
    "classes": ("segmentation: {teacher: two.onnx}", ConfigError, "expected 3 channels on its second axis, floor, wall, block", "classes"),
    "names": ("segmentation: {teacher: three.onnx, classes: [floor, wall, lamp]}", ConfigError, "it lacks block and has lamp beside them", "same classes"),
    "fewer names": ("segmentation: {teacher: two.onnx, classes: [floor, wall]}", ConfigError, "it lacks block", "same classes"),
    "no probability": ("height: {teacher: three.onnx, confidence: 0.9}", ConfigError, "regression has no probability", "agreement"),
    "a probability": ("segmentation: {teacher: three.onnx, agreement: 0.9}", ConfigError, "segmentation has a probability", "confidence"),
    "no probabilities": ("segmentation: {teacher: three.onnx, values: probabilities}", ConfigError, "which are no probabilities", "values"),
    "no indices": ("segmentation: {teacher: three.onnx, values: class index}", ConfigError, "which are no class indices", "values"),
    "values of a number": ("height: {teacher: three.onnx, values: logits}", ConfigError, "height.values: a target of kind scalar has no classes", "leave it out"),
    "channels": ("segmentation: {teacher: one.onnx}", ConfigError, "takes 1 channels", "same channels"),
    "rank": ("segmentation: {teacher: vector.onnx}", ConfigError, "is given one picture", "one such input"),
    "size": ("segmentation: {teacher: small.onnx, size: [24, 32]}", ConfigError, "takes 12x16, found 24x32", "leave size out"),
    "mean": ("segmentation: {teacher: three.onnx, mean: [0.5], std: [0.5]}", ConfigError, "1 values, and data.channels is 3", "one a channel"),
    "map for a number": ("height: {teacher: three.onnx, output: segmentation}", ConfigError, "expected 1 channels", "another output"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("start", [build_session, check_recipe], ids=["train", "check"])
def test_a_teacher_that_does_not_fit_is_refused(root: Path, fault: str, start: Any) -> None:
    teachers, kind, message, mend = FAULTS[fault]
    (root / "text.onnx").write_text("no model")
    write_brightness(root / "one.onnx", channels=1)
    write_brightness(root / "small.onnx", size=(12, 16))
    write_onnx(root / "vector.onnx", TwoHeads(), names=("segmentation",), order=("zeta",))
    with pytest.raises(kind) as caught:
        start(recipe(root, f"{{{teachers}}}").recipe)
    assert message in caught.value.message
    assert mend in str(caught.value)
    assert caught.value.exit_code == 2


def test_every_teacher_is_looked_at_before_one_is_asked(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teachers = f"{{segmentation: {{teacher: three.onnx, {PLAIN}}}, height: {{teacher: gone.onnx}}}}"
    with pytest.raises(ConfigError, match=r"there is no file .*gone\.onnx"):
        build_session(recipe(root, teachers).recipe)
    assert "labels segmentation" not in capsys.readouterr().err
