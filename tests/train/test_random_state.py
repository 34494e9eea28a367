"""Random generators are seeded from one seed and go on where a checkpoint left them."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from compactmtl.runs.checkpoint import load_state, save_checkpoint
from compactmtl.train.random_state import (
    random_state,
    restore_random_state,
    same_random_state,
    seed_everything,
)


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


def test_generators_are_put_back_also_after_an_error() -> None:
    seed_everything(3)
    expected = draw()
    seed_everything(3)

    def fails() -> None:
        draw()
        raise RuntimeError

    with pytest.raises(RuntimeError), same_random_state():
        fails()
    assert draw() == expected


def test_one_seed_seeds_every_generator() -> None:
    seed_everything(5)
    first = draw()
    seed_everything(5)
    assert draw() == first


class Devices:
    """Stands for torch.cuda on a machine with several GPUs: a state of each, and on which of them memory is held."""

    def __init__(self, count: int, held: set[int], current: int = 0) -> None:
        self.states = [torch.full((4,), index, dtype=torch.uint8) for index in range(count)]
        self.held, self.current = held, current

    def get_rng_state_all(self) -> list[torch.Tensor]:
        return self.states

    def device_count(self) -> int:
        return len(self.states)

    def current_device(self) -> int:
        return self.current

    def memory_reserved(self, device: torch.device) -> int:
        return device.index in self.held

    def get_rng_state(self, device: torch.device) -> torch.Tensor:
        return self.states[device.index].clone()

    def set_rng_state(self, state: torch.Tensor, device: torch.device) -> None:
        self.states[device.index] = state

    @property
    def marks(self) -> list[int]:
        return [int(state[0]) for state in self.states]


def machine(patch: pytest.MonkeyPatch, count: int, held: set[int], current: int = 0) -> Devices:
    found = Devices(count, held, current)
    patch.setattr(torch, "get_device_module", lambda device: found)
    return found


def test_every_device_in_use_is_saved_and_put_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    devices = machine(monkeypatch, 3, held={0, 1})
    save_checkpoint(
        tmp_path / "last", torch.nn.Linear(2, 2), {"random": random_state(torch.device("cuda:1"))}
    )
    state = load_state(tmp_path / "last")
    assert state is not None
    assert set(state["random"]["devices"]) == {"cuda:0", "cuda:1"}  # the third was not touched
    devices.states = [torch.full((4,), 9, dtype=torch.uint8) for _ in range(3)]
    restore_random_state(state["random"], torch.device("cuda:1"))
    assert devices.marks == [0, 1, 9]


def test_a_run_that_moved_takes_its_state_along(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, 4, held={3}, current=3)
    state = random_state(torch.device("cuda"))
    assert state["device"] == "cuda:3"
    there = machine(monkeypatch, 1, held=set())
    restore_random_state(state, torch.device("cuda"))
    assert there.marks == [3]


def test_a_run_that_left_its_gpu_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    state = random_state(torch.device("cpu"))
    assert state["devices"] == {}
    here = machine(monkeypatch, 2, held={0})
    restore_random_state(state, torch.device("cuda:0"))
    assert here.marks == [0, 1]
    restore_random_state(random_state(torch.device("cuda:0")), torch.device("cpu"))


def test_a_state_of_earlier_versions_is_a_list_of_all_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    old = random_state()
    del old["devices"], old["device"]
    here = machine(monkeypatch, 2, held=set())
    restore_random_state(old | {"cuda": []}, torch.device("cuda:1"))
    assert here.marks == [0, 1]
    saved = [torch.full((4,), mark, dtype=torch.uint8) for mark in (5, 6, 7)]
    restore_random_state(old | {"cuda": saved}, torch.device("cuda:1"))
    assert here.marks == [5, 6]
    alone = machine(monkeypatch, 1, held=set())
    restore_random_state(old | {"cuda": saved}, torch.device("cuda:0"))
    assert alone.marks == [5]
    restore_random_state(old | {"cuda": saved}, torch.device("cpu"))


def draw() -> list[float]:
    return [random.random(), float(np.random.standard_normal()), float(torch.randn(()))]
