"""Blocks that are computed again: the same training to the bit, with less kept between the two passes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn

from compactmtl.config import Resolved
from compactmtl.data.base import Batch
from compactmtl.errors import ConfigError
from compactmtl.models import MultiTaskModel
from compactmtl.models.segnet import SegNet, SegNetOptions
from compactmtl.train import train
from compactmtl.train.build import build_session
from compactmtl.train.dry_run import dry_run
from compactmtl.train.norms import train_mode
from compactmtl.train.recompute import Recompute, blocks_of, check_blocks, recomputed
from compactmtl.train.session import Session

Make = Callable[..., Resolved]
AGAIN = "train.checkpoint_activations=true"


class AsItIs(nn.Module):
    """A head without layers."""

    def forward(self, features: Tensor, size: tuple[int, int]) -> Tensor:
        return features


def around(encoder: nn.Module) -> MultiTaskModel:
    return MultiTaskModel(encoder, {"a": AsItIs()})


def features_of(name: str) -> nn.Module:
    with torch.device("meta"):
        module: nn.Module = timm.create_model(name, features_only=True)
    return module


@pytest.mark.parametrize(
    ("name", "blocks"),
    [
        ("resnet18", {"layer1.0", "layer1.1", "layer4.0", "layer4.1"}),
        ("resnet10t", {"conv1", "layer1", "layer4"}),  # a stem of three convolutions, and stages of one block
        ("convnext_atto", {"stages_0.blocks.0", "stages_2.blocks.5"}),
        ("efficientnet_lite0", {"blocks.1.0", "blocks.4.2"}),
        ("vit_tiny_patch16_224", {"model.blocks.0", "model.blocks.11"}),
        ("swin_tiny_patch4_window7_224", {"layers_0.blocks.0", "layers_2.blocks.5"}),
    ],
)
def test_blocks_of_timms_networks(name: str, blocks: set[str]) -> None:
    found = blocks_of(around(features_of(name)))
    assert blocks <= set(found)
    assert not any(one != other and one.startswith(f"{other}.") for one in found for other in found)


def test_blocks_of_segnet_are_its_convolutions() -> None:
    """Its forward calls the first of each stage apart from the rest."""
    found = blocks_of(around(SegNet(SegNetOptions(width=4))))
    assert len(found) == 26
    assert {"down.0.0", "down.0.1", "up.4.1"} <= set(found)


class Residual(nn.Module):
    """A block that works in place on what it is given, where asked to."""

    def __init__(self, *, in_place: bool = False) -> None:
        super().__init__()
        self.act = nn.ReLU(inplace=in_place)
        self.one, self.two = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.two(self.one(self.act(x)))
        return y


def network(*layers: nn.Module) -> MultiTaskModel:
    return around(nn.Sequential(*layers))


def test_blocks_that_work_in_place_are_refused() -> None:
    image = (torch.randn(1, 4, 8, 8),)
    check_blocks(network(Residual(), Residual()), image)
    with pytest.raises(
        ConfigError, match=r"train\.checkpoint_activations: the network cannot be computed again"
    ):
        # the input of the second is what the first convolution's backward needs
        check_blocks(network(nn.Conv2d(4, 4, 1), nn.Sigmoid(), Residual(in_place=True), Residual()), image)


class Noisy(Residual):
    """Draws from a generator of its own, or from torch's."""

    def __init__(self, own: torch.Generator | None) -> None:
        super().__init__()
        self.own = own

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + torch.randn(x.shape, generator=self.own))


def test_blocks_that_give_something_else_the_second_time_are_refused() -> None:
    image = (torch.randn(1, 4, 8, 8),)
    check_blocks(network(Noisy(None), Noisy(None)), image)
    with pytest.raises(ConfigError, match=r"block 1 of the \w+ gives something else"):
        check_blocks(network(Noisy(None), Noisy(torch.Generator().manual_seed(0))), image)


def test_a_block_called_twice_is_compared_with_either_call() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList([Noisy(None), Residual()])

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.blocks[1](self.blocks[0](x) + self.blocks[0](x))
            return y

    check_blocks(around(Shared()), (torch.randn(1, 4, 8, 8),))


def test_a_second_pass_begins_with_the_buffers_of_the_first() -> None:
    """Spectral norm takes a step of its power iteration in each forward pass."""
    torch.manual_seed(0)
    block = Residual()
    nn.utils.parametrizations.spectral_norm(block.one, n_power_iterations=1)
    other, image = copy.deepcopy(block), torch.randn(2, 4, 8, 8, requires_grad=True)
    block(image).square().sum().backward()
    with recomputed({"": other}):
        result = other(image)
    result.square().sum().backward()
    for one, same in zip(block.parameters(), other.parameters(), strict=True):
        assert one.grad is not None and same.grad is not None and torch.equal(one.grad, same.grad)
    assert all(torch.equal(one, same) for one, same in zip(block.buffers(), other.buffers(), strict=True))


def test_a_network_without_blocks_is_refused() -> None:
    flat = network(nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
    with pytest.raises(ConfigError, match="calls no blocks"):
        check_blocks(flat, (torch.randn(1, 4, 8, 8),))


def session_of(tiny: Make, *overrides: str, more: str = "") -> Session:
    session = build_session(tiny(*overrides, more=more).recipe)
    train_mode(session.model, session.recipe)
    return session


def steps(session: Session, number: int = 2) -> list[Tensor]:
    """Losses of some steps, then the weights and buffers."""
    losses = []
    for batch in session.batches(1, 0, number):
        of_tasks, total = session.forward(batch)
        session.update(total)
        losses += [*of_tasks.values(), total]
    return [*(one.detach() for one in losses), *session.model.state_dict().values()]


CASES = {
    "dropout and running statistics": ("tasks.segmentation.head.dropout=0.5", "train.clip=1.0"),
    "drop path": ("model.encoder.options={channels: [16, 16, 24, 32], stem_width: 16, drop_path_rate: 0.5}",),
    "several gradients": ("balancing={name: upgrad}",),
    "a gradient of a gradient": ("regularization={input_gradient: {strength: 0.1}}",),
    "moved weights": ("regularization={sam: {rho: 0.05}}",),
    "at features": ("balancing={name: mgda, at: features}",),
    "factors": ("overparam={kind: svd}",),
    "branches": ("overparam={kind: repvgg}",),
    "half precision": ("train.autocast=bfloat16",),
    "parts": ("train.accumulate=2",),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_the_same_steps_to_the_bit(case: str, tiny: Make) -> None:
    """Weights, and running statistics, which move once a step."""
    plain = steps(session_of(tiny, *CASES[case]))
    session = session_of(tiny, *CASES[case], AGAIN)
    part = session.part(Recompute)
    assert part is not None and part.blocks
    for one, other in zip(plain, steps(session), strict=True):
        assert torch.equal(one, other)
    assert not any("forward" in vars(module) for module in session.model.modules())


def kept_bytes(session: Session, batch: Batch) -> int:
    """What autograd keeps of a forward pass, weights apart."""
    own = {one.untyped_storage().data_ptr() for one in session.model.state_dict().values()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        current = session.forward_pass(batch)
    del current
    return sum(kept.values())


@pytest.mark.slow
def test_less_is_kept(tiny: Make) -> None:
    overrides = (
        "model.encoder={name: convnext_atto, options: {}, output_stride: null}",
        "data.size=[64, 64]",
        "tasks.segmentation.head.depth=0",
        "tasks.depth.head.depth=0",
    )
    plain, again = session_of(tiny, *overrides), session_of(tiny, *overrides, AGAIN)
    batch = next(iter(plain.train_loader))
    assert kept_bytes(again, batch) < 0.5 * kept_bytes(plain, batch)
    recipes = (tiny(*overrides, AGAIN).recipe, tiny(*overrides).recipe)
    less, more = (dry_run(recipe).activation_bytes for recipe in recipes)
    assert less < 0.5 * more


@pytest.mark.slow
def test_a_network_that_shrinks_goes_on_with_its_blocks(
    tiny: Make, tmp_path: Path, quiet: Callable[[], object]
) -> None:
    sparse = "\nsparsity: {shrink_every: 1, selective: {mac_reduction: 0.4, start: 0.1, end: 0.6, every: 2, min_channels: 4}}\n"
    plain = train(tiny(more=sparse), tmp_path / "plain", console=quiet())  # type: ignore[arg-type]
    again = train(tiny(AGAIN, more=sparse), tmp_path / "again", console=quiet())  # type: ignore[arg-type]
    before, after = plain.load_model("last").state_dict(), again.load_model("last").state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert again.best == plain.best


@pytest.mark.slow
def test_whether_blocks_are_computed_again_may_change_when_a_run_goes_on(
    tiny: Make, tmp_path: Path, quiet: Callable[[], object]
) -> None:
    train(tiny("train.max_steps=2"), tmp_path / "run", console=quiet())  # type: ignore[arg-type]
    train(tiny("train.max_steps=2", AGAIN), tmp_path / "run", console=quiet(), resume=True)  # type: ignore[arg-type]
