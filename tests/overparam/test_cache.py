"""The weight that is kept for evaluation is never an old one."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from compactmtl.overparam import contract, overparameterize
from compactmtl.overparam.layer import OverparamLayer
from compactmtl.overparam.repvgg import BranchLayer
from compactmtl.overparam.svd import SvdLayer
from tests.support.masking import FLOAT32, assert_close


@pytest.fixture
def layer() -> SvdLayer:
    torch.manual_seed(0)
    return SvdLayer(nn.Conv2d(4, 6, 3), 12).eval()


@pytest.fixture
def image() -> Tensor:
    return torch.randn(2, 4, 7, 7, generator=torch.Generator().manual_seed(1))


def test_the_product_is_computed_once(
    layer: SvdLayer, image: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    product = SvdLayer.product

    def counted(self: SvdLayer) -> Tensor:
        calls.append(1)
        return product(self)

    monkeypatch.setattr(SvdLayer, "product", counted)
    with torch.no_grad():
        layer(image)
        layer(image)
    with torch.inference_mode():
        layer(image)
    assert len(calls) == 1


def optimizer_step(layer: SvdLayer) -> None:
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    layer(torch.randn(1, 4, 5, 5)).square().sum().backward()
    optimizer.step()


def fused_step(layer: SvdLayer) -> None:
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, fused=True)
    layer(torch.randn(1, 4, 5, 5)).square().sum().backward()
    optimizer.step()  # leaves the parameters' versions as they were


def new_parameter(layer: SvdLayer) -> None:
    layer.U = nn.Parameter(torch.randn_like(layer.U))


def other_state(layer: SvdLayer) -> None:
    layer.load_state_dict({name: value + 1 for name, value in layer.state_dict().items()})


def assigned_state(layer: SvdLayer) -> None:
    layer.load_state_dict({name: value + 1 for name, value in layer.state_dict().items()}, assign=True)


def moved(layer: SvdLayer) -> None:
    layer.double().float()
    with torch.no_grad():
        layer.V.mul_(2)


def through_data(layer: SvdLayer) -> None:
    layer.M.data = 2 * layer.M.data


def through_data_and_eval(layer: SvdLayer) -> None:
    layer.M.data.mul_(2)
    layer.eval()


@pytest.mark.parametrize(
    "change",
    [
        optimizer_step,
        fused_step,
        new_parameter,
        other_state,
        assigned_state,
        moved,
        through_data,
        through_data_and_eval,
    ],
)
def test_a_change_is_seen(layer: SvdLayer, image: Tensor, change: Callable[[SvdLayer], None]) -> None:
    with torch.no_grad():
        before = layer(image)
    change(layer)
    with torch.no_grad():
        output = layer(image)
    expected = torch.nn.functional.conv2d(image, layer.weight, layer.bias)
    assert not torch.equal(output, before)
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)  # float32


def test_a_copy_has_a_weight_of_its_own(layer: SvdLayer, image: Tensor) -> None:
    with torch.no_grad():
        before = layer(image)
        twin = copy.deepcopy(layer)
        twin.U.zero_()
        assert torch.equal(layer(image), before)
        assert twin(image).std((0, 2, 3)).max() < 1e-6  # its bias alone


def test_gradients_flow_in_eval_mode(layer: SvdLayer, image: Tensor) -> None:
    with torch.no_grad():
        layer(image)
    layer(image).sum().backward()
    assert all(parameter.grad is not None for parameter in layer.parameters())


def test_values_put_in_for_a_call_are_used(layer: SvdLayer, image: Tensor) -> None:
    with torch.no_grad():
        before = layer(image)
        output = torch.func.functional_call(layer, {"U": 2 * layer.U}, (image,))
        assert not torch.allclose(output, before)
        assert torch.equal(layer(image), before)


def test_a_factorized_model_is_exported_and_traced() -> None:
    torch.manual_seed(0)
    model = overparameterize(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3))).eval()
    image = torch.randn(1, 3, 9, 9)
    with torch.no_grad():
        expected = contract(model)(image)
        traced = torch.export.export(model, (image,)).module()
        assert_close(traced(image), expected, FLOAT32)
    assert all(layer._cache is None for layer in model.modules() if isinstance(layer, OverparamLayer))


def test_a_changed_buffer_is_seen(image: Tensor) -> None:
    branched = overparameterize(nn.Sequential(nn.Conv2d(4, 4, 3)), "repvgg").eval()
    layer = branched[0]
    assert isinstance(layer, BranchLayer)
    with torch.no_grad():
        branched(image)
        layer.norm.running_var.fill_(4.0)
        assert_close(branched(image), contract(branched)(image), FLOAT32)
