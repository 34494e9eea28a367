"""Copies of models: deep, in another type, sharing; tied and computed tensors included."""

from __future__ import annotations

from collections import deque
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import weight_norm

from compactmtl.graph.copies import copy_model, tensors_of


def _tied() -> Any:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.BatchNorm1d(3))
    model[1].weight = model[0].weight
    model[0].requires_grad_(False)
    model.extra = torch.ones(2)
    return model


def test_copy_shares_nothing_and_keeps_ties() -> None:
    model = _tied()
    copied: Any = copy_model(model)
    assert not {value.data_ptr() for value in tensors_of(model)} & {
        value.data_ptr() for value in tensors_of(copied)
    }
    assert copied[0].weight is copied[1].weight and not copied[0].weight.requires_grad
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in copied.state_dict().items())


def test_copy_in_another_type_converts_floats_alone() -> None:
    copied: Any = copy_model(_tied(), dtype=torch.float64)
    assert copied[0].weight.dtype == copied[2].running_mean.dtype == copied.extra.dtype == torch.float64
    assert copied[2].num_batches_tracked.dtype == torch.int64


def test_copy_that_shares_holds_the_same_tensors_in_its_own_modules() -> None:
    model = _tied()
    copied: Any = copy_model(model, share=True)
    assert copied[0] is not model[0] and copied[0].weight is model[0].weight
    copied[2].running_mean = torch.zeros(1)
    assert model[2].running_mean.shape == (3,)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
def test_weight_that_a_call_computed_is_copied() -> None:
    model = weight_norm(nn.Linear(3, 3))
    given = torch.ones(1, 3)
    expected = model(given)
    assert torch.equal(copy_model(model)(given), expected)
    assert copy_model(model, dtype=torch.float64)(given.double()).dtype == torch.float64


@pytest.mark.parametrize("share", [False, True])
def test_what_a_forward_keeps_in_a_dict_is_copied(share: bool) -> None:
    model: Any = nn.Linear(2, 2)
    model.cache = {"cpu": [model.weight * 2]}  # with a history of gradients, which copy.deepcopy refuses
    copied: Any = copy_model(model, dtype=torch.float64, share=share)
    kept = copied.cache["cpu"][0]
    assert kept.dtype == torch.float64 and torch.equal(kept.float(), model.cache["cpu"][0])
    assert not kept.requires_grad and kept is not model.cache["cpu"][0]


def test_what_a_forward_has_kept_is_copied_wherever_it_lies() -> None:
    model: Any = nn.Sequential(nn.Linear(3, 3))
    y = model(torch.ones(1, 3))
    model.cache = SimpleNamespace(last=y, layers=[{"keys": deque([y * 2])}])
    model.hidden = [nn.Linear(3, 3)]
    copied: Any = copy_model(model, dtype=torch.float64)
    assert copied.cache.last.dtype == copied.cache.layers[0]["keys"][0].dtype == torch.float64
    assert copied.hidden[0].weight.dtype == torch.float64 and model.hidden[0].weight.dtype == torch.float32


def test_a_copy_made_in_inference_mode_can_be_trained() -> None:
    with torch.inference_mode():
        copied = copy_model(nn.Linear(3, 3))
    assert not any(value.is_inference() for value in copied.parameters())
