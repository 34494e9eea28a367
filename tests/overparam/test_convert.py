"""A whole model is factorized and contracted with its names, sharing and hooks intact."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from compactmtl.errors import ConfigError
from compactmtl.overparam import contract, factor_of, factorized_layers, overparameterize
from compactmtl.overparam.svd import FactorizedConv2d


class Net(nn.Module):
    """An encoder with a plain, a depthwise and a shared convolution, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.ModuleDict(
            {
                "stem": nn.Conv2d(3, 8, 3, padding=1, bias=False),
                "bn": nn.BatchNorm2d(8),
                "depthwise": nn.Conv2d(8, 8, 3, padding=1, groups=8),
                "shared": nn.Conv2d(8, 8, 1),
                "fc": nn.Linear(8, 6),
            }
        )
        self.encoder["again"] = self.encoder["shared"]
        self.heads = nn.ModuleDict({"age": nn.Linear(6, 1)})

    def forward(self, x: Tensor) -> Tensor:
        e = self.encoder
        x = e["depthwise"](e["bn"](e["stem"](x)).relu())
        x = e["again"](e["shared"](x).relu())
        output: Tensor = self.heads["age"](e["fc"](x.mean((2, 3))))
        return output


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture
def image() -> Tensor:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def test_the_function_is_kept_and_the_argument_untouched(net: Net, image: Tensor) -> None:
    before = copy.deepcopy(net.state_dict())
    factorized = overparameterize(net)
    # Four factorized float32 layers, each within rounding of its plain weight.
    torch.testing.assert_close(factorized(image), net(image), rtol=1e-5, atol=1e-6)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert not factorized_layers(net)


def test_contract_gives_the_plain_models_layers_and_names(net: Net, image: Tensor) -> None:
    factorized = overparameterize(net)
    with torch.no_grad():
        for parameter in factorized.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    plain = contract(factorized)
    shapes = {name: value.shape for name, value in net.state_dict().items()}
    assert {name: value.shape for name, value in plain.state_dict().items()} == shapes
    assert list(plain.state_dict()) == list(net.state_dict())
    assert [type(m) for m in plain.modules()] == [type(m) for m in net.modules()]
    assert torch.equal(plain(image), factorized(image))
    net.load_state_dict(plain.state_dict())
    assert torch.equal(net(image), plain(image))


def test_scope_is_the_encoder_by_default(net: Net) -> None:
    assert set(factorized_layers(overparameterize(net))) == {"encoder.stem", "encoder.shared", "encoder.fc"}
    assert "heads.age" in factorized_layers(overparameterize(net, scope="model"))


def test_a_model_without_an_encoder_is_taken_whole() -> None:
    assert set(factorized_layers(overparameterize(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))))) == {
        "0",
        "1",
    }
    assert isinstance(overparameterize(nn.Conv2d(2, 2, 3)), FactorizedConv2d)


def test_a_shared_module_stays_shared(net: Net) -> None:
    factorized = overparameterize(net)
    assert factorized.encoder["again"] is factorized.encoder["shared"]
    plain = contract(factorized)
    assert plain.encoder["again"] is plain.encoder["shared"]


def test_excluded_layers_stay_plain(net: Net) -> None:
    assert set(factorized_layers(overparameterize(net, exclude=("*.fc", "encoder.st*")))) == {
        "encoder.shared"
    }
    # Excluded under one of its names, a shared layer is excluded.
    assert "encoder.shared" not in factorized_layers(overparameterize(net, exclude=("*.again",)))


def test_training_mode_frozen_weights_and_hooks_are_carried_over(net: Net, image: Tensor) -> None:
    net.train()
    net.encoder["fc"].weight.requires_grad_(False)
    seen: list[str] = []
    net.encoder["stem"].register_forward_hook(lambda *_: seen.append("stem"))
    for model in (overparameterize(net), contract(overparameterize(net))):
        assert all(m.training for m in model.modules())
        assert not any(
            p.requires_grad
            for n, p in model.named_parameters()
            if n.startswith("encoder.fc") and "bias" not in n
        )
        seen.clear()
        model(image)
        assert seen == ["stem"]


def test_ranks_are_capped_or_shared(net: Net) -> None:
    full = {"encoder.stem": 8 * 3, "encoder.shared": 8, "encoder.fc": 6}
    full["encoder.stem"] = min(8 * 3, 3 * 3)
    for rank, expected in [
        ("full", full),
        (7, {name: min(7, r) for name, r in full.items()}),
        (0.5, {name: max(1, round(r / 2)) for name, r in full.items()}),
    ]:
        layers = factorized_layers(overparameterize(net, rank=rank))  # type: ignore[arg-type]
        assert {name: layer.rank for name, layer in layers.items()} == expected


def test_a_model_on_the_meta_device_takes_a_checkpoint(net: Net, image: Tensor) -> None:
    trained = overparameterize(net)
    with torch.device("meta"):
        empty = overparameterize(Net().eval())
    empty.load_state_dict(trained.state_dict(), assign=True)
    assert torch.equal(empty(image), trained(image))


@pytest.mark.parametrize(
    ("parameter", "dim", "expected"),
    [
        ("encoder.stem.weight", 0, ("encoder.stem.U", 0)),
        ("encoder.stem.weight", 1, ("encoder.stem.V", 1)),
        ("encoder.stem.weight", 2, ("encoder.stem.U", 1)),
        ("encoder.stem.weight", 3, ("encoder.stem.V", 2)),
        ("encoder.fc.weight", 0, ("encoder.fc.U", 0)),
        ("encoder.fc.weight", 1, ("encoder.fc.V", 1)),
        ("encoder.fc.bias", 0, ("encoder.fc.bias", 0)),
        ("encoder.depthwise.weight", 0, ("encoder.depthwise.weight", 0)),
        ("heads.age.weight", 1, ("heads.age.weight", 1)),
    ],
)
def test_factor_of_names_the_slice_that_carries_the_weights_slice(
    net: Net, parameter: str, dim: int, expected: tuple[str, int]
) -> None:
    model = overparameterize(net)
    name, factor_dim = factor_of(model, parameter, dim)
    assert (name, factor_dim) == expected
    with torch.no_grad():
        model.get_parameter(name).select(factor_dim, 0).zero_()
    weight = contract(model).get_parameter(parameter)
    assert weight.select(dim, 0).abs().max() == 0
    assert (weight.select(dim, -1) != 0).any() or weight.shape[dim] == 1


@pytest.mark.parametrize(
    ("name", "dim"),
    [("encoder.none.weight", 0), ("encoder.stem.weight", 4), ("heads.age.x", 0), ("encoder.bn.weight", 1)],
)
def test_factor_of_unknown(net: Net, name: str, dim: int) -> None:
    with pytest.raises(ConfigError):
        factor_of(overparameterize(net), name, dim)


@pytest.mark.parametrize("rank", [0, -1, 10, 0.0, 1.5, True, "half"])
def test_rank_out_of_range(net: Net, rank: object) -> None:
    with pytest.raises(ConfigError, match="rank"):
        overparameterize(net, rank=rank)  # type: ignore[arg-type]


def test_a_weight_that_is_not_finite_is_named(net: Net) -> None:
    with torch.no_grad():
        net.get_parameter("encoder.fc.weight")[0, 0] = torch.inf
    with pytest.raises(ConfigError, match=r"encoder\.fc"):
        overparameterize(net)


def test_tied_weights_are_named(net: Net) -> None:
    net.encoder["tied"] = nn.Linear(8, 6)
    net.encoder["tied"].weight = net.encoder["fc"].weight
    with pytest.raises(ConfigError, match=r"encoder\.fc\.weight and encoder\.tied\.weight"):
        overparameterize(net)
    overparameterize(net, exclude=("encoder.fc", "encoder.tied"))


def test_an_exclude_pattern_that_names_nothing_is_an_error(net: Net) -> None:
    with pytest.raises(ConfigError, match="matches no layer") as caught:
        overparameterize(net, exclude=("encoder.stm",))
    assert "encoder.stem" in caught.value.hint


def test_nothing_to_factorize() -> None:
    with pytest.raises(ConfigError, match="no layer to factorize"):
        overparameterize(nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(4, 4, 3, groups=4)))


def test_factorizing_twice_is_an_error(net: Net) -> None:
    with pytest.raises(ConfigError, match="factorized already"):
        overparameterize(overparameterize(net))


def test_unknown_kind_and_scope(net: Net) -> None:
    with pytest.raises(ConfigError, match="unknown over-parameterization"):
        overparameterize(net, kind="tucker")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="unknown scope"):
        overparameterize(net, scope="heads")  # type: ignore[arg-type]


def test_weights_that_a_parametrization_computes_stay_as_they_are() -> None:
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)), nn.Linear(3, 2))
    assert set(factorized_layers(overparameterize(model))) == {"1"}
