"""Torch keeps the source of all code that it generates; that of our traces is let go."""

from __future__ import annotations

import linecache

import pytest
import torch
from torch import nn
from torch.fx import graph_module

from compactmtl.graph import ChannelGraph
from compactmtl.graph.generated import sources_forgotten


def kept() -> tuple[int, int]:
    generated = sum(name.startswith("<eval_with_key>") for name in linecache.cache)
    return len(graph_module._loader.eval_cache), generated


def test_a_trace_leaves_no_source_behind() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU())
    before = kept()
    ChannelGraph.trace(net, (torch.randn(1, 3, 4, 4),))
    assert kept() == before


def test_only_what_is_made_meanwhile_is_forgotten_and_it_still_runs() -> None:
    mine = torch.fx.symbolic_trace(nn.ReLU())
    before = kept()
    with sources_forgotten():
        other = torch.fx.symbolic_trace(nn.Tanh())
        assert kept() > before
    assert kept() == before
    assert float(mine(torch.tensor(-1.0))) == 0.0 and float(other(torch.tensor(0.0))) == 0.0


def test_a_torch_that_keeps_them_elsewhere_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(graph_module, "_loader")
    with sources_forgotten():
        pass
