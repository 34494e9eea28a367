"""Every form of a layer computes what the plain layer with its contracted weight computes, whatever the configuration."""

from __future__ import annotations

from typing import Literal, get_args

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from compactmtl.errors import ConfigError
from compactmtl.overparam import OverparamLayer
from compactmtl.overparam.expandnet import ChainLayer
from compactmtl.overparam.geometry import Geometry, Plain
from compactmtl.overparam.kinds import Kind, Rank, build_layer, takes
from compactmtl.overparam.layer import DETOUR_COST, Price
from compactmtl.overparam.svd import SvdLayer
from tests.support.masking import FLOAT32, assert_close

Mode = Literal["zeros", "reflect", "replicate", "circular"]

# torch says that `same` padding of an even kernel copies its input, for plain layers as for ours.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")

# float32 rounds at 6e-8; a sum of a few hundred products in another order stays below 1e-5 of its range.
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
FORMS: list[tuple[Kind, Rank]] = [
    ("svd", "full"), ("svd", 2.0), ("cp", "full"), ("cp", 1.5), ("tucker", "full"), ("tucker", 2.0),
    ("expandnet_cl", 1.0), ("expandnet_cl", 2.5), ("expandnet_ck", "full"), ("expandnet_ck", 6.0),
]  # fmt: skip


def error(output: Tensor, expected: Tensor) -> float:
    return float(((output - expected).abs().max() / expected.abs().max().clamp_min(1e-30)).detach())


@st.composite
def layers(draw: st.DrawFn, largest: int = 3) -> Plain:
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    torch.manual_seed(draw(st.integers(0, 10_000)))
    if draw(st.integers(0, 4)) == 0:
        return nn.Linear(draw(st.integers(1, 9)), draw(st.integers(1, 9)), draw(st.booleans()), dtype=dtype)
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    mode: Mode = draw(st.sampled_from(get_args(Mode)))
    stride = draw(st.sampled_from([(1, 1), (2, 2), (1, 2)]))
    paddings: list[str | tuple[int, int]] = [(0, 0), (1, 1), (1, 0)]
    padding = draw(st.sampled_from(paddings + (["same", "valid"] if stride == (1, 1) else [])))
    return nn.Conv2d(
        groups * draw(st.integers(1, 5)),
        groups * draw(st.integers(1, 5)),
        (draw(st.integers(1, largest)), draw(st.integers(1, largest))),
        stride=stride,
        padding=padding,
        dilation=draw(st.sampled_from([(1, 1), (2, 2), (2, 1)])),
        groups=groups,
        bias=draw(st.booleans()),
        padding_mode=mode,
        dtype=dtype,
    )


def inputs(plain: Plain) -> Tensor:
    if isinstance(plain, nn.Linear):
        return torch.randn(2, 3, plain.in_features, dtype=plain.weight.dtype)
    return torch.randn(2, plain.in_channels, 11, 12, dtype=plain.weight.dtype)


def perturbed(layer: OverparamLayer) -> OverparamLayer:
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return layer


def run_whole(layer: OverparamLayer, x: Tensor) -> Tensor:
    layer.evaluation = "contract"
    output: Tensor = layer.train()(x)
    return output


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "rank"), FORMS)
@settings(max_examples=25)
@given(data=st.data())
def test_after_training_every_evaluation_is_the_contracted_layer(
    kind: Kind, rank: Rank, data: st.DataObject
) -> None:
    plain = data.draw(layers(6 if kind == "expandnet_ck" else 3))
    assume(takes(kind, plain, depthwise=True))
    layer = perturbed(build_layer(kind, plain, rank, data.draw(st.integers(1, 3))))
    x = inputs(plain)
    contracted = layer.contracted()
    assert type(contracted) is type(plain)
    shapes = {name: value.shape for name, value in plain.state_dict().items()}
    assert {name: value.shape for name, value in contracted.state_dict().items()} == shapes
    expected, bound = contracted(x), TOLERANCE[x.dtype]
    assert error(run_whole(layer, x), expected) <= bound
    with torch.no_grad():
        assert error(layer.eval()(x), expected) <= bound
    if layer.stages():
        assert error(layer.run_stages(x), expected) <= bound
        assert error(layer.contracted(keep_factors_below=float("inf"))(x), expected) <= bound


@pytest.mark.parametrize(("kind", "rank"), FORMS)
@settings(max_examples=15)
@given(data=st.data())
def test_the_function_is_kept_at_the_start(kind: Kind, rank: Rank, data: st.DataObject) -> None:
    plain = data.draw(layers(6 if kind == "expandnet_ck" else 3))
    assume(takes(kind, plain, depthwise=True))
    layer, x = build_layer(kind, plain, rank, 2), inputs(plain)
    assert error(run_whole(layer, x), plain(x)) <= TOLERANCE[x.dtype]


@settings(max_examples=25)
@given(plain=layers(), share=st.floats(0.01, 1))
def test_a_lower_rank_contracts_exactly_too(plain: Plain, share: float) -> None:
    kinds: tuple[Kind, ...] = ("svd", "cp", "tucker")
    for kind in kinds:
        layer = perturbed(build_layer(kind, plain, share, 1))
        x = inputs(plain)
        assert error(run_whole(layer, x), layer.contracted()(x)) <= TOLERANCE[x.dtype]


def test_a_lower_rank_starts_at_the_best_approximation() -> None:
    torch.manual_seed(0)
    plain = nn.Conv2d(4, 5, 3, dtype=torch.float64)
    matrix = plain.weight.detach().transpose(1, 2).reshape(15, 12)
    values = torch.linalg.svdvals(matrix)
    difference = build_layer("svd", plain, 7, 1).weight - plain.weight
    # Eckart and Young: what is dropped is the norm of the other singular values, to float64 rounding.
    torch.testing.assert_close(difference.norm(), values[7:].norm(), rtol=1e-9, atol=0)


def test_svd_is_a_row_and_a_column_convolution_around_a_diagonal() -> None:
    torch.manual_seed(0)
    plain = nn.Conv2d(4, 6, 3, stride=2, groups=2, dtype=torch.float64)
    layer = perturbed(build_layer("svd", plain, "full", 3))
    assert isinstance(layer, SvdLayer) and layer.M.shape == (3, 2 * 6)
    x = torch.randn(2, 4, 9, 9, dtype=torch.float64)
    v = (layer.M[0] * layer.M[1] * layer.M[2])[:, None, None] * layer.V
    inner = F.conv2d(x, v[:, :, None, :], stride=(1, 2), groups=2)
    outer = F.conv2d(inner, layer.U.permute(0, 2, 1)[..., None], layer.bias, stride=(2, 1), groups=2)
    assert error(layer(x), outer) <= 1e-12  # float64 in another order


@pytest.mark.parametrize("kind", ["svd", "cp", "tucker", "expandnet_cl", "expandnet_ck"])
@pytest.mark.parametrize("evaluation", ["contract", "sequence"])
def test_gradients_of_every_factor(kind: Kind, evaluation: Literal["contract", "sequence"]) -> None:
    torch.manual_seed(0)
    kernel = (4, 3) if kind == "expandnet_ck" else (3, 2)
    plain = nn.Conv2d(2, 2, kernel, padding=1, stride=2, dtype=torch.float64)
    layer = perturbed(build_layer(kind, plain, "full", 2))
    layer.evaluation = evaluation
    x = torch.randn(1, 2, 5, 4, dtype=torch.float64)
    names = [name for name, _ in layer.named_parameters()]

    def run(*values: Tensor) -> Tensor:
        output: Tensor = torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))
        return output

    assert torch.autograd.gradcheck(run, tuple(layer.parameters()))


@pytest.mark.parametrize("kind", ["svd", "cp", "tucker"])
def test_gradients_are_those_of_the_explicit_product(kind: Kind) -> None:
    """Through a convolution with U·diag(M₁∘M₂)·V written out by einsum."""
    torch.manual_seed(0)
    plain = nn.Conv2d(4, 6, 3, padding=1, groups=2, dtype=torch.float64)
    layer = perturbed(build_layer(kind, plain, "full", 2))
    x = torch.randn(2, 4, 6, 6, dtype=torch.float64)
    run_whole(layer, x).square().sum().backward()  # type: ignore[no-untyped-call]
    gradients = {name: parameter.grad for name, parameter in layer.named_parameters()}
    copies = {name: p.detach().clone().requires_grad_() for name, p in layer.named_parameters()}
    weight = explicit(kind, copies)
    F.conv2d(x, weight, copies["bias"], padding=1, groups=2).square().sum().backward()  # type: ignore[no-untyped-call]
    for name, copy in copies.items():
        torch.testing.assert_close(
            gradients[name], copy.grad, rtol=1e-9, atol=1e-12
        )  # float64, another order


def explicit(kind: str, p: dict[str, Tensor]) -> Tensor:
    """The weight (6, 2, 3, 3) of two convolution groups from its factors, by the definition."""
    m = p["M"][0] * p["M"][1]
    if kind == "svd":
        u, v = p["U"].view(2, 3, 3, -1), p["V"].view(2, -1, 2, 3)
        return torch.einsum("gohr,gr,griw->goihw", u, m.view(2, -1), v).reshape(6, 2, 3, 3)
    if kind == "cp":
        a, b, h, w = p["A"].view(2, 3, -1), *(p[name].view(2, m.numel() // 2, -1) for name in "BHW")
        return torch.einsum("gor,gr,gri,grh,grw->goihw", a, m.view(2, -1), b, h, w).reshape(6, 2, 3, 3)
    q, r = p["A"].shape[1], p["K"].shape[1]
    outer, inner = m.split([2 * q, 2 * r])  # type: ignore[no-untyped-call]
    a, k, b = p["A"].view(2, 3, q), p["K"].view(2, q, r, 3, 3), p["B"].view(2, r, 2)
    weight = torch.einsum("goq,gq,gqrhw,gr,gri->goihw", a, outer.view(2, q), k, inner.view(2, r), b)
    return weight.reshape(6, 2, 3, 3)


@pytest.mark.parametrize("kind", ["svd", "cp"])
@pytest.mark.parametrize("weight", [torch.zeros(6, 4, 3, 3), torch.randn(6, 1, 1, 1).expand(6, 4, 3, 3)])
def test_a_rank_deficient_weight_still_learns_in_every_direction(kind: Kind, weight: Tensor) -> None:
    torch.manual_seed(0)
    plain = nn.Conv2d(4, 6, 3)
    plain.weight = nn.Parameter(weight.clone())
    layer = build_layer(kind, plain, "full", 1)
    # float32: the dropped singular values are rounding noise of the weight.
    assert_close(layer.weight, weight, FLOAT32)
    run_whole(layer, torch.randn(2, 4, 5, 5)).square().sum().backward()  # type: ignore[no-untyped-call]
    gradient = layer.get_parameter("V" if kind == "svd" else "B").grad
    assert gradient is not None
    # Every component of the product gets a gradient through one side or the other.
    assert (gradient.flatten(1).norm(dim=1) > 0).all()


@pytest.mark.parametrize(("kind", "rank"), [("svd", 1.5), ("tucker", 1.5), ("expandnet_cl", 2.0)])
def test_what_is_beyond_full_rank_learns_too(kind: Kind, rank: float) -> None:
    torch.manual_seed(0)
    layer = build_layer(kind, nn.Conv2d(4, 6, 3, dtype=torch.float64), rank, 1)
    loss = run_whole(layer, torch.randn(2, 4, 5, 5, dtype=torch.float64)).square().sum()
    for _ in range(2):
        gradients = torch.autograd.grad(loss, list(layer.factors().values()))
        with torch.no_grad():
            for parameter, gradient in zip(layer.factors().values(), gradients, strict=True):
                parameter.sub_(1e-2 * gradient)
        loss = run_whole(layer, torch.randn(2, 4, 5, 5, dtype=torch.float64)).square().sum()
    moved = torch.autograd.grad(loss, list(layer.factors().values()))
    for name, gradient in zip(layer.factors(), moved, strict=True):
        rows = gradient if name != "U" else gradient.flatten(0, 1).T
        assert (rows.flatten(1).norm(dim=1) > 0).all(), name


@pytest.mark.parametrize("kind", ["svd", "cp", "tucker", "expandnet_cl", "expandnet_ck"])
def test_a_zero_slice_of_a_factor_is_an_exactly_zero_slice_of_the_weight(kind: Kind) -> None:
    torch.manual_seed(0)
    layer = build_layer(kind, nn.Conv2d(5, 7, 5), "full", 1)
    for dim, (name, factor_dim) in layer.factor_dims.items():
        factor = layer.get_parameter(name)
        kept = factor.detach().clone()
        with torch.no_grad():
            factor.select(factor_dim, 2).zero_()
        weight = layer.weight.detach()
        assert weight.select(dim, 2).abs().max() == 0
        assert (weight.select(dim, 1) != 0).any()
        with torch.no_grad():
            factor.copy_(kept)


@pytest.mark.parametrize(
    ("kernel", "expected"),
    [
        ((5, 5), [(3, 3), (3, 3)]),
        ((7, 3), [(3, 1), (3, 1), (3, 3)]),
        ((4, 1), [(3, 1), (2, 1)]),
        ((3, 3), [(3, 3)]),
    ],
)
def test_a_kernel_is_a_chain_of_small_ones(kernel: tuple[int, int], expected: list[tuple[int, int]]) -> None:
    from compactmtl.overparam.expandnet import chain

    assert chain(kernel) == expected


def test_a_chain_is_as_wide_as_it_takes_to_write_every_kernel() -> None:
    torch.manual_seed(0)
    layer = build_layer("expandnet_ck", nn.Conv2d(2, 3, 7, dtype=torch.float64), "full", 1)
    assert isinstance(layer, ChainLayer)
    assert [link.shape[0] for link in layer.links] == [4 * 2, 9 * 2, 3]


def test_half_precision_keeps_its_type() -> None:
    torch.manual_seed(0)
    plain = nn.Linear(6, 5, dtype=torch.bfloat16)
    layer = build_layer("svd", plain, "full", 1)
    assert layer.get_parameter("U").dtype == torch.bfloat16
    # bfloat16 rounds at 4e-3, the product of two factors at a few times that.
    assert error(layer.weight.float(), plain.weight.float()) <= 0.03


def test_the_product_keeps_its_precision_under_autocast() -> None:
    torch.manual_seed(0)
    layer = build_layer("svd", nn.Conv2d(8, 8, 3), "full", 1)
    expected = layer.weight
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer.weight, expected)
        assert run_whole(layer, torch.randn(1, 8, 5, 5)).dtype == torch.bfloat16


@pytest.mark.parametrize("kind", ["svd", "cp", "tucker", "expandnet_cl", "expandnet_ck", "repvgg"])
def test_weights_that_are_not_finite(kind: Kind) -> None:
    plain = nn.Conv2d(3, 3, 5)
    with torch.no_grad():
        plain.weight[0, 0, 0, 0] = torch.nan
    with pytest.raises(ConfigError, match="NaN or infinity"):
        build_layer(kind, plain, "full", 1)


def test_the_cheaper_evaluation_is_chosen_by_macs() -> None:
    layer = build_layer("svd", nn.Conv2d(16, 16, 3, padding=1), "full", 1)
    large, small = layer.price((8, 16, 64, 64)), layer.price((1, 16, 4, 4))
    assert large == Price(
        product=48**3, plain=8 * 64 * 64 * 16 * 16 * 9, sequence=8 * 64 * 64 * 2 * 16 * 3 * 48
    )
    assert (large.choice, small.choice) == ("contract", "sequence")
    assert small.sequence is not None
    assert DETOUR_COST * small.sequence < DETOUR_COST * small.product + small.plain


def test_what_was_measured_on_a_cpu_does_not_steer_another_device() -> None:
    layer = build_layer("svd", nn.Conv2d(16, 16, 3, padding=1), "full", 1)
    shapes = [(1, 16, 1, width) for width in range(30, 60)]
    on_cpu = [layer.price(shape) for shape in shapes]
    elsewhere = [layer.to("meta").price(shape) for shape in shapes]
    for one, other in zip(on_cpu, elsewhere, strict=True):
        assert (one.product, one.plain, one.sequence) == (other.product, other.plain, other.sequence)
        assert other.sequence is not None
        cheaper = "contract" if other.product + other.plain <= other.sequence else "sequence"
        assert other.choice == cheaper  # by MACs alone
    assert [one.choice for one in on_cpu] != [other.choice for other in elsewhere]


def test_what_a_stage_costs_follows_the_strides() -> None:
    plain = nn.Conv2d(4, 6, 3, padding=1, stride=2)
    layer = build_layer("svd", plain, 5, 1)
    # 1×3 on 8 rows and 4 columns, then 3×1 on 4 by 4
    assert layer.price((1, 4, 8, 8)).sequence == 8 * 4 * 5 * 4 * 3 + 4 * 4 * 6 * 5 * 3


def test_geometry_counts_what_torch_gives() -> None:
    for plain in (
        nn.Conv2d(2, 2, (3, 5), stride=(2, 3), padding=(1, 2), dilation=(2, 1)),
        nn.Conv2d(2, 2, 4, padding="same"),
    ):
        x = torch.randn(1, 2, 17, 20)
        assert Geometry.of(plain).output_size((17, 20)) == tuple(plain(x).shape[2:])
