"""torch's multi-head attention: the same in layers of its own, of which heads and channels go."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compactmtl.surgery import apply_plan
from compactmtl.surgery.attention import SplitAttention
from tests.support.masking import assert_close, compacted, image, kill, shape


def _attention(**options: Any) -> nn.MultiheadAttention:
    torch.manual_seed(0)
    module = nn.MultiheadAttention(12, 3, **options).double().eval()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("options", [{}, {"bias": False}, {"kdim": 5, "vdim": 7}])
@pytest.mark.parametrize("need_weights", [True, False])
def test_it_gives_what_the_attention_gives(
    batch_first: bool, options: dict[str, Any], need_weights: bool
) -> None:
    module = _attention(batch_first=batch_first, **options)
    split = SplitAttention(module)
    sizes = [12, options.get("kdim", 12), options.get("vdim", 12)]
    lengths = [4, 6, 6]
    lead = [(2, length) if batch_first else (length, 2) for length in lengths]
    q, k, v = (torch.randn(*own, size, dtype=torch.float64) for own, size in zip(lead, sizes, strict=True))
    causal = torch.ones(4, 6, dtype=torch.bool).triu(2)
    padding = torch.zeros(2, 6, dtype=torch.bool)
    padding[1, 5] = True
    for masks in (
        {},
        {"attn_mask": causal},
        {"key_padding_mask": padding},
        {"attn_mask": torch.randn(6, 4, 6).double()},
    ):
        expected = module(q, k, v, need_weights=need_weights, **masks)
        found = split(q, k, v, need_weights=need_weights, **masks)
        assert_close(expected[0], found[0])
        assert (expected[1] is None) == (found[1] is None)
        if expected[1] is not None:
            assert_close(expected[1], found[1])


def test_it_takes_single_sequences() -> None:
    module = _attention()
    x = torch.randn(5, 12, dtype=torch.float64)
    for expected, found in zip(module(x, x, x), SplitAttention(module)(x, x, x), strict=True):
        assert_close(expected, found)


class Encoder(nn.Module):
    def __init__(self, layer: bool, need_weights: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.need_weights, self.layer = need_weights, layer
        self.embed, self.out = nn.Linear(6, 12), nn.Linear(12, 3)
        if layer:
            self.block = nn.TransformerEncoderLayer(12, 3, 16, batch_first=True, norm_first=True)
        else:
            self.attention = nn.MultiheadAttention(12, 3, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.embed(x)
        if self.layer:
            y = self.block(y)
        else:
            y = y + self.attention(y, y, y, need_weights=self.need_weights)[0]
        out: Tensor = self.out(y)
        return out


def _dead_rows(module: nn.MultiheadAttention, rows: list[int], parts: tuple[int, ...] = (0, 1, 2)) -> None:
    every = [12 * part + row for part in parts for row in rows]
    with torch.no_grad():
        module.in_proj_weight[every] = 0
        module.in_proj_bias[every] = 0


@pytest.mark.parametrize("need_weights", [True, False])
def test_heads_widths_and_the_stream_go(need_weights: bool) -> None:
    model = Encoder(False, need_weights)
    _dead_rows(model.attention, list(range(4, 8)), (2,))  # whatever the second head attends to
    _dead_rows(model.attention, [0, 8], (0, 1))  # and a query and a key of the others
    kill(model.embed, zero=[1, 2])
    kill(model.attention.out_proj, zero=[1, 2])
    result = compacted(model, image(2, 5, 6))
    assert result.plan.contracted == ("attention",)
    assert shape(result, "attention.q.weight") == (6, 10) and shape(result, "attention.v.weight") == (8, 10)
    assert shape(result, "attention.out_proj.weight") == (10, 8) and shape(result, "embed.weight") == (10, 6)
    again = apply_plan(model, result.plan)
    assert_close(again(image(2, 5, 6)), result.model(image(2, 5, 6)))


def test_an_encoder_layer_of_torch_loses_a_head() -> None:
    model = Encoder(True)
    _dead_rows(model.block.self_attn, list(range(4, 8)))
    kill(model.block.linear1, zero=[0, 3, 5])
    result = compacted(model, image(2, 5, 6))
    assert shape(result, "block.self_attn.v.weight") == (8, 12)
    assert shape(result, "block.linear1.weight") == (13, 12)


def test_where_nothing_goes_it_stays_what_it_was() -> None:
    model = Encoder(False)
    kill(model.attention.out_proj, zero=[1])
    result = compacted(model, image(2, 5, 6))
    assert type(result.model.get_submodule("attention")) is nn.MultiheadAttention
    assert not result.plan.contracted


@pytest.mark.parametrize("read", ["embed_dim", "in_proj_weight"])
def test_where_a_forward_reads_more_of_it_than_its_output_it_stays_what_it_was(read: str) -> None:
    class Read(Encoder):
        def forward(self, x: Tensor) -> Tensor:
            known = getattr(self.attention, read)
            scale = known**-0.5 if isinstance(known, int) else known.square().mean()
            scaled: Tensor = super().forward(x) * scale
            return scaled

    model = Read(False)
    _dead_rows(model.attention, list(range(4, 8)), (2,))
    kill(model.embed, zero=[1])
    result = compacted(model, image(2, 5, 6))
    assert type(result.model.get_submodule("attention")) is nn.MultiheadAttention
    assert not result.plan.contracted
