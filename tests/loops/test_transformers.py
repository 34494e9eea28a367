"""Shrinking under the Trainer of transformers: the same as in a plain loop, and bit-equal over a kill."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.optim.lr_scheduler import LambdaLR

from compactmtl.errors import ArtifactError, ConfigError, TrainingError
from compactmtl.loops import Shrinking
from tests.loops.killed import FINAL, assert_equal, process
from tests.loops.transformers_run import SIZE, callback, segformer, trainer

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::UserWarning:transformers.*")]
RUN = "tests.loops.transformers_run"


@pytest.mark.timeout(900)  # three processes, half a minute alone
def test_a_killed_training_goes_on_bit_equal(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert (done := process(RUN, whole)).returncode == 0, done.stderr
    assert process(RUN, parts, "--kill", 17).returncode == -signal.SIGKILL  # in the last of four epochs
    assert not (parts / FINAL).exists()
    state = load_file(parts / "checkpoint-14" / "model.safetensors")  # in mid-epoch, after channels had gone
    assert _sizes(state) == _sizes(segformer().state_dict())  # transformers saves under names of its own
    optimizer = torch.load(parts / "checkpoint-14" / "optimizer.pt", weights_only=True)
    assert sum(bool((one["exp_avg_sq"] == 0).any()) for one in optimizer["state"].values()) > 3
    assert (done := process(RUN, parts, "--resume", parts / "checkpoint-14")).returncode == 0, done.stderr
    assert_equal(parts, whole)


def _sizes(state: dict[str, torch.Tensor]) -> list[tuple[int, ...]]:
    return sorted(tuple(value.shape) for value in state.values())


def test_it_is_the_plain_loop(tmp_path: Path) -> None:
    more = {
        "save_strategy": "no",
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "optim": "adamw_torch",
    }
    shrinking = callback()
    training = trainer(tmp_path, segformer(), shrinking, **more)
    training.train()
    torch.manual_seed(training.args.seed)
    batches = [batch for epoch in range(4) for batch in _epoch(training, epoch)]

    model = segformer()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.0)
    schedule = LambdaLR(optimizer, lambda step: 1.0)
    plain = Shrinking(
        model,
        optimizer,
        {"pixel_values": torch.zeros(1, 3, SIZE, SIZE)},
        total_steps=20,
        mac_reduction=0.3,
        min_channels=2,
        every=2,
        start=0.1,
        end=0.5,
        shrink_every=1,
    )
    for index, batch in enumerate(batches):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
        plain.step()
        schedule.step()
        if index % 5 == 4:
            plain.end_epoch()
    assert shrinking.shrinking.reached and plain.reached
    assert plain.report()["layers"] == shrinking.shrinking.report()["layers"]
    expected = plain.finish()
    found = shrinking.finish()
    assert found.plan == expected.plan and found.report.mac_reduction >= 0.3
    for name, value in expected.model.state_dict().items():
        torch.testing.assert_close(found.model.state_dict()[name], value, rtol=1e-4, atol=1e-5)


def test_weights_that_the_trainer_did_not_load_are_noticed(tmp_path: Path) -> None:
    more = {"save_steps": 3, "max_steps": 3}
    trainer(tmp_path, segformer(), callback(), **more).train()
    again = trainer(tmp_path, segformer(seed=5), callback(), **{**more, "max_steps": 4})
    with pytest.raises(ArtifactError, match="other weights of SegformerForSemanticSegmentation") as caught:
        again.train(resume_from_checkpoint=True)
    assert "from_pretrained" in caught.value.hint


def _epoch(training: object, epoch: int) -> list[dict[str, torch.Tensor]]:
    loader = training.get_train_dataloader()  # type: ignore[attr-defined]
    loader.set_epoch(epoch)
    return list(loader)


def test_gradients_may_accumulate(tmp_path: Path) -> None:
    shrinking = callback(shrink_every=None)
    training = trainer(
        tmp_path,
        segformer(),
        shrinking,
        gradient_accumulation_steps=2,
        save_strategy="no",
        num_train_epochs=6,
    )
    training.train()
    assert shrinking.shrinking.steps == training.state.max_steps == 18
    assert shrinking.finish().report.mac_reduction >= 0.3


def test_misuse_is_said(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="has not begun"):
        callback().finish()
    with pytest.raises(ConfigError, match="without their example inputs"):
        trainer(tmp_path, segformer(), callback(), restore_callback_states_from_checkpoint=True)
    training = trainer(tmp_path, segformer(), callback(module="encoder"))
    with pytest.raises(ConfigError, match="has no module 'encoder'") as caught:
        training.train()
    assert "segformer, decode_head" in caught.value.hint
