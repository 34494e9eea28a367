"""Sums, minima and factors over groups agree with a loop over the groups."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from compactmtl.errors import ConfigError
from compactmtl.graph.groups import GroupFamily, Member
from compactmtl.sparsity.grouped_tensor import GroupedTensor, bind


@given(
    n=st.integers(1, 5),
    k=st.integers(1, 3),
    spare=st.integers(0, 3),
    shape=st.lists(st.integers(1, 3), max_size=3).map(tuple),
    dim=st.integers(0, 3),
    seed=st.integers(0, 100),
)
def test_reductions_and_broadcasts(
    n: int, k: int, spare: int, shape: tuple[int, ...], dim: int, seed: int
) -> None:
    size, dim = n * k + spare, min(dim, len(shape))
    values = torch.randn((*shape[:dim], size, *shape[dim:]), generator=torch.Generator().manual_seed(seed))
    indices = np.random.default_rng(seed).permutation(size)[: n * k].reshape(n, k).astype(np.int64)
    slices = GroupedTensor("w", values.clone(), dim, indices, "producer")
    parts = [values.movedim(dim, 0)[indices[i]] for i in range(n)]
    assert slices.elements == parts[0].numel()
    assert slices.partial == (spare > 0)
    # float32 sums of a few numbers in another order.
    torch.testing.assert_close(
        slices.sums(values), torch.stack([p.sum() for p in parts]), rtol=1e-5, atol=1e-5
    )
    assert torch.equal(slices.minima(values), torch.stack([p.min() for p in parts]))
    expected = torch.full_like(values, 7.0)
    for i in range(n):
        expected.movedim(dim, 0)[indices[i]] = float(i)
    assert torch.equal(slices.spread(torch.arange(n).float(), 7.0).expand_as(values), expected)
    flagged = torch.arange(n) % 2 == 0
    slices.zero_(slices.parameter, flagged)
    kept = torch.where((expected % 2 == 0) & (expected < 7), 0.0, values)
    assert torch.equal(slices.parameter, kept)


def family(*members: Member, size: int = 2) -> GroupFamily:
    return GroupFamily("layer", members, size, 1.0, 1.0)


def member(indices: list[list[int]], parameter: str = "weight", dim: int = 0) -> Member:
    return Member(parameter, dim, np.array(indices, dtype=np.int64), "producer")


LAYER = {"weight": nn.Parameter(torch.ones(4, 3)), "bias": nn.Parameter(torch.zeros(4))}


def test_norms_and_zeros_run_over_all_members() -> None:
    bound = bind(family(member([[0], [1]]), member([[2], [3]], "bias")), LAYER)
    assert bound.elements == 4
    torch.testing.assert_close(bound.norms().detach(), torch.full((2,), 3.0).sqrt())
    assert bound.zeros().tolist() == [False, False]


def test_a_tensor_used_twice_belongs_to_the_group_once() -> None:
    bound = bind(family(member([[0], [1]]), member([[0], [1]])), LAYER)
    assert bound.elements == 3
    bound = bind(family(member([[0], [1]]), member([[2], [3]])), LAYER)
    assert bound.elements == 6


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (member([[0], [0]]), "overlap"),
        (member([[0], [4]]), "outside"),
        (member([[0], [-1]]), "outside"),
        (member([[0]]), "expected"),
        (member([[0], [1]], "gain"), "gain"),
    ],
)
def test_broken_groups(broken: Member, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        bind(family(broken), LAYER)


def test_uneven_shares_of_one_tensor() -> None:
    with pytest.raises(ConfigError, match="uneven"):
        bind(family(member([[0], [1]]), member([[0], [2]])), LAYER)
