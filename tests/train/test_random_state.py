"""Random generators are seeded from one seed and go on where a checkpoint left them."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch

from compactmtl.runs.checkpoint import load_state, save_checkpoint
from compactmtl.train.random_state import random_state, restore_random_state, seed_everything


def test_random_generators_go_on_where_they_were(tmp_path: Path) -> None:
    seed_everything(3)
    draw()
    save_checkpoint(tmp_path / "last", torch.nn.Linear(2, 2), {"random": random_state()})
    state = load_state(tmp_path / "last")
    assert state is not None
    restore_random_state(state["random"])
    expected = draw()
    seed_everything(4)
    restore_random_state(state["random"])
    assert draw() == expected


def test_one_seed_seeds_every_generator() -> None:
    seed_everything(5)
    first = draw()
    seed_everything(5)
    assert draw() == first


def draw() -> list[float]:
    return [random.random(), float(np.random.standard_normal()), float(torch.randn(()))]
