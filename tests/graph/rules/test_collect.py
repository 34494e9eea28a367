"""A rule is one file: nothing else has to name it."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compactmtl.graph import ChannelGraph, rules
from compactmtl.graph.calls import operator
from compactmtl.graph.effect import Effect
from compactmtl.graph.rule import Rule

_FILE = """
from compactmtl.graph.effect import Use
from compactmtl.graph.rules.reduce import Roll

class OverPositions(Roll):
    def constant(self, view, node):
        return view.constant(node.args[0]) & False

    def used(self, view, node, used):
        return [Use(node.args[0], used, exact=True)]

RULES = {%r: OverPositions()}
"""


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(torch.logcumsumexp(self.first(x), dim=3))
        return y


def with_file(folder: Path, named: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Rule]:
    """The rules with one more file among them, for the operator `named`."""
    (folder / "of_a_user.py").write_text(_FILE % named)
    monkeypatch.setattr(rules, "__path__", [*rules.__path__, str(folder)])
    monkeypatch.delitem(sys.modules, "compactmtl.graph.rules.of_a_user", raising=False)
    try:
        return rules.collect(rules.__path__)
    finally:
        sys.modules.pop("compactmtl.graph.rules.of_a_user", None)


def test_a_new_file_is_a_new_rule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes before what is found by trying."""
    image = (torch.randn(1, 3, 4, 4),)

    def tried() -> list[str]:
        graph = ChannelGraph.trace(Network(), image)
        assert not graph.barriers and [family.name for family in graph.groups()] == ["first"]
        return [operator(node) for node, effect in graph._state.effects.items() if effect.learned is not None]

    assert tried() == ["logcumsumexp"]
    more = with_file(tmp_path, "logcumsumexp", monkeypatch)
    monkeypatch.setattr("compactmtl.graph.channel_graph.RULES", more)
    assert tried() == []


def test_two_rules_for_one_operator_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="both have a rule for roll"):
        with_file(tmp_path, "roll", monkeypatch)


def test_an_effect_pairs_only_what_matches() -> None:
    with pytest.raises(ValueError, match="shape"):
        Effect(unions=((np.arange(3), np.arange(4)),))


def test_effects_add_up() -> None:
    one = Effect(made=(np.arange(2),), reshapes=True)
    other = Effect(made=(np.arange(3),), parts=(np.arange(1),))
    both = one + other
    assert [len(ids) for ids in both.made] == [2, 3]
    assert both.reshapes and not both.is_pair and len(both.parts) == 1
