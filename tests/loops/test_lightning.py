"""Shrinking under Lightning's own Trainer: the same as in a plain loop, and bit-equal over a kill."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import torch
from torch import nn

from compactmtl.errors import ConfigError, TrainingError
from compactmtl.loops import Shrinking
from tests.loops.killed import FINAL, assert_equal, process
from tests.loops.lightning_run import Module, callback, loader, trainer
from tests.loops.nets import EPOCHS, STEPS, adam, backward, example, loss_of, two_heads

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::UserWarning:lightning.*"),
    pytest.mark.filterwarnings("ignore::FutureWarning:lightning.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:lightning.*"),
]
RUN = "tests.loops.lightning_run"


@pytest.mark.timeout(900)  # three processes, half a minute alone
def test_a_killed_training_goes_on_bit_equal(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert (done := process(RUN, whole)).returncode == 0, done.stderr
    assert process(RUN, parts, "--kill", 33).returncode == -signal.SIGKILL  # in the last of six epochs
    assert not (parts / FINAL).exists()
    checkpoint = torch.load(parts / "last.ckpt", weights_only=True)
    assert json.loads(checkpoint["callbacks"]["LightningShrinking"]["removed"])["slices"]  # channels had gone
    assert checkpoint["state_dict"].keys() == Module().state_dict().keys()
    wide = [value.shape for value in Module().state_dict().values()]
    assert [value.shape for value in checkpoint["state_dict"].values()] == wide
    assert (done := process(RUN, parts, "--resume")).returncode == 0, done.stderr
    assert_equal(parts, whole)


def test_it_is_the_plain_loop() -> None:
    shrinking = callback()
    module = Module()
    trainer(shrinking, gradient_clip_val=1.0, enable_checkpointing=False).fit(module, loader())

    model = two_heads()
    optimizer = adam(model)
    plain = Shrinking(
        model,
        optimizer,
        example(),
        total_steps=STEPS,
        mac_reduction=0.5,
        min_channels=2,
        every=2,
        start=0.1,
        end=0.6,
        shrink_every=1,
    )
    for _ in range(EPOCHS):
        for image in loader():
            optimizer.zero_grad()
            backward(loss_of(model(image), image))
            plain.observe()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            plain.step()
        plain.end_epoch()
    expected = plain.finish().model.state_dict()
    for name, value in shrinking.finish().model.state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_gradients_may_accumulate() -> None:
    shrinking = callback(shrink_every=None)
    trainer(shrinking, accumulate_grad_batches=2, enable_checkpointing=False).fit(Module(), loader())
    assert shrinking.shrinking.steps == STEPS // 2
    assert shrinking.finish().report.mac_reduction >= 0.5


def test_misuse_is_said_before_training() -> None:
    with pytest.raises(TrainingError, match="has not begun"):
        callback().finish()
    fit = trainer(callback(module="network"), enable_checkpointing=False)
    with pytest.raises(ConfigError, match="Module has no module 'network'") as caught:
        fit.fit(Module(), loader())
    assert "net" in caught.value.hint
    endless = trainer(callback(), max_epochs=-1, enable_checkpointing=False)
    with pytest.raises(ConfigError, match="without an end"):
        endless.fit(Module(), loader())
    shrinking = callback()
    trainer(shrinking, enable_checkpointing=False).fit(Module(), loader())
    with pytest.raises(TrainingError, match="has shrunk a network already"):
        trainer(shrinking, enable_checkpointing=False).fit(Module(), loader())
