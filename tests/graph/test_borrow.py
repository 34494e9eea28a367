"""A module that is run for somebody else is afterwards what it was before."""

from __future__ import annotations

import copy
import functools
import random
from collections import deque
from types import SimpleNamespace
from typing import Any, ClassVar, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compactmtl.graph.borrow import borrowed

CACHE: dict[int, Tensor] = {}


@functools.lru_cache
def grid(size: int) -> Tensor:
    return torch.arange(float(size))


class Restless(nn.Module):
    """Changes at every run all that a module can change."""

    shared: ClassVar[list[Tensor]] = []
    steps: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.calls = 0
        self.last: Tensor | None = None
        self.kept: dict[str, Any] = {"all": [deque([1])], "names": {"one"}}
        self.cache = SimpleNamespace(value=torch.zeros(4), found=[])
        self.counts = np.zeros(2)
        self.generator = torch.Generator().manual_seed(5)
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.layer(x)) + grid(4)
        self.calls += 1
        self.last = y
        self.kept["all"][0].append(y)
        self.kept["names"].add("two")
        self.kept["new"] = y
        self.cache.value += 1
        self.cache.found.append(y)
        self.cache.late = y
        self.counts += 1
        self.layer.weight.data.mul_(2)
        self.layer.bias.data = self.layer.bias.data + 1
        self.norm.weight.requires_grad_(False)
        self.steps += 1
        self.register_buffer("made", y)
        self.shared.append(y)
        CACHE[len(CACHE)] = y
        return (
            y + torch.rand(1) + torch.rand(1, generator=self.generator) + random.random() + np.random.rand()
        )


def look(model: Restless) -> dict[str, Any]:
    """What there is to see of it."""
    return {
        "state": {name: value.clone() for name, value in model.state_dict().items()},
        "places": [value.data_ptr() for value in model.parameters()],
        "names": list(vars(model)),
        "simple": (
            model.calls,
            model.last,
            copy.deepcopy(model.kept),
            list(model.cache.found),
            vars(model.cache).keys() - {"value"},
        ),
        "cache": model.cache.value.clone(),
        "counts": model.counts.tolist(),
        "modes": [module.training for module in model.modules()],
        "wants": [value.requires_grad for value in model.parameters()],
        "hooks": [len(module._forward_hooks) for module in model.modules()],
        "outside": (list(Restless.shared), dict(CACHE), grid.cache_info().currsize),
        "random": (
            torch.get_rng_state(),
            random.getstate(),
            cast(Any, np.random.get_state())[1].tolist(),
            model.generator.get_state(),
        ),
    }


def assert_same(one: Any, other: Any) -> None:
    if isinstance(one, Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        for left, right in zip(one, other, strict=True):
            assert_same(left, right)
    else:
        assert one == other


def test_nothing_of_a_run_is_left() -> None:
    model = Restless()
    model.layer.eval()
    before = look(model)
    with borrowed(model):
        model.layer.register_forward_hook(lambda module, given, result: None)
        model(torch.randn(2, 4))
        assert not model.training and model.calls == 1
    assert_same(look(model), before)


def _fail_after_a_run(model: nn.Module) -> None:
    model(torch.randn(2, 4))
    raise ZeroDivisionError


def test_nothing_is_left_after_an_error() -> None:
    model = Restless()
    before = look(model)
    with pytest.raises(ZeroDivisionError), borrowed(model):
        _fail_after_a_run(model)
    assert_same(look(model), before)


def test_a_callers_inference_mode_makes_no_tensor_that_cannot_be_trained_with() -> None:
    model = Restless()
    with torch.inference_mode():
        with borrowed(model):
            made = model(torch.randn(2, 4))
            assert not torch.is_grad_enabled()
        assert torch.is_inference_mode_enabled()
    assert not made.is_inference()


def test_a_layer_that_merges_on_the_change_of_mode_keeps_its_weight() -> None:
    class Merging(nn.Linear):
        merged = False

        def train(self, mode: bool = True) -> Merging:
            if self.merged == mode:
                self.weight.data += 1.0 if self.merged is False else -1.0
                self.merged = not mode
            elif not mode:
                self.weight.data += 1.0
                self.merged = True
            return super().train(mode)

    model = Merging(2, 2)
    before = model.weight.detach().clone()
    with borrowed(model):
        assert not torch.equal(model.weight, before)
    assert torch.equal(model.weight, before) and model.training and not model.merged


def test_numbers_that_a_watcher_collects_outside_stay() -> None:
    seen: list[bool] = []
    kept: list[Tensor] = []
    layer = nn.Linear(2, 2)
    layer.register_forward_hook(lambda module, given, result: seen.append(torch.is_grad_enabled()))
    layer.register_forward_hook(lambda module, given, result: kept.append(result))
    with borrowed(layer):
        layer(torch.zeros(1, 2))
    assert seen == [False] and not kept
