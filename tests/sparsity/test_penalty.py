"""The group lasso's value, weights and bounds."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from compactmtl.errors import ConfigError
from compactmtl.graph.groups import GroupFamily, Member
from compactmtl.sparsity import ChannelGroups, GroupLasso


def layer() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, 4)


def rows(model: nn.Linear) -> ChannelGroups:
    indices = np.arange(4, dtype=np.int64)[:, None]
    members = (Member("weight", 0, indices, "producer"), Member("bias", 0, indices, "producer"))
    return ChannelGroups([GroupFamily("fc", members, 4, 1.0, 1.0)], dict(model.named_parameters()))


def test_value_is_the_weighed_sum_of_group_norms() -> None:
    model = layer()
    rows_of = [torch.cat([model.weight[i], model.bias[i : i + 1]]) for i in range(4)]
    expected = 0.5 * math.sqrt(4) * torch.stack([row.norm() for row in rows_of]).sum()
    # Four float32 norms summed in another order.
    torch.testing.assert_close(GroupLasso(rows(model), 0.5).value(), expected, rtol=1e-6, atol=0)
    norms = GroupLasso(rows(model), 0.5).group_norms()
    torch.testing.assert_close(norms[0], torch.stack([row.norm() for row in rows_of]).detach())


def test_the_gradient_at_a_zero_group_is_zero() -> None:
    model = layer()
    with torch.no_grad():
        model.weight[1] = 0
        model.bias[1] = 0
    GroupLasso(rows(model), 0.5).value().backward()  # type: ignore[no-untyped-call]
    assert model.weight.grad is not None
    assert model.weight.grad[1].abs().max() == 0
    torch.testing.assert_close(
        model.weight.grad[0], 0.5 * 2 * model.weight[0] / torch.cat([model.weight[0], model.bias[:1]]).norm()
    )


def test_value_of_another_model() -> None:
    model, other = layer(), layer()
    with torch.no_grad():
        other.weight.mul_(2)
        other.bias.mul_(2)
    penalty = GroupLasso(rows(model), 0.5)
    assert penalty.value(other).item() == pytest.approx(2 * penalty.value().item(), rel=1e-6)  # float32


@pytest.mark.parametrize("strength", [-1e-5, math.nan, math.inf])
def test_strength_out_of_range(strength: float) -> None:
    with pytest.raises(ConfigError, match="strength"):
        GroupLasso(rows(layer()), strength)
