"""Barriers: what is not followed stays whole, exact, and is named with its reason."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.support.masking import all_left

Function = Callable[[Tensor], Tensor]

ORDER = torch.tensor([3, 1, 2, 0, 4, 5, 7, 6])

# What reorders, mixes or counts the channels themselves: none of them may lose one. Beside each the operator that
# is named as the reason.
BARRIERS: dict[str, tuple[str, Function]] = {
    "cumsum": ("cumsum", lambda x: x.cumsum(1)),
    "sort": ("sort", lambda x: x.sort(1).values),
    "topk": ("topk", lambda x: x.topk(8, 1).values),
    "gather": ("argsort", lambda x: x.gather(1, x.argsort(1))),
    "scatter": ("argsort", lambda x: torch.zeros_like(x).scatter_add(1, x.argsort(1), x)),
    "index": ("index", lambda x: x[:, ORDER]),
    "index_select": ("index_select", lambda x: x.index_select(1, ORDER)),
    "roll": ("roll", lambda x: x.roll(1, 1)),
    "roll of all": ("roll", lambda x: x.roll(1)),
    "stride over channels": ("slice", lambda x: torch.cat([x[:, ::2], x[:, 1::2]], 1)),
    "unbound channels": ("getitem", lambda x: torch.stack(x.unbind(1), 1)),
    "einsum": ("einsum", lambda x: torch.einsum("bchw,bdhw->bchw", x, x)),
    "mean over channels": ("mean", lambda x: torch.cat([x, x.mean(1, keepdim=True)], 1)[:, :8]),
    "argmax over channels": ("argmax", lambda x: x + x.argmax(1, keepdim=True)),
    "softmax over channels": ("softmax", lambda x: x.softmax(1)),
    "local response norm": ("avg_pool3d", lambda x: F.local_response_norm(x, 3)),
    "branches": (
        "cond",
        lambda x: torch.cond(x.sum() > 0, lambda y: y * 2, lambda y: y * 3, (x,)),
    ),
    "autocast that is on": ("wrap_with_autocast", lambda x: _cast(x)),
    "written elsewhere": ("mul", lambda x: _doubled(x, torch.zeros_like(x))),
    "fourier over channels": ("fft_rfft", lambda x: torch.fft.irfft(torch.fft.rfft(x, dim=1), dim=1)),
    "diagonal": ("diag_embed", lambda x: torch.diag_embed(x[..., 0, 0])[..., None]),
    "random": ("bernoulli", lambda x: x + torch.bernoulli(x.sigmoid()) * 0),
}


def _cast(x: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return x.relu() * 2


def _doubled(x: Tensor, target: Tensor) -> Tensor:
    torch.mul(x, 2.0, out=target)
    return target


@pytest.mark.slow
def test_barriers_keep_every_channel_and_are_the_reason() -> None:
    kept, reasons = all_left({name: function for name, (_, function) in BARRIERS.items()})
    assert kept == dict.fromkeys(BARRIERS, 8)
    assert {name: reason.partition(":")[0] for name, reason in reasons.items()} == {
        name: operator for name, (operator, _) in BARRIERS.items()
    }
