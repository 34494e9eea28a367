"""One counter of MACs: by hand, against torch's own FLOP counter, and as the channel graph sees the same network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from compactmtl.graph import ChannelGraph, cost

TOKENS = torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(0))
MAP = torch.randn(2, 4, 5, 5, generator=torch.Generator().manual_seed(0))
MATRIX = torch.ones(16, 16)


class Function(nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(*inputs)


def heads(x: Tensor, count: int) -> Tensor:
    return x.view(2, 6, 4, 4).transpose(1, 2)[:, :count]


# 12 tokens of 16 channels: products of their projections, and q·kᵀ with the sum of v for every pair
PAIRS = 2 * 6 * 6
BY_HAND: dict[str, tuple[nn.Module, tuple[Tensor, ...], int]] = {
    "attention": (
        nn.MultiheadAttention(16, 4, batch_first=True),
        (TOKENS, TOKENS, TOKENS),
        12 * 4 * 256 + PAIRS * 2 * 16,
    ),
    "encoder layer": (
        nn.TransformerEncoderLayer(16, 4, 32, batch_first=True),
        (TOKENS,),
        12 * 4 * 256 + PAIRS * 2 * 16 + 12 * 2 * 16 * 32,
    ),
    "fused attention": (
        Function(lambda x: F.scaled_dot_product_attention(heads(x, 4), heads(x, 4), heads(x, 4))),
        (TOKENS,),
        PAIRS * 2 * 16,
    ),
    "causal attention": (
        Function(
            lambda x: F.scaled_dot_product_attention(
                heads(x, 4), heads(x, 4), heads(x, 4)[..., :3], is_causal=True
            )
        ),
        (TOKENS,),
        PAIRS * 4 * (4 + 3),
    ),
    "grouped queries": (
        Function(
            lambda x: F.scaled_dot_product_attention(heads(x, 4), heads(x, 2), heads(x, 2), enable_gqa=True)
        ),
        (TOKENS,),
        PAIRS * 2 * 16,
    ),
    "lstm": (nn.LSTM(16, 8, batch_first=True), (TOKENS,), 12 * 4 * 8 * (16 + 8)),
    "lstm of two layers and directions": (
        nn.LSTM(16, 8, num_layers=2, bidirectional=True),
        (TOKENS,),
        12 * 2 * 4 * 8 * (16 + 8) + 12 * 2 * 4 * 8 * (16 + 8),
    ),
    "gru": (nn.GRU(16, 8), (TOKENS,), 12 * 3 * 8 * (16 + 8)),
    "rnn": (nn.RNN(16, 8), (TOKENS,), 12 * 8 * (16 + 8)),
    "lstm cell": (nn.LSTMCell(16, 8), (TOKENS[0],), 6 * 4 * 8 * (16 + 8)),
    "bilinear": (nn.Bilinear(16, 16, 5), (TOKENS, TOKENS), 12 * 5 * 256),
    "einsum": (Function(lambda x: torch.einsum("bni,ij->bnj", x, MATRIX)), (TOKENS,), 12 * 256),
    "einsum of two activations": (
        Function(lambda x: torch.einsum("bni,bmi->bnm", x, x)),
        (TOKENS,),
        PAIRS * 16,
    ),
    "bmm": (Function(lambda x: torch.bmm(x, x.transpose(1, 2))), (TOKENS,), PAIRS * 16),
    "baddbmm": (
        Function(lambda x: torch.baddbmm(x[..., :6], x, x.transpose(1, 2))),
        (TOKENS,),
        PAIRS * 16,
    ),
    "addmm": (Function(lambda x: torch.addmm(x, x, MATRIX)), (TOKENS[0],), 6 * 256),
    "addbmm": (Function(lambda x: torch.addbmm(x[0, :, :6], x, x.mT)), (TOKENS,), PAIRS * 16),
    "matrix and vector": (Function(lambda x: x @ MATRIX[0]), (TOKENS,), 12 * 16),
    "transposed convolution in groups": (
        nn.ConvTranspose2d(4, 6, 3, groups=2),
        (MAP,),
        2 * 25 * 4 * 3 * 9,
    ),
    "convolution in groups": (nn.Conv2d(4, 6, 3, groups=2, padding=1), (MAP,), 2 * 25 * 6 * 2 * 9),
    "convolution without a batch": (nn.Conv2d(4, 6, 3), (MAP[0],), 9 * 6 * 4 * 9),
    "convolution of 1 dimension": (nn.Conv1d(6, 2, 3), (TOKENS,), 2 * 14 * 2 * 6 * 3),
    "convolution as a function": (
        Function(lambda x: F.conv2d(x, torch.ones(4, 1, 3, 3), groups=4)),
        (MAP,),
        2 * 9 * 4 * 9,
    ),
    "linear as a function": (Function(lambda x: F.linear(x, MATRIX)), (TOKENS,), 12 * 256),
    "nothing to multiply": (nn.Sequential(nn.LayerNorm(16), nn.GELU()), (TOKENS,), 0),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_every_product_counts(name: str) -> None:
    model, inputs, macs = BY_HAND[name]
    assert cost(model, inputs).macs == macs
    with torch.inference_mode():  # where operators made of others arrive whole
        assert cost(model, inputs).macs == macs


@pytest.mark.parametrize("name", [name for name in BY_HAND if "cell" not in name])
def test_the_channel_graph_counts_the_same(name: str) -> None:
    model, inputs, macs = BY_HAND[name]
    graph = ChannelGraph.trace(model.eval(), inputs)
    assert graph.macs_of_classes(np.ones(graph.classes, dtype=bool)) == pytest.approx(macs)


def test_layers_add_up_to_the_whole_and_hold_what_they_compute_themselves() -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.TransformerEncoderLayer(16, 4, 32, batch_first=True))
    found = cost(model, (TOKENS,))
    assert sum(layer.macs for layer in found.layers.values()) == found.macs
    assert sum(layer.parameters for layer in found.layers.values()) == found.parameters
    assert found.layers["0"].macs == 12 * 256
    assert found.layers["1.linear1"].macs == 12 * 16 * 32


def test_counting_leaves_hooks_modes_and_the_fast_path_as_they_were() -> None:
    model = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True).train()
    cost(model, (TOKENS,))
    assert model.training and torch.backends.mha.get_fastpath_enabled()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def oracle(model: nn.Module, inputs: tuple[Tensor, ...]) -> int:
    """torch's FLOP counter, without the fused kernels, of which it counts nothing."""
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with (
            FlopCounterMode(display=False) as counter,
            torch.no_grad(),
            torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
        ):
            model(*inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    return int(counter.get_total_flops() // 2)


@pytest.mark.slow  # half a minute
@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "resnext50_32x4d",
        "mobilenetv3_small_100",
        "vit_tiny_patch16_224",
        "convnext_atto",
        "levit_128s",
        "edgenext_xx_small",
        "tv:vit_b_16",
        "tv:shufflenet_v2_x0_5",
        "tv:deeplabv3_mobilenet_v3_large",
    ],
)
def test_networks_cost_what_the_flop_counter_says(name: str) -> None:
    timm, torchvision = pytest.importorskip("timm"), pytest.importorskip("torchvision")
    size = 224 if "vit" in name else 64
    model = (
        torchvision.models.get_model(
            name[3:], weights=None, **({"weights_backbone": None} if "deeplab" in name else {})
        )
        if name.startswith("tv:")
        else timm.create_model(name)
    ).eval()
    inputs = (torch.randn(1, 3, size, size),)
    found = cost(model, inputs)
    assert found.macs == oracle(model, inputs)
    graph = ChannelGraph.trace(model, inputs)
    everything = np.ones(graph.classes, dtype=bool)
    assert graph.macs_of_classes(everything) == pytest.approx(found.macs)
    assert graph.parameters_of_classes(everything) == found.parameters
