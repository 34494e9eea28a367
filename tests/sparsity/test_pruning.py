"""The baselines prune once, meet their target, and hold what they chose."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Literal

import pytest
import torch
from torch import Tensor, nn
from torch.optim import AdamW

from compactmtl.config.sparsity import PruneConfig
from compactmtl.errors import ArtifactError, ConfigError, MissingDependencyError, TrainingError
from compactmtl.graph import cost
from compactmtl.sparsity import Pruning, channel_groups, zero_share
from compactmtl.surgery import compact

IMAGE = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """A stem, a residual block and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.ModuleDict(
            {
                "stem": nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
                "inner": nn.Sequential(nn.Conv2d(16, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU()),
                "outer": nn.Sequential(nn.Conv2d(24, 16, 3, padding=1), nn.BatchNorm2d(16)),
            }
        )
        self.heads = nn.ModuleDict({"one": nn.Linear(16, 2)})

    def forward(self, x: Tensor) -> Tensor:
        x = self.encoder["stem"](x)
        x = (x + self.encoder["outer"](self.encoder["inner"](x))).relu()
        output: Tensor = self.heads["one"](x.mean((2, 3)))
        return output


def trained(method: str, reduction: float, steps: int = 12, **options: float) -> tuple[Net, Pruning]:
    torch.manual_seed(0)
    model = Net()
    config = PruneConfig(**{"method": method, "mac_reduction": reduction, "min_channels": 2, **options})
    control = Pruning(channel_groups(model, IMAGE), config, 20, model, (IMAGE,))
    optimizer = AdamW(model.parameters(), lr=0.01)
    control.attach(optimizer)
    for seed in range(steps):
        x = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
        optimizer.zero_grad()
        (model(x) - x[:, :2, :4].mean((2, 3))).square().mean().backward()
        control.observe()
        optimizer.step()
        control.step()
    return model, control


@pytest.mark.parametrize(
    "method",
    [
        "magnitude",
        pytest.param("group_norm", marks=pytest.mark.slow),
        pytest.param("taylor", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("reduction", [0.4, 0.9])
def test_all_at_once_and_held(method: str, reduction: float) -> None:
    if method != "magnitude":
        pytest.importorskip("torch_pruning")
    model, control = trained(method, reduction, 9)
    assert zero_share(control.groups) == 0
    model, control = trained(method, reduction)
    assert control.reached
    # a channel of the stem takes 6 % of this small network
    assert reduction <= control.removed() <= reduction + 0.08
    small = compact(model, (IMAGE,)).model
    assert 1 - cost(small, (IMAGE,)).macs / cost(Net(), (IMAGE,)).macs == pytest.approx(control.removed())
    assert model.training


def test_the_smallest_norms_of_each_layer_go() -> None:
    torch.manual_seed(0)
    model = Net()
    conv = model.encoder["inner"][0]  # type: ignore[index]
    with torch.no_grad():
        conv.weight[:12] *= 0.01
    config = PruneConfig(mac_reduction=0.46, min_channels=2, at=0.05)
    control = Pruning(channel_groups(model, IMAGE), config, 20, model, (IMAGE,))
    control.step()
    assert bool((conv.weight[:12] == 0).all())
    assert int((conv.weight.abs().sum((1, 2, 3)) > 0).sum()) >= 8


@pytest.mark.slow
def test_group_norm_regularizes_before_it_prunes() -> None:
    pytest.importorskip("torch_pruning")
    plain = trained("group_norm", 0.4, 9, regularize=0.5)[0]
    pulled = trained("group_norm", 0.4, 9, regularize=0.1, regularization=1.0)[0]
    norm = [sum(float(p.detach().square().sum()) for p in m.encoder.parameters()) for m in (plain, pulled)]
    assert norm[1] < norm[0]


def test_the_library_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(MissingDependencyError, match="torch-pruning") as caught:
        trained("group_norm", 0.4)
    assert "baselines" in caught.value.hint


def test_groups_that_free_nothing_alone() -> None:
    groups = channel_groups(Net(), IMAGE, kind="input_channel")
    with pytest.raises(ConfigError, match="coupled groups"):
        Pruning(groups, PruneConfig(mac_reduction=0.3), 20, Net(), (IMAGE,))


@pytest.mark.slow
def test_taylor_is_averaged_over_the_last_steps_and_saved() -> None:
    pytest.importorskip("torch_pruning")
    early, late = trained("taylor", 0.4, 5)[1], trained("taylor", 0.4, 6)[1]
    assert all(
        not values.any()
        for values in trained("taylor", 0.4, 6, importance_steps=3)[1].state_dict()["importance"]
    )
    before, after = early.state_dict()["importance"], late.state_dict()["importance"]
    assert all(bool((b > a).all()) for a, b in zip(before, after, strict=True))
    fresh = trained("taylor", 0.4, 0)[1]
    fresh.load_state_dict(late.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(fresh.state_dict()["importance"], after, strict=True))
    state = late.state_dict()
    del state["importance"]
    with pytest.raises(ArtifactError, match="other channel groups"):
        fresh.load_state_dict(state)


@pytest.mark.slow
def test_taylor_keeps_what_the_loss_depends_on() -> None:
    """A channel of large weights that nothing learns from goes before small ones that matter."""
    pytest.importorskip("torch_pruning")
    torch.manual_seed(0)
    model = Net()
    outer, norm = model.encoder["outer"][0], model.encoder["inner"][1]  # type: ignore[index]
    with torch.no_grad():
        norm.weight[:12] = norm.bias[:12] = 0.0  # unread whatever comes in
        model.encoder["inner"][0].weight[:12] *= 100  # type: ignore[index]
        outer.weight[:, :12] *= 1e-3
    control = Pruning(
        channel_groups(model, IMAGE),
        PruneConfig(method="taylor", mac_reduction=0.46, min_channels=2, at=0.05),
        20, model, (IMAGE,),
    )  # fmt: skip
    (model(IMAGE) ** 2).sum().backward()
    control.observe()
    control.step()
    assert bool((model.encoder["inner"][0].weight[:12] == 0).all())  # type: ignore[index]


@pytest.mark.slow
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_step_whose_gradients_are_not_finite_teaches_taylor_nothing(value: float) -> None:
    """A loss scaler skips such a step."""
    pytest.importorskip("torch_pruning")
    model, control = trained("taylor", 0.4, 5)
    before = control.state_dict()["importance"]
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, value)
    control.observe()
    after = control.state_dict()["importance"]
    assert all(bool(one.any()) for one in before)
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


@pytest.mark.slow
def test_weights_that_are_not_finite_are_named_where_channels_are_chosen() -> None:
    pytest.importorskip("torch_pruning")
    model, control = trained("group_norm", 0.4, 9)
    model.encoder["inner"][0].weight.data[3] = float("nan")  # type: ignore[index]
    with pytest.raises(TrainingError, match=r"channels of encoder\.\w+\.0 is not finite"):
        control.step()


class Elsewhere(Net):
    """The one head is `last`; `heads` is whatever the author calls so."""

    def __init__(self, heads: Callable[[nn.Module], object]) -> None:
        super().__init__()
        (self.last,) = self.heads.values()
        del self.heads
        self.heads = heads(self.last)  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        x = self.encoder["stem"](x)
        x = (x + self.encoder["outer"](self.encoder["inner"](x))).relu()
        output: Tensor = self.last(x.mean((2, 3)))
        return output


@pytest.mark.slow
@pytest.mark.parametrize(
    "heads", [lambda head: 12, lambda head: "one", nn.Sequential, lambda head: nn.ModuleList([head])]
)
def test_heads_of_another_kind_stop_no_baseline(heads: Callable[[nn.Module], object]) -> None:
    """As vision transformers call a sequence so, or a number."""
    pytest.importorskip("torch_pruning")
    torch.manual_seed(0)
    model = Elsewhere(heads)
    config = PruneConfig(method="taylor", mac_reduction=0.4, min_channels=2, at=0.05)
    control = Pruning(channel_groups(model, IMAGE), config, 20, model, (IMAGE,))
    (model(IMAGE) ** 2).sum().backward()
    control.observe()
    control.step()
    assert control.removed() >= 0.4


class Headed(Net):
    """A head with a hidden layer of its own."""

    def __init__(self) -> None:
        super().__init__()
        hidden = nn.Sequential(nn.Linear(16, 20), nn.ReLU(), nn.Linear(20, 2))
        self.heads = nn.ModuleDict({"one": hidden})


@pytest.mark.slow
@pytest.mark.parametrize("method", ["group_norm", "taylor"])
@pytest.mark.parametrize("scope", ["encoder", "model"])
def test_the_library_ranks_heads_where_the_scope_is_the_model(
    method: str, scope: Literal["encoder", "model"]
) -> None:
    pytest.importorskip("torch_pruning")
    torch.manual_seed(0)
    model = Headed()
    groups = channel_groups(model, IMAGE, scope=scope)
    config = PruneConfig.model_validate(
        {"method": method, "mac_reduction": 0.5, "min_channels": 2, "at": 0.05, "regularize": 0}
    )
    control = Pruning(groups, config, 20, model, (IMAGE,))
    (model(IMAGE) ** 2).sum().backward()
    control.observe()
    control.step()
    assert any("heads" in family.name for family in groups) == (scope == "model")
    assert control.removed() >= 0.5
