"""TorchJD keeps its state where the adapter looks for it; a version that does not is named, and not passed over."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchjd import aggregation

from compactmtl.balancing import balancer, torchjd_adapter
from compactmtl.balancing.aggregated import Aggregated
from compactmtl.balancing.methods.famo import Famo
from compactmtl.balancing.torchjd_adapter import FAMO, MEMORY, Memory, dump_state, famo_logits
from compactmtl.errors import MissingDependencyError
from tests.support.small_net import TASKS, small_net

REMEMBERING = {"gradvac": "GradVacWeighting", "pcd": "PCDWeighting", "excess_mtl": "ExcessMTLWeighting"}
NEW_VERSION = "this version of TorchJD keeps state in other attributes: mend balancing/torchjd_adapter.py"


def attributes(module: nn.Module) -> dict[str, Any]:
    """All of a module's own attributes that are no torch internals, with its buffers and parameters."""
    own = {**vars(module), **module._buffers, **module._parameters}
    internal = vars(nn.Module()).keys()
    return {
        name: value.detach().clone() if isinstance(value, Tensor) else value
        for name, value in own.items()
        if name not in internal
    }


def changed(before: dict[str, Any], after: dict[str, Any]) -> set[str]:
    def same(one: Any, other: Any) -> bool:
        if isinstance(one, Tensor) and isinstance(other, Tensor):
            return torch.equal(one, other)
        return bool(type(one) is type(other) and one == other)

    return {name for name in after if name not in before or not same(before[name], after[name])}


@pytest.mark.parametrize("name", REMEMBERING)
def test_an_aggregator_remembers_in_the_attributes_that_are_saved(name: str) -> None:
    net, method = (
        small_net(),
        balancer(name, TASKS, options={"warmup_steps": 1} if name == "excess_mtl" else {}),
    )
    (part,) = (one for one in method.aggregator.modules() if type(one) in MEMORY)  # type: ignore[union-attr]
    assert type(part).__name__ == REMEMBERING[name]
    states = [attributes(part)]
    for step in range(3):
        net.follow(method, step)
        states.append(attributes(part))
    remembered = set[str]().union(*(changed(one, other) for one, other in pairwise(states)))
    assert remembered == {*MEMORY[type(part)].attributes, "_state_key"}, NEW_VERSION


def test_famo_remembers_in_the_attributes_that_are_saved() -> None:
    method = balancer("famo", ["a", "b"])
    assert isinstance(method, Famo)
    (famo,) = method._famo
    before = attributes(famo)
    method.combine({"a": torch.tensor(1.0), "b": torch.tensor(2.0)})
    method.after_step({"a": torch.tensor(0.5), "b": torch.tensor(2.0)})
    assert changed(before, attributes(famo)) == set(FAMO.attributes), NEW_VERSION


def test_a_version_with_other_attributes_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    method = balancer("pcd", ["a", "b"])
    assert isinstance(method, Aggregated)
    kind = aggregation.PCDWeighting
    monkeypatch.setattr(torchjd_adapter, "MEMORY", {kind: Memory(("_n_steps", "_moved"))})
    with pytest.raises(
        MissingDependencyError, match=r"TorchJD 0\.\d+.* state of PCDWeighting elsewhere: it has no _moved"
    ):
        dump_state(method.aggregator)
    famo = balancer("famo", ["a"])
    assert isinstance(famo, Famo)
    monkeypatch.setattr(torchjd_adapter, "FAMO", Memory(("_logits",)))
    with pytest.raises(MissingDependencyError, match="state of FAMO elsewhere: it has no _logits"):
        famo_logits(famo._famo[0])
