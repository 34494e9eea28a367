"""Bit-equal kernels on a GPU and the precision of float32: what a recipe asks for is set, undone, and explained."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch

from compactmtl.config import Resolved
from compactmtl.errors import ConfigError
from compactmtl.runs.identity import recipe_hash
from compactmtl.train.faults import explained
from compactmtl.train.machine import CUBLAS, CUBLAS_FIXED, pinned, torch_settings

Make = Callable[..., Resolved]


def cudnn_flags() -> tuple[bool, bool]:
    return torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark


def test_a_gpu_runs_deterministic_kernels_alone(tiny: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(CUBLAS, raising=False)
    memory: Any = torch.utils.deterministic
    filled = memory.fill_uninitialized_memory
    with torch_settings(tiny("train.device=cuda").recipe):
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.is_deterministic_algorithms_warn_only_enabled()
        assert cudnn_flags() == (True, False)
        assert os.environ[CUBLAS] == CUBLAS_FIXED
        assert not memory.fill_uninitialized_memory
    assert not torch.are_deterministic_algorithms_enabled()
    assert memory.fill_uninitialized_memory == filled
    with torch_settings(tiny("train.device=cuda:1", "train.deterministic=false").recipe):
        assert not torch.are_deterministic_algorithms_enabled()
        assert cudnn_flags() == (False, True)
    with torch_settings(tiny().recipe):  # a CPU needs no switch
        assert not torch.are_deterministic_algorithms_enabled()


def test_what_the_user_set_for_cublas_is_left(tiny: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CUBLAS, ":16:8")
    with torch_settings(tiny("train.device=cuda").recipe):
        assert os.environ[CUBLAS] == ":16:8"


def test_an_operator_without_a_deterministic_form_is_named(tiny: Make) -> None:
    recipe = tiny("train.device=cuda").recipe
    # a real message of torch, from an operator of the CPU's
    with (
        pytest.raises(ConfigError, match=r"put_ has no deterministic version on cuda") as caught,
        torch_settings(recipe),
        explained(recipe),
    ):
        torch.zeros(3).put_(torch.tensor([0, 0]), torch.ones(2))
    assert "train.deterministic=false" in caught.value.hint
    assert caught.value.exit_code == 2


def test_a_cublas_that_is_not_deterministic_is_explained(tiny: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CUBLAS, ":0:0")
    message = (
        f"Deterministic behavior was enabled with either ..., set an environment variable: {CUBLAS}=:4096:8"
    )
    recipe = tiny("train.device=cuda").recipe
    with (
        pytest.raises(ConfigError, match="is ':0:0', with which cuBLAS sums in no fixed order"),
        explained(recipe),
    ):
        raise RuntimeError(message)


def test_another_error_stays_as_it_is(tiny: Make) -> None:
    with pytest.raises(RuntimeError, match="something else"), explained(tiny().recipe):
        raise RuntimeError("something else")


@pytest.mark.parametrize("tf32", [False, True])
def test_the_recipe_says_how_float32_is_multiplied(tiny: Make, tf32: bool) -> None:
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    with torch_settings(tiny(f"train.tf32={str(tf32).lower()}").recipe):
        assert torch.backends.cudnn.allow_tf32 is tf32
        assert torch.backends.cuda.matmul.allow_tf32 is tf32
    assert (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32) == before


def test_runs_of_earlier_versions_are_the_same_runs(tiny: Make) -> None:
    plain = recipe_hash(tiny().recipe)
    assert recipe_hash(tiny("train.tf32=false", "train.deterministic=false").recipe) == plain
    assert recipe_hash(tiny("train.tf32=true").recipe) != plain


def test_batches_are_page_locked_for_a_gpu_alone(tiny: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pinned(tiny("train.device=cuda:0").recipe)
    assert not pinned(tiny().recipe)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert not pinned(tiny("train.device=cuda:0").recipe)
