"""Models whose layers are of several floating types are proved in exact arithmetic."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compactmtl.surgery import compact


class Half(nn.Module):
    """A narrow body around a norm in float32, as large networks keep theirs."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.first = nn.Linear(8, 16)
        self.second = nn.Linear(16, 16)
        self.norm = nn.LayerNorm(16)
        self.last = nn.Linear(16, 4)
        with torch.no_grad():
            self.first.weight[:2] = 0
            self.first.bias[:2] = 0
        self.to(dtype)
        self.norm.float()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(
            self.norm(self.second(F.relu(self.first(x))).float()).to(self.last.weight.dtype)
        )
        return y


class HalfHead(nn.Module):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.first = nn.Linear(8, 16)
        self.last = nn.Linear(16, 4).to(dtype)
        with torch.no_grad():
            self.first.weight[:2] = 0
            self.first.bias[:2] = 0

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(F.relu(self.first(x)).to(dtype=self.last.weight.dtype))
        return y


@pytest.mark.parametrize("kind", [Half, HalfHead])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_channels_go_and_every_type_stays(kind: Any, dtype: torch.dtype) -> None:
    model = kind(dtype).eval()
    types = {name: value.dtype for name, value in model.named_parameters()}
    result = compact(model, (torch.randn(2, 8).to(next(iter(types.values()))),))
    assert result.model.get_submodule("first").out_features == 14
    assert result.report.proof.dtype == "float64" and result.report.proof.max_relative_error < 1e-9
    assert {name: value.dtype for name, value in result.model.named_parameters()} == types
