"""A whole model is factorized and contracted with its names, sharing and hooks intact."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compactmtl.errors import ConfigError, SurgeryError
from compactmtl.graph import cost
from compactmtl.models import MultiTaskModel
from compactmtl.overparam import Kind, contract, factor_of, factorized_layers, overparameterize
from compactmtl.overparam.svd import SvdLayer
from tests.support.masking import FLOAT32, assert_close


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
    assert_close(factorized(image), net(image), FLOAT32)
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
    with torch.no_grad():  # as in deployment; with gradients a layer may convolve in sequence
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
    assert isinstance(overparameterize(nn.Conv2d(2, 2, 3)), SvdLayer)


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
    calls: list[str] = []
    net.encoder["stem"].register_forward_hook(lambda *_: calls.append("stem"))
    for model in (overparameterize(net), contract(overparameterize(net))):
        assert all(m.training for m in model.modules())
        assert not any(
            p.requires_grad
            for n, p in model.named_parameters()
            if n.startswith("encoder.fc") and "bias" not in n
        )
        calls.clear()
        model(image)
        assert calls == ["stem"]


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


@pytest.mark.parametrize("rank", [0, -1, 10, 0.0, 100.0, float("nan"), True, "half"])
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
        overparameterize(net, kind="tuker")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="unknown scope"):
        overparameterize(net, scope="heads")  # type: ignore[arg-type]


def test_weights_that_a_parametrization_computes_stay_as_they_are() -> None:
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)), nn.Linear(3, 2))
    assert set(factorized_layers(overparameterize(model))) == {"1"}


@pytest.fixture
def model() -> MultiTaskModel:
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 5))
    return MultiTaskModel(encoder, {task: Mean() for task in ("age", "pose")}).eval()


class Mean(nn.Module):
    """A head without parameters."""

    def forward(self, features: Tensor, size: tuple[int, int]) -> Tensor:
        return features.mean((2, 3))


@pytest.mark.parametrize("kind", ["svd", "cp", "tucker", "expandnet_cl", "expandnet_ck", "repvgg"])
def test_every_kind_trains_and_contracts_to_the_plain_model(
    kind: Kind, model: MultiTaskModel, image: Tensor
) -> None:
    trained = overparameterize(model, kind).train()
    for _ in range(2):
        loss = sum(output.square().sum() for output in trained(image).values())
        assert isinstance(loss, Tensor)
        loss.backward()  # type: ignore[no-untyped-call]
        with torch.no_grad():
            for parameter in trained.parameters():
                if parameter.grad is not None:
                    parameter.sub_(1e-3 * parameter.grad)
                    parameter.grad = None
    trained.eval()
    plain = contract(trained)
    assert {n: v.shape for n, v in plain.state_dict().items()} == {
        n: v.shape for n, v in model.state_dict().items()
    }
    with torch.no_grad():
        expected, output = trained(image), plain(image)
    assert all(torch.equal(output[task], expected[task]) for task in expected)
    assert not torch.equal(output["age"], model(image)["age"])


def test_none_is_a_plain_copy(model: MultiTaskModel, image: Tensor) -> None:
    copied = overparameterize(model, "none")
    assert not factorized_layers(copied) and copied is not model
    assert torch.equal(copied(image)["age"], model(image)["age"])


def test_tasks_own_rows_of_one_diagonal(model: MultiTaskModel, image: Tensor) -> None:
    trained = overparameterize(model, tasks=("age", "pose"))
    diagonals = [layer.diagonals for layer in factorized_layers(trained).values()]
    assert [None if m is None else len(m) for m in diagonals] == [2, 2]
    assert_close(trained(image)["age"], model(image)["age"], FLOAT32)  # float32


def test_a_weight_a_task_is_an_encoder_a_task(model: MultiTaskModel, image: Tensor) -> None:
    trained = overparameterize(model, tasks=("age", "pose"), per_task=True)
    assert_close(trained(image)["pose"], model(image)["pose"], FLOAT32)  # float32
    with torch.no_grad():
        trained.get_parameter("encoder.pose.0.M").mul_(-1)
    plain = contract(trained)
    output = plain(image)
    assert_close(output["age"], model(image)["age"], FLOAT32)
    assert not torch.allclose(output["pose"], model(image)["pose"])
    shared = {name for name, _ in trained.named_parameters()}
    assert "encoder.age.0.U" in shared and "encoder.pose.0.U" not in shared  # one tensor, named once
    assert "encoder.pose.0.M" in shared


def test_statistics_are_each_tasks_own(model: MultiTaskModel, image: Tensor) -> None:
    trained = overparameterize(model, tasks=("age", "pose"), per_task=True)
    with torch.no_grad():
        trained.get_parameter("encoder.pose.0.M").mul_(3)
    trained.train()(image)
    one, other = (trained.get_buffer(f"encoder.{task}.1.running_var") for task in ("age", "pose"))
    assert (other > one).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": ("age", "poses")}, "no task 'poses'"),
        ({"tasks": ("age", "age")}, "named twice"),
        ({"tasks": ("age",), "per_task": True}, "pose would have no encoder"),
        ({"per_task": True}, "needs the tasks' names"),
        ({"kind": "repvgg", "tasks": ("age", "pose")}, "repvgg has no diagonals"),
        ({"kind": "repvgg", "rank": 2}, "branches have no rank"),
        ({"kind": "expandnet_cl", "rank": 0.5}, "rank 0.5 is out of range"),
        ({"kind": "expandnet_cl", "rank": 4}, "rank 4 is out of range"),
    ],
)
def test_what_does_not_fit_is_named(model: MultiTaskModel, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        overparameterize(model, **options)


def test_a_kernel_too_small_for_a_chain_is_named(net: Net) -> None:
    with pytest.raises(ConfigError, match="no layer to factorize") as caught:
        overparameterize(net, "expandnet_ck")
    assert "expandnet_cl" in caught.value.hint


def test_thin_layers_stay_where_they_need_fewer_macs(net: Net, image: Tensor) -> None:
    trained = overparameterize(net, rank=2)
    thin = contract(trained, keep_factors_below=0.5)
    # 3×3 of 3 to 8 channels at rank 2: 2·3·3 + 8·2·3 of 8·3·9 MACs; 1×1 of 8 to 8: 32 of 64, which is no less
    assert [type(m) for m in (thin.encoder["stem"], thin.encoder["shared"])] == [nn.Sequential, nn.Conv2d]
    assert list(thin.encoder["stem"].state_dict()) == ["V.weight", "U.weight"]
    torch.testing.assert_close(thin(image), contract(trained)(image), rtol=1e-5, atol=1e-6)  # float32
    whole, parts = (cost(model, (image,)).macs for model in (contract(trained), thin))
    assert parts < whole


@pytest.mark.parametrize("share", [0.0, -1.0, 1.5])
def test_a_share_of_macs_out_of_range(net: Net, share: float) -> None:
    with pytest.raises(ConfigError, match="keep_factors_below"):
        contract(overparameterize(net), keep_factors_below=share)


def test_depthwise_layers_take_part_where_asked(net: Net, image: Tensor) -> None:
    trained = overparameterize(net, depthwise=True)
    assert "encoder.depthwise" in factorized_layers(trained)
    assert_close(trained(image), net(image), FLOAT32)  # float32


@pytest.mark.parametrize("kind", ["svd", "cp", "tucker", "expandnet_cl", "repvgg"])
def test_without_values_it_takes_a_checkpoint(kind: Kind, net: Net, image: Tensor) -> None:
    trained = overparameterize(net, kind)
    torch.manual_seed(1)
    empty = overparameterize(Net().eval(), kind, initialize=False)
    state = {name: value for name, value in empty.state_dict().items() if name.endswith((".U", ".B", ".P"))}
    assert state and all((value == 0).all() for value in state.values())
    empty.load_state_dict(trained.state_dict())
    assert torch.equal(empty(image), trained(image))


@pytest.mark.parametrize("kind", ["repvgg", "expandnet_ck"])
def test_a_form_without_one_factor_for_a_slice_says_so(kind: Kind, model: MultiTaskModel) -> None:
    trained = overparameterize(model, kind)
    with pytest.raises(ConfigError, match="no one factor"):
        factor_of(trained, "encoder.3.weight", 2)


def test_a_contraction_that_is_wrong_is_an_error(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = overparameterize(net)
    deployed = SvdLayer.deployed
    monkeypatch.setattr(SvdLayer, "deployed", lambda layer: (1.001 * deployed(layer)[0], layer.bias))
    with pytest.raises(SurgeryError, match=r"layer .* is off by"):
        contract(trained)


def test_factors_that_are_not_finite_are_named(net: Net) -> None:
    trained = overparameterize(net)
    name, layer = next(iter(factorized_layers(trained).items()))
    with torch.no_grad():
        next(iter(layer.factors().values())).fill_(torch.nan)
    with pytest.raises(SurgeryError, match=f"layer {name} .* not finite"):
        contract(trained)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": "age"}, "tasks 'age' is a string"),
        ({"exclude": "0"}, "exclude '0' is a string"),
        ({"evaluation": "seq"}, "unknown evaluation 'seq'"),
        ({"rank": None}, "rank None"),
        ({"rank": (4, 4)}, "rank"),
    ],
)
def test_arguments_of_another_kind(net: Net, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        overparameterize(net, **options)


@pytest.mark.parametrize("kind", ["svd", "cp", "tucker", "expandnet_cl"])
def test_a_product_is_laid_out_as_torch_lays_one_out(kind: Kind) -> None:
    """Strides of a product may be what torch takes for channels last, in which the layer would then run."""
    model = overparameterize(nn.Sequential(nn.Conv2d(16, 12, 1)), kind)
    plain = contract(model).get_parameter("0.weight")
    product = model[0].weight
    assert isinstance(product, Tensor)
    for weight in (product, plain):
        assert weight.stride() == torch.empty(weight.shape).stride()
