"""A dry run tells the truth about size and memory and writes nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from compactmtl.cli.train import describe
from compactmtl.config import Resolved
from compactmtl.train import dry_run
from compactmtl.train.build import build_session

Make = Callable[..., Resolved]


def test_it_writes_nothing(tmp_path: Path, tiny: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even the cache that the recipe asks for."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    dry_run(tiny("data.cache=disk").recipe)
    assert list(tmp_path.rglob("*")) == []


@pytest.mark.slow
def test_shapes_steps_and_sizes(tiny: Make, everything: str) -> None:
    result = dry_run(tiny(more=everything).recipe)
    assert result.input == (4, 3, 32, 48)
    assert result.outputs == {"segmentation": (4, 11, 32, 48), "depth": (4, 1, 32, 48)}
    assert result.samples == {"train": 14, "val": 4}
    assert (result.steps_per_epoch, result.total_steps) == (4, 12)
    assert result.trained_parameters > result.parameters  # factors; the plain network is what is deployed
    assert result.seconds > 0 and all(value > 0 for value in result.losses.values())
    plain = dry_run(tiny().recipe)
    assert (result.parameters, result.macs) == (plain.parameters, plain.macs)


@pytest.mark.slow
def test_memory_is_what_tensors_take(tiny: Make) -> None:
    result = dry_run(tiny().recipe)
    model = build_session(tiny().recipe).model
    assert result.gradient_bytes == 4 * sum(p.numel() for p in model.parameters())
    # AdamW: two moments a parameter, and one step count (float32) a tensor
    assert result.optimizer_bytes == 2 * result.gradient_bytes + 4 * len(list(model.parameters()))
    image = 4 * 4 * 3 * 32 * 48
    assert result.activation_bytes > image
    double = dry_run(tiny("data.batch_size=8").recipe)
    # activations grow with the batch; masks and statistics of batch norm hardly do
    assert double.activation_bytes == pytest.approx(2 * result.activation_bytes, rel=0.1)
    assert result.total_bytes == sum(
        (result.weight_bytes, result.gradient_bytes, result.optimizer_bytes, result.activation_bytes)
    )


def test_torch_is_left_alone(tiny: Make) -> None:
    threads = torch.get_num_threads()
    dry_run(tiny("train.threads=1").recipe)
    assert torch.get_num_threads() == threads


def test_layers_are_listed_with_the_cost_of_either_way(tiny: Make) -> None:
    result = dry_run(tiny(more="\noverparam: {training: alternating}\n").recipe)
    ways = {one.layer: one for one in result.evaluated}
    assert {one.way for one in ways.values()} == {"contract", "sequence"}
    stem = ways["encoder.conv1.0"]
    # 3 to 12 channels by 3×3 on 16×24 places of 4 pictures, the product of (12·3, 9) and (9, 3·3)
    assert (stem.price.plain, stem.price.product) == (4 * 16 * 24 * 12 * 3 * 9, 36 * 9 * 9)
    assert (result.diagonal_steps, result.encoder_passes) == (12, 1)
    assert result.hours > result.total_steps * result.seconds / 3600
    text = describe(result)
    assert "factors" in text and "encoder.conv1.0" in text and "pass 1" in text


@pytest.mark.slow
def test_a_weight_a_task_costs_an_encoder_pass_a_task(tiny: Make) -> None:
    plain = dry_run(tiny().recipe)
    result = dry_run(tiny(more="\noverparam: {per_task: true}\n").recipe)
    assert result.encoder_passes == 2
    assert 1.5 * plain.macs < result.macs < 2 * plain.macs  # the heads run once each
    assert "2 encoder passes" in describe(result)


@pytest.mark.slow
def test_a_target_shows_what_it_will_leave(tiny: Make) -> None:
    more = "\nsparsity: {selective: {mac_reduction: 0.4, min_channels: 4}}\n"
    found = dry_run(tiny("surgery.align=4", more=more).recipe)
    assert found.remaining is not None
    assert 0.4 * found.macs < found.remaining.macs <= 0.6 * found.macs
    assert found.remaining.parameters < found.parameters
    assert all(4 <= kept <= whole and kept % 4 == 0 for kept, whole in found.remaining.channels.values())
    assert found.notes[0] == "channels in multiples of 4 (surgery.align)"


@pytest.mark.slow
def test_a_lambda_alone_tells_nothing_before_training(tiny: Make) -> None:
    found = dry_run(tiny(more="\nsparsity: {strength: 1.0e-4}\n").recipe)
    assert found.remaining is None and found.notes
    with pytest.warns(DeprecationWarning, match=r"DryRun\.remaining"):
        assert found.left is None
