"""Which layers a kind takes, at what rank, and in which precision."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from compactmtl.overparam import Kind, contract, factorized_layers, overparameterize


def test_a_stem_of_one_channel_is_not_depthwise() -> None:
    assert "0" in factorized_layers(overparameterize(nn.Sequential(nn.Conv2d(1, 8, 3))))


def test_numbers_of_other_libraries_are_ranks() -> None:
    net = nn.Sequential(nn.Conv2d(4, 8, 3))
    assert factorized_layers(overparameterize(net, rank=np.int64(4)))["0"].rank == 4  # type: ignore[arg-type]
    assert factorized_layers(overparameterize(net, rank=np.float32(0.5)))["0"].rank == 6  # type: ignore[arg-type]


def test_expandnet_expands_by_default() -> None:
    layer = factorized_layers(overparameterize(nn.Sequential(nn.Conv2d(4, 8, 3)), "expandnet_cl"))["0"]
    assert layer.K.shape == (32, 16, 3, 3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", ["svd", "cp", "tucker", "expandnet_cl", "expandnet_ck", "repvgg"])
def test_half_precision(kind: Kind, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    trained = overparameterize(nn.Sequential(nn.Conv2d(4, 4, 5, padding=2)).to(dtype), kind).train()
    assert torch.isfinite(trained(torch.randn(2, 4, 8, 8, dtype=dtype))).all()
    contract(trained)
