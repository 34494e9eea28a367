"""Channels that a forward counts with one number leave the network while it trains only where all of them can."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from compactmtl.loops.removed import Removed
from compactmtl.sparsity import channel_groups
from tests.surgery.test_numbers_of_a_forward import Attention

IMAGE = torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("spelling", ["fused", "scores divided"])
def test_values_stay_as_wide_as_queries_that_cannot_go(spelling: str, heads: int) -> None:
    """The scale follows the width, so that queries and keys stay; and the forward views values by the same number."""
    torch.manual_seed(0)
    model = nn.Sequential(Attention(spelling, heads), nn.Linear(12, 6), nn.ReLU(), nn.Linear(6, 3))
    groups = channel_groups(model, (IMAGE,))
    flags = [np.isin(np.arange(family.size), [0, 1]) for family in groups]
    with torch.no_grad():
        for family, gone in zip(groups.bound, flags, strict=True):
            for one in family.tensors:
                one.zero_(one.parameter, torch.from_numpy(gone))
    plan = Removed(model, (IMAGE,)).find(model, groups, flags)
    assert plan is not None
    cut = {(one.tensor, one.dim): len(one.keep) for one in plan.slices}
    assert cut["1.weight", 0] == 4  # what can go goes
    assert not [name for name, _ in cut if ".value" in f".{name}" or ".query" in f".{name}"]
