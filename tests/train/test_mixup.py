"""Mixup: images and targets in one share, unmixed losses at a share of 1, and errors where targets do not mix."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rich.console import Console

from compactmtl.config import Resolved, resolve_recipe
from compactmtl.data.inputs import parts
from compactmtl.errors import ConfigError
from compactmtl.train import TrainingInterrupted, train
from compactmtl.train.build import build_session
from compactmtl.train.mixup import Mixup
from compactmtl.train.part import ForwardPass
from compactmtl.train.session import Session
from tests.support.layouts.utkface import write_utkface

Make = Callable[..., Resolved]

FACES = """
data: {name: utkface, root: %s, size: [32, 32], batch_size: 4}
tasks:
  age: {kind: regression, loss: l1}
  gender: {kind: classification}
model: {encoder: {name: resnet10t, options: {channels: [16, 16, 24, 32], stem_width: 16}}}
train: {epochs: 3, mixup: 0.4, threads: 1}
"""


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Resolved:
    """A tiny recipe of faces with mixup."""
    root = tmp_path_factory.mktemp("faces")
    write_utkface(root, count=12)
    path = root / "faces.yaml"
    path.write_text(FACES % root, "utf-8")
    return resolve_recipe(path)


@pytest.fixture
def session(faces: Resolved) -> Session:
    session = build_session(faces.recipe)
    session.train_loader.sampler.set_epoch(1)
    return session


def passed(session: Session, share: float, monkeypatch: pytest.MonkeyPatch) -> tuple[Mixup, ForwardPass]:
    mixup = session.part(Mixup)
    assert mixup is not None
    monkeypatch.setattr(mixup, "_shares", type("Fixed", (), {"sample": lambda self: torch.tensor(share)})())
    return mixup, session.forward_pass(next(iter(session.train_loader)))


def test_images_and_targets_are_mixed_in_one_share(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    mixup, current = passed(session, 0.25, monkeypatch)
    order, image = mixup._order, current.batch["image"]
    torch.testing.assert_close(current.image, 0.25 * image + 0.75 * image[order])
    targets = current.batch["targets"]
    age, gender = session.tasks["age"], session.tasks["gender"]
    mean_age = 0.25 * targets["age"] + 0.75 * targets["age"][order]
    torch.testing.assert_close(current.losses["age"], age.loss(current.outputs["age"], mean_age))
    torch.testing.assert_close(current.targets["age"], mean_age)
    one, other = (gender.loss(current.outputs["gender"], t) for t in (targets["gender"], targets["gender"][order]))  # fmt: skip
    torch.testing.assert_close(current.losses["gender"], 0.25 * one + 0.75 * other)


def test_a_share_of_one_changes_nothing(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    _, current = passed(session, 1.0, monkeypatch)
    assert torch.equal(current.image, current.batch["image"])
    for name, task in session.tasks.items():
        expected = task.loss(current.outputs[name].float(), current.batch["targets"][task.target])
        torch.testing.assert_close(current.losses[name], expected)


def test_a_mixture_with_an_unknown_age_is_unknown(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    mixup, current = passed(session, 0.5, monkeypatch)
    order = mixup._order
    current.targets["age"] = current.batch["targets"]["age"].clone()
    current.targets["age"][0] = torch.nan
    mixup.after_forward(session, current)
    unknown = current.targets["age"].isnan()
    assert unknown.tolist() == [bool(n == 0 or order[n] == 0) for n in range(len(order))]
    assert current.losses["age"].isfinite()


def test_shares_follow_the_distribution() -> None:
    mixup, image = Mixup(0.2), torch.zeros(2, 3, 1, 1)
    shares = []
    for _ in range(400):
        mixup.before_forward(image)
        shares.append(mixup._share)
    near_the_ends = sum(min(share, 1 - share) < 0.05 for share in shares) / len(shares)
    expected = (
        2 * 0.291
    )  # of Beta(0.2, 0.2), 0.291 lies below 0.05; the tolerance is four deviations of 400 draws
    assert near_the_ends == pytest.approx(expected, abs=0.1)


def test_an_image_stays_in_its_memory_layout() -> None:
    image = torch.randn(4, 3, 5, 5).contiguous(memory_format=torch.channels_last)
    (mixed,) = parts(Mixup(1.0).before_forward(image))
    assert mixed.is_contiguous(memory_format=torch.channels_last)


def test_a_task_whose_targets_do_not_mix_is_refused(tiny: Make) -> None:
    with pytest.raises(ConfigError, match="segmentation is of kind segmentation") as error:
        build_session(tiny("train.mixup=0.2").recipe)
    assert "classification" in error.value.hint and "regression" in error.value.hint


def test_regularization_beside_it_is_refused(faces: Resolved) -> None:
    recipe = resolve_recipe(faces.path, ["regularization={sam: {rho: 0.05}}"]).recipe
    with pytest.raises(ConfigError, match="regularization"):
        build_session(recipe)


@pytest.mark.slow
def test_an_interrupted_run_resumes_bit_equal(
    faces: Resolved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(faces, tmp_path / "whole", console=Console(quiet=True))
    update = Session.update

    def stop(self: Session, loss: torch.Tensor) -> None:
        update(self, loss)
        if self.position.step == 4:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patched:
        patched.setattr(Session, "update", stop)
        with pytest.raises(TrainingInterrupted):
            train(faces, tmp_path / "run", console=Console(quiet=True))
    again = train(faces, tmp_path / "run", resume=True, console=Console(quiet=True))
    first, second = whole.load_model("last").state_dict(), again.load_model("last").state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
