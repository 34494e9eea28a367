"""What channel groups promise is what surgery does: random groups at zero, and the network that remains."""

from __future__ import annotations

import gc
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, spectral_norm, weight_norm

from compactmtl.errors import ConfigError
from compactmtl.sparsity import ChannelGroups, channel_groups
from compactmtl.surgery import compact

IMAGE = torch.randn(1, 3, 12, 12, generator=torch.Generator().manual_seed(0))
TOKENS = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(0))


def conv(inputs: int, outputs: int, **options: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, **options)  # type: ignore[arg-type]


def of(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(*layers, nn.ReLU(), nn.Conv2d(8, 2, 1))


class Halved(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / 2


class Standardized(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(
            x, weight / (weight.square().sum((1, 2, 3), keepdim=True).sqrt() + 1e-3), self.bias, padding=1
        )


class OfTokens(nn.Module):
    """Something between two linear layers, the second of which reads 16 channels."""

    def __init__(self, function: nn.Module) -> None:
        super().__init__()
        self.embed, self.function, self.out = nn.Linear(5, 16), function, nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.function(F.relu(self.embed(x)))
        out: Tensor = self.out(y[0] if isinstance(y, tuple) else y)
        return out


class Attention(nn.Module):
    """Attention with one number for the width of the stream and of its values, as many write it."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.fused = fused
        self.q, self.k, self.v, self.proj = (nn.Linear(16, 16) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = (one(x).view(batch, length, 4, -1).transpose(1, 2) for one in (self.q, self.k, self.v))
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, length, width)
        else:
            y = ((q @ k.mT * 0.5).softmax(-1) @ v).transpose(1, 2).flatten(2)
        out: Tensor = x + self.proj(y)
        return out


class SelfAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
        self.up, self.down = nn.Linear(16, 24), nn.Linear(24, 16)

    def forward(self, x: Tensor) -> Tensor:
        y = x + self.attention(x, x, x)[0]
        out: Tensor = y + self.down(F.gelu(self.up(y)))
        return out


def parametrized() -> nn.Module:
    layer = conv(3, 16)
    parametrize.register_parametrization(layer, "weight", Halved())
    return of(layer, nn.ReLU(), conv(16, 8))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "weight norm": lambda: of(
        parametrizations.weight_norm(conv(3, 16)), nn.ReLU(), parametrizations.weight_norm(conv(16, 8))
    ),
    "weight norm of both": lambda: of(
        parametrizations.weight_norm(parametrizations.weight_norm(conv(3, 16)), "bias"),
        nn.ReLU(),
        conv(16, 8),
    ),
    "weight norm by inputs": lambda: of(
        parametrizations.weight_norm(conv(3, 16), dim=1), nn.ReLU(), conv(16, 8)
    ),
    "weight norm as a hook": lambda: of(weight_norm(conv(3, 16)), nn.ReLU(), weight_norm(conv(16, 8))),
    "weight norm and batch norm": lambda: of(
        parametrizations.weight_norm(conv(3, 16)), nn.BatchNorm2d(16), nn.ReLU(), conv(16, 8)
    ),
    "spectral norm": lambda: of(parametrizations.spectral_norm(conv(3, 16)), nn.ReLU(), conv(16, 8)),
    "spectral norm as a hook": lambda: of(spectral_norm(conv(3, 16)), nn.ReLU(), conv(16, 8)),
    "a parametrization": parametrized,
    "orthogonal": lambda: of(
        parametrizations.orthogonal(nn.Conv2d(3, 16, 3)), nn.ReLU(), conv(16, 16), nn.ReLU(), conv(16, 8)
    ),
    "standardized": lambda: of(Standardized(3, 16, 3), nn.ReLU(), Standardized(16, 8, 3)),
    "groups": lambda: of(conv(3, 16), nn.ReLU(), conv(16, 16, groups=4), nn.ReLU(), conv(16, 8)),
    "depthwise": lambda: of(conv(3, 16), nn.ReLU(), conv(16, 32, groups=16), nn.ReLU(), conv(32, 8)),
    "transposed": lambda: of(conv(3, 16), nn.ReLU(), nn.ConvTranspose2d(16, 8, 2, stride=2)),
    "a norm over channels": lambda: of(conv(3, 16), nn.GroupNorm(1, 16), nn.ReLU(), conv(16, 8)),
    "constants behind an activation": lambda: of(
        conv(3, 16), nn.Sigmoid(), conv(16, 12), nn.Softplus(), conv(12, 8)
    ),
    "recurrent": lambda: OfTokens(nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.LSTM(12, 16))),
    "multi-head attention": lambda: OfTokens(SelfAttention()),
    "encoder layer": lambda: OfTokens(nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)),
    "attention": lambda: OfTokens(Attention(fused=True)),
    "attention written out": lambda: OfTokens(Attention(fused=False)),
}


def zero_some(groups: ChannelGroups, seed: int, share: float = 0.4) -> None:
    """Groups at zero as the proximal step leaves them, one of each family exempt."""
    generator = torch.Generator().manual_seed(seed)
    for family in groups.bound:
        dead = torch.rand(family.size, generator=generator) < share
        dead[int(torch.randint(family.size, (1,), generator=generator))] = False
        with torch.no_grad():
            for part in family.tensors:
                part.zero_(part.parameter, dead)


def held(model: nn.Module, image: Tensor, seed: int) -> ChannelGroups:
    groups = channel_groups(model, image, scope="model")
    zero_some(groups, seed)
    alive = groups.alive()
    report = compact(model.eval(), (image,)).report
    assert bool(torch.isfinite(model(image)).all())
    assert groups.cost("macs")(alive) == pytest.approx(report.macs_after)
    assert groups.cost("parameters")(alive) == report.parameters_after
    return groups


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_promised_is_removed(name: str) -> None:
    torch.manual_seed(0)
    model = NETWORKS[name]()
    image = TOKENS if isinstance(model, OfTokens) else IMAGE
    held(model, image, seed=1)


@pytest.mark.slow  # minutes
@pytest.mark.parametrize(
    "name",
    [
        *("resnet18", "resnext50_32x4d", "mobilenetv3_small_100", "regnety_002", "convnext_atto"),
        *("vit_tiny_patch16_224", "nfnet_l0", "tv:shufflenet_v2_x0_5", "swin_tiny_patch4_window7_224"),
    ],
)
def test_what_is_promised_of_a_network_of_the_zoo_is_removed(name: str) -> None:
    pytest.importorskip("timm")
    from tools.surgery_zoo import build

    model, (image,) = build(name)
    assert not held(model, image, seed=2).left_out


def test_groups_of_a_weight_norm_hold_its_magnitude() -> None:
    groups = channel_groups(NETWORKS["weight norm"](), IMAGE)
    assert {member.parameter for member in groups[0].members} == {
        "0.parametrizations.weight.original0",
        "0.bias",
    }


def test_a_weight_of_which_no_channel_can_be_zero_is_named() -> None:
    groups = channel_groups(NETWORKS["orthogonal"](), IMAGE)
    assert "is computed" in groups.left_out["0"]
    only = nn.Sequential(parametrizations.orthogonal(nn.Conv2d(3, 8, 3)), nn.ReLU(), nn.Conv2d(8, 2, 1))
    with pytest.raises(ConfigError, match=r"0: 0\.weight is computed"):
        channel_groups(only, IMAGE)


def test_a_stream_whose_width_a_module_checks_is_named() -> None:
    groups = channel_groups(NETWORKS["multi-head attention"](), TOKENS)
    assert [family.name for family in groups] == ["function.up"]
    assert "embed" in groups.left_out


def test_where_a_prediction_cannot_be_exact_it_says_so() -> None:
    exact = channel_groups(NETWORKS["groups"](), IMAGE)
    assert not exact.inexact
    single = channel_groups(NETWORKS["groups"](), IMAGE, kind="filter")
    assert "2" in single.inexact


def test_a_family_of_which_nothing_stays_keeps_one_channel() -> None:
    model = of(conv(3, 16), nn.ReLU(), conv(16, 8)).eval()
    groups = channel_groups(model, IMAGE)
    keep = groups.whole()
    keep[0][:] = False
    assert groups.cost("parameters")(keep) == 3 * 9 + 1 + 8 * 9 + 8 + 8 * 2 + 2


def test_families_of_which_nothing_stays_are_named() -> None:
    model = of(conv(3, 16), nn.ReLU(), conv(16, 8)).eval()
    groups = channel_groups(model, IMAGE)
    with torch.no_grad():
        for part in groups.bound[0].tensors:
            part.zero_(part.parameter, torch.ones(16, dtype=torch.bool))
    keep = groups.alive()
    assert not groups.inexact and list(groups.inexact_at(keep)) == ["0"]
    assert compact(model, (IMAGE,)).report.macs_after < groups.cost("macs")(keep)
    assert not groups.inexact_at(groups.whole())


def test_a_family_of_one_group_is_named_beforehand() -> None:
    groups = channel_groups(of(conv(3, 1), nn.ReLU(), conv(1, 8)), IMAGE)
    assert list(groups.inexact) == ["0"]


@pytest.mark.slow
def test_groups_hold_no_second_copy_of_the_weights() -> None:
    model = of(conv(3, 64), nn.ReLU(), conv(64, 8))
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    # What other tests left is not of these groups.
    others = [value for value in gc.get_objects() if type(value) in (Tensor, nn.Parameter)]
    groups = channel_groups(model, IMAGE)
    gc.collect()
    shapes = {tuple(parameter.shape) for parameter in model.parameters() if parameter.dim() > 1}
    extra = [
        value
        for value in gc.get_objects()
        if type(value) in (Tensor, nn.Parameter)
        and not any(value is other for other in others)
        and tuple(value.shape) in shapes
        and value.device.type == "cpu"
        and not isinstance(value, torch._subclasses.FakeTensor)
        and value.untyped_storage().data_ptr() not in own
    ]
    assert groups.total and not extra
