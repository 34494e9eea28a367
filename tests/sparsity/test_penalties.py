"""Every penalty by its name: its proximal operator minimizes its value, and one more is one class in one file."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import SGD

from compactmtl.config.recipe import SparsityConfig
from compactmtl.config.trust import UntrustedError, trusting
from compactmtl.config.validate import validate
from compactmtl.config.yaml import read_yaml
from compactmtl.errors import ConfigError
from compactmtl.graph.groups import GroupFamily, Member
from compactmtl.sparsity import ChannelGroups, GroupLasso, GroupMCP, SparseGroupLasso, StrengthSchedule
from compactmtl.sparsity.registry import build_penalty, penalty_class, penalty_names

RIDGE = '''
"""λ Σ scale·‖w_g‖²/2, which shrinks and zeroes nothing."""
import torch
from compactmtl.config.recipe import Frozen
from compactmtl.sparsity import Penalty

class Ridge(Penalty):
    class Options(Frozen):
        scale: float = 1.0

    def __init__(self, groups, strength, scale):
        super().__init__(groups, strength)
        self.scale = scale

    def of(self, family):
        return self.scale * family.squares() / 2

    def pull(self, family, norms):
        return self.scale * norms

    def shrink_(self, family, rate, metric, exempt=None, scratch=None):
        for s in family.tensors:
            s.parameter.div_(1 + rate * self.strength * self.scale)
        return family.zeros()

class Half(Penalty):
    def of(self, family):
        return family.norms()
'''


def groups_of(rows: int = 6) -> ChannelGroups:
    layer = nn.Linear(4, rows).double()
    with torch.no_grad():
        drawn = torch.randn(rows, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        layer.weight.copy_(drawn[:, :4])
        layer.bias.copy_(drawn[:, 4])
    indices = np.arange(rows, dtype=np.int64)[:, None]
    members = (Member("weight", 0, indices, "producer"), Member("bias", 0, indices, "producer"))
    return ChannelGroups([GroupFamily("layer", members, rows, 1.0, 1.0)], dict(layer.named_parameters()))


def config(**keys: object) -> SparsityConfig:
    return SparsityConfig.model_validate({"strength": 0.3, **keys})


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module on the path that holds penalties, one whole and one not."""
    (tmp_path / "own_penalties.py").write_text(RIDGE)
    monkeypatch.syspath_prepend(tmp_path)
    yield "own_penalties"
    sys.modules.pop("own_penalties", None)


@pytest.mark.parametrize("name", [*penalty_names(), "own_penalties:Ridge"])
def test_the_proximal_operator_minimizes_the_value(name: str, own: str) -> None:
    with trusting():
        groups = groups_of()
        penalty = build_penalty(config(penalty=name, knee=2.0), groups)
    (family,) = groups.bound
    before = [s.parameter.detach().clone() for s in family.tensors]
    rate = 0.7

    def objective() -> float:
        """½‖x − z‖² + rate·penalty."""
        moved = [(s.parameter - z).square().sum() for s, z in zip(family.tensors, before, strict=True)]
        return float(torch.stack(moved).sum() / 2 + rate * penalty.value())

    with torch.no_grad():
        penalty.shrink_(family, rate, None)
        least = objective()
        solution = [s.parameter.detach().clone() for s in family.tensors]
        generator = torch.Generator().manual_seed(1)
        for size in (1e-3, 1e-2, 1e-1, 1.0):
            for _ in range(20):
                for s, x in zip(family.tensors, solution, strict=True):
                    s.parameter.copy_(x + size * torch.randn(x.shape, generator=generator, dtype=x.dtype))
                assert objective() >= least - 1e-12  # rounding of float64


@pytest.mark.parametrize("name", [*penalty_names(), "own_penalties:Ridge"])
def test_the_pull_is_the_derivative_by_the_norm(name: str, own: str) -> None:
    groups = groups_of()
    with trusting():
        penalty = build_penalty(config(penalty=name, knee=2.0), groups)
    (family,) = groups.bound
    with (
        torch.no_grad()
    ):  # of a group whose elements are alike, for which `pull` is exact whatever the penalty
        for s in family.tensors:
            s.parameter.copy_(torch.full_like(s.parameter, 0.5))
        norms, step = family.norms(), 1e-6
        values = []
        for scale in (1 + step, 1 - step):
            for s in family.tensors:
                s.parameter.fill_(0.5 * scale)
            values.append(penalty.of(family))
        slope = (values[0] - values[1]) / (2 * step * norms)
    torch.testing.assert_close(slope, penalty.pull(family, norms), rtol=1e-6, atol=1e-6)


def test_a_penalty_has_its_options_from_the_recipe() -> None:
    groups = groups_of()
    assert isinstance(build_penalty(config(), groups), GroupLasso)
    short = build_penalty(config(penalty="sparse_group_lasso", l1=0.1), groups)
    full = build_penalty(config(penalty="sparse_group_lasso", penalty_options={"l1": 0.1}), groups)
    for penalty in (short, full):
        assert isinstance(penalty, SparseGroupLasso)
        assert (penalty.l1, penalty.l2, penalty.strength) == (0.1, 1.0, 0.3)
    knee = build_penalty(config(penalty="group_mcp", penalty_options={"knee": 0.5}), groups)
    assert isinstance(knee, GroupMCP) and knee.knee == 0.5


def test_short_keys_are_of_the_first_penalties_alone() -> None:
    """A new penalty may have an option of such a name; the default is then its own."""
    keys = {"l1": 0.5, "l2": 0.25, "knee": 2.0}
    assert config(penalty="sparse_group_lasso", **keys).options_of_penalty == {"l1": 0.5, "l2": 0.25}
    assert config(penalty="group_mcp", **keys).options_of_penalty == {"knee": 2.0}
    assert config(penalty="own_penalties:Ridge", **keys).options_of_penalty == {}
    assert config(penalty="group_lasso", **keys).options_of_penalty == {}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"penalty": "group_mcp", "penalty_options": {"knees": 1.0}}, r"sparsity\.penalty_options\.knees"),
        ({"penalty": "group_mcp", "penalty_options": {"knee": 0.0}}, "greater than 0"),
        ({"penalty": "sparse_group_lasso", "l1": 0.0, "l2": 0.0}, "both 0"),
        ({"penalty": "own_penalties:Ridge", "penalty_options": {"l1": 1.0}}, r"penalty_options\.l1"),
        ({"penalty": "own_penalties:Half"}, "lacks pull, shrink_"),
        ({"penalty": "own_penalties:Lasso"}, "Ridge"),
        ({"penalty": "own_penalties:torch"}, "not a penalty class"),
        ({"penalty": "no_such_module:Ridge"}, "no module no_such_module"),
    ],
)
def test_what_does_not_fit_is_named(keys: dict[str, object], message: str, own: str) -> None:
    with trusting(), pytest.raises(ConfigError) as caught:
        build_penalty(config(**keys), groups_of())
    assert re.search(message, f"{caught.value.message}\n{caught.value.hint}")


def test_an_unknown_name_is_refused_where_the_recipe_is_read(tmp_path: Path) -> None:
    path = tmp_path / "sparsity.yaml"
    path.write_text("penalty: group_laso\nstrength: 1.0e-5\n")
    with pytest.raises(ConfigError, match=r"`penalty`: expected one of group_lasso, .*group_laso") as caught:
        validate(SparsityConfig, read_yaml(path), "sparsity")
    assert caught.value.hint.startswith("did you mean group_lasso")
    with pytest.raises(ConfigError, match="no penalty 'group_laso'"):
        penalty_class("group_laso")


def test_a_class_of_ones_own_runs_on_the_users_word_alone(own: str) -> None:
    named = config(penalty=f"{own}:Ridge", penalty_options={"scale": 0.5})
    with pytest.raises(UntrustedError, match=r"sparsity\.penalty: own_penalties:Ridge is code"):
        build_penalty(named, groups_of())
    assert own not in sys.modules
    groups = groups_of()
    with trusting():
        penalty = build_penalty(named, groups)
    (family,) = groups.bound
    control = StrengthSchedule(penalty, total_steps=2, warmup=0.0)
    optimizer = SGD([s.parameter for s in family.tensors], lr=1.0)
    control.attach(optimizer)
    before = family.norms()
    for s in family.tensors:
        s.parameter.grad = torch.zeros_like(s.parameter)
    optimizer.step()
    control.step()
    torch.testing.assert_close(family.norms(), before / (1 + 1.0 * 0.3 * 0.5))
