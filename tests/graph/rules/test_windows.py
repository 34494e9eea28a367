"""Attention in windows: heads go with their column of the table of relative positions, also under a mask of windows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.support.masking import compacted, image, kill, shape

HEADS, WIDTH, WINDOWS, POSITIONS = 3, 4, 2, 4


class Shifted(nn.Module):
    """Swin's shifted windows: a bias for each head and pair of positions, and a mask for each window, repeated for all heads."""

    index: Tensor
    mask: Tensor

    def __init__(self, fused: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fused, self.num_heads, self.scale = fused, HEADS, WIDTH**-0.5
        self.qkv, self.proj = nn.Linear(6, 3 * HEADS * WIDTH), nn.Linear(HEADS * WIDTH, 6)
        self.table = nn.Parameter(torch.randn(9, HEADS))
        self.register_buffer("index", torch.randint(9, (POSITIONS, POSITIONS)))
        mask = torch.where(torch.rand(WINDOWS, POSITIONS, POSITIONS) < 0.3, -100.0, 0.0)
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        bias = self.table[self.index.view(-1)].view(n, n, -1).permute(2, 0, 1).contiguous().unsqueeze(0)
        if self.fused:
            mask = self.mask.view(1, WINDOWS, 1, n, n).expand(b // WINDOWS, -1, self.num_heads, -1, -1)
            y = F.scaled_dot_product_attention(q, k, v, bias + mask.reshape(-1, self.num_heads, n, n))
        else:
            scores = q * self.scale @ k.transpose(-2, -1) + bias
            scores = scores.view(-1, WINDOWS, self.num_heads, n, n) + self.mask.unsqueeze(1).unsqueeze(0)
            y = scores.view(-1, self.num_heads, n, n).softmax(-1) @ v
        z: Tensor = x + self.proj(y.transpose(1, 2).reshape(b, n, -1))
        return z


@pytest.mark.parametrize("fused", [True, False])
def test_heads_go_under_a_mask_of_windows(fused: bool) -> None:
    model = Shifted(fused)
    rows = list(range(WIDTH, 2 * WIDTH))
    kill(model.qkv, zero=[12 * part + row for part in range(3) for row in rows])
    result = compacted(model, image(2 * WINDOWS, POSITIONS, 6))
    assert shape(result, "qkv.weight") == (24, 6) and shape(result, "proj.weight") == (6, 8)
    assert shape(result, "table") == (9, 2)
