"""Maps of numbers, whose teacher has no probability: its answers for an image and its mirror image have to agree."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn.functional import pad

from compactmtl.config import resolve_recipe
from compactmtl.config.pseudo_labels import PseudoLabelConfig
from compactmtl.errors import ConfigError
from compactmtl.tasks import TargetSpec
from compactmtl.train.build import build_session
from compactmtl.train.label_teachers import LabelTeacher, class_numbers, open_teacher
from tests.support.label_onnx import write_left
from tests.support.layouts.folder import write_folder
from tests.support.task_kinds import usual_task

RECIPE = """
data:
  name: folder
  root: rooms
  size: [24, 32]
  batch_size: 5
  mean: [0, 0, 0]
  std: [1, 1, 1]
  pseudo_labels: {depth: {teacher: left.onnx, agreement: 0.2}}
tasks: {depth: {kind: depth, head: {kind: fcn, width: 4}}}
model: {encoder: {name: test_resnet}}
train: {epochs: 1, threads: 1}
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Rooms of which one training image has no depth."""
    (write_folder(tmp_path / "rooms", split=True) / "depth" / "train" / "004.png").unlink()
    write_left(tmp_path / "left.onnx")
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return tmp_path


def test_a_pixel_counts_where_the_mirror_agrees(root: Path) -> None:
    session = build_session(resolve_recipe(root / "recipe.yaml").recipe)
    session.train_loader.sampler.set_epoch(1)
    (batch,) = list(session.train_loader)
    found = session.data.taught[0].filled
    assert found is not None
    assert (found.known, found.filled, found.samples) == (4, 1, 5)
    # the true maps have one depth each, about 1 m, and an unknown row
    (row,) = [row for row in range(5) if len(set(batch["targets"]["depth"][row].flatten().tolist())) > 2]
    brightness = pad(batch["image"][row, 0], (1, 1))
    left, right = brightness[:, :-2] + 0.1, brightness[:, 2:] + 0.1
    sure = 2 * (left - right).abs() / (left + right) <= 0.2
    assert 0.2 < sure.double().mean() < 0.95  # both are there
    torch.testing.assert_close(batch["targets"]["depth"][row, 0], torch.where(sure, left, 0.0))
    assert found.sure == int(sure.sum())
    share = f"({found.sure / (24 * 32):.1%} of their pixels)"
    assert any(f"at agreement <= 0.2 {share}, of 5" in line for line in session.data.notes)


def test_what_no_network_gives_as_a_label_is_refused(root: Path) -> None:
    recipe = resolve_recipe(root / "recipe.yaml").recipe
    config = PseudoLabelConfig(teacher=str(root / "left.onnx"), output="depth")
    with pytest.raises(
        ConfigError, match=r"data\.pseudo_labels\.it: what a network gives for instances is no label"
    ):
        open_teacher(recipe, "it", TargetSpec("instances", classes=("a",)), config, torch.device("cpu"))
    task = usual_task("boundaries")
    edges = LabelTeacher("a run", "0" * 64, task, True, (24, 32), {}, lambda sample: torch.zeros(1))
    with pytest.raises(ConfigError, match="what a network gives for boundaries is no label"):
        class_numbers(edges, task.spec, "data.pseudo_labels.it")
