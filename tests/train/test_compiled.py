"""Networks that train through torch.compile: the same steps but for rounding, plain checkpoints, and a reason where it cannot."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from compactmtl.config import Resolved
from compactmtl.config.model import ModelConfig
from compactmtl.config.train import TrainConfig
from compactmtl.data.base import Batch
from compactmtl.errors import ConfigError, MissingDependencyError
from compactmtl.models import MultiTaskModel, OwnModel
from compactmtl.train import train
from compactmtl.train.build import build_session
from compactmtl.train.compiled import Compiled, check_compiler, units
from compactmtl.train.norms import train_mode
from compactmtl.train.session import Session

Make = Callable[..., Resolved]
SPARSE = "\nsparsity: {shrink_every: 1, selective: {mac_reduction: 0.4, start: 0.1, end: 0.6, every: 2, min_channels: 4}}\n"
STILL = ("tasks.segmentation.head.dropout=0.0",)  # generated code draws other random numbers


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def session_of(tiny: Make, *overrides: str, more: str = "") -> Session:
    session = build_session(tiny(*STILL, *overrides, more=more).recipe)
    train_mode(session.model, session.recipe)
    return session


def steps(session: Session, number: int = 2) -> dict[str, Tensor]:
    """Losses of some steps, and the weights and buffers then."""
    found: dict[str, Tensor] = {}
    for place, batch in enumerate(session.batches(1, 0, number)):
        losses, total = session.forward(batch)
        found |= {f"{name} {place}": loss.detach() for name, loss in {**losses, "total": total}.items()}
        session.update(total)
    return found | dict(session.model.state_dict())


def assert_close(session: Session, plain: Session, number: int = 2) -> None:
    expected, found = steps(plain, number), steps(session, number)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        # float32 whose sums have another order, through two steps of AdamW, which divides by the size of a gradient
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=2e-4, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_the_same_steps(backend: str, tiny: Make) -> None:
    session = session_of(tiny, f"train.compile={backend}", "train.optimizer={name: sgd, lr: 0.01}")
    assert session.part(Compiled) is not None
    assert_close(session, session_of(tiny, "train.optimizer={name: sgd, lr: 0.01}"))
    assert not any("forward" in vars(module) for module in session.model.modules())
    assert not any("_orig_mod" in name for name in session.model.state_dict())


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        ("balancing={name: upgrad}",),  # several gradients of one graph
        ("train.accumulate=2",),  # passes with gradients and without
        ("regularization={dgr: {strength: 0.1}, sam: {rho: 0.05}}",),
        ("overparam={kind: svd, training: alternating}",),
        ("train.batch_norm=frozen", "train.autocast=bfloat16"),
    ],
)
def test_the_same_steps_with_methods(overrides: tuple[str, ...], tiny: Make) -> None:
    more = (*overrides, "train.optimizer={name: sgd, lr: 0.01}")
    assert_close(session_of(tiny, "train.compile=aot_eager", *more), session_of(tiny, *more))


@pytest.mark.slow
def test_a_network_that_shrinks_is_compiled_again(
    tiny: Make, tmp_path: Path, quiet: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its checkpoints have the names and sizes of the plain network, which loads them."""
    resets: list[None] = []
    reset = torch.compiler.reset
    monkeypatch.setattr(torch.compiler, "reset", lambda: resets.append(reset()))
    resolved = tiny(*STILL, "train.compile=eager", more=SPARSE)
    run = train(resolved, tmp_path / "run", console=quiet())  # type: ignore[arg-type]
    plain = train(tiny(*STILL, more=SPARSE), tmp_path / "plain", console=quiet())  # type: ignore[arg-type]
    assert resets
    states = [load_file(one.path / "checkpoints" / "last" / "weights.safetensors") for one in (run, plain)]
    assert {name: value.shape for name, value in states[0].items()} == {
        name: value.shape for name, value in states[1].items()
    }
    removed = [event["sparsity"]["macs_removable"] for event in run.log() if event["event"] == "epoch"]
    assert removed[-1] >= 0.35
    run.load_plain()


@pytest.mark.slow
def test_without_a_compiler_it_says_so(tiny: Make) -> None:
    from torch._inductor import config

    without = config.patch({"cpp.cxx": ("no-such-compiler",)})
    message = r"train\.compile: torch\.compile cannot generate code"
    with without, pytest.raises(MissingDependencyError, match=message) as caught:
        build_session(tiny("train.compile=true").recipe)
    assert caught.value.exit_code == 3
    assert "train.compile=false" in caught.value.hint
    build_session(tiny("train.compile=aot_eager").recipe)


@pytest.mark.slow
def test_a_network_that_cannot_be_compiled_is_a_users_error(tiny: Make) -> None:
    session = session_of(tiny, "train.compile=eager")

    class Odd(nn.Module):
        """A head that torch.compile gives up on, as does one whose author forbids it."""

        def forward(self, features: Tensor, size: tuple[int, int] | None = None) -> Tensor:
            return torch._dynamo.graph_break() or features

    part = session.part(Compiled)
    assert part is not None
    part._forwards = [
        (session.model.heads["depth"], torch.compile(Odd().forward, backend="eager", fullgraph=True))
    ]
    with pytest.raises(
        ConfigError, match=r"train\.compile: torch\.compile cannot compile the network"
    ) as caught:
        session.forward(next(iter(session.train_loader)))
    assert caught.value.exit_code == 2


class Encoder(nn.Sequential):
    """A convolution with batch norm."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 4, 3, stride=4), nn.BatchNorm2d(4), nn.ReLU())


class Head(nn.Module):
    """A convolution of the features."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.last = nn.Conv2d(4, channels, 1)

    def forward(self, features: Tensor, size: tuple[int, int]) -> Tensor:
        output: Tensor = self.last(features)
        return output


class Own(nn.Module):
    """A network of somebody's own, whose forward scales what its head gives."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.top = Encoder(), Head(2)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return {"a": 2 * self.top(self.trunk(image), (32, 32))}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("paths", "compiled"),
    [
        ({}, ["network"]),
        ({"encoder_path": "trunk"}, ["network.trunk"]),
        ({"encoder_path": "trunk", "head_paths": {"a": "top"}}, ["network.trunk", "network.top"]),
    ],
)
def test_what_is_compiled_of_a_network_of_ones_own(paths: dict[str, Any], compiled: list[str]) -> None:
    """Its features are seen where they leave the encoder, as in the plain network."""
    torch.manual_seed(0)
    network = OwnModel(Own(), ["a"], ModelConfig(factory="somewhere:build", **paths)).train()
    plain = copy.deepcopy(network)
    names = {id(module): name for name, module in network.named_modules()}
    assert [names[id(module)] for module in units(network)] == compiled
    image = torch.randn(4, 3, 32, 32)
    part = Compiled(TrainConfig(compile="eager"), network)
    for _ in range(2):
        with part.forward_context({"image": image, "targets": {}}):
            features, found = network.pass_through(image, lambda x: x.view_as(x))
        seen, expected = plain.pass_through(image, lambda x: x.view_as(x))
        torch.testing.assert_close(found["a"], expected["a"])
        assert (features is None) == (seen is None)
        if features is not None:
            torch.testing.assert_close(features, seen)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_generated_code_gives_the_same() -> None:
    """Outputs, statistics, and several gradients of one graph."""
    if shutil.which("g++") is None:
        pytest.skip("no C++ compiler: g++ is not installed")
    check_compiler(torch.device("cpu"))
    torch.manual_seed(0)
    plain = MultiTaskModel(Encoder(), {"a": Head(2), "b": Head(1)})
    model = copy.deepcopy(plain)
    image = torch.randn(4, 3, 32, 32)
    batch: Batch = {"image": image, "targets": {}}
    with Compiled(TrainConfig(compile=True), model).forward_context(batch):
        _, found = model.pass_through(image)
    _, expected = plain.pass_through(image)
    for task, output in expected.items():
        torch.testing.assert_close(found[task], output, rtol=1e-4, atol=1e-5)
        ours, theirs = (
            torch.autograd.grad(one.square().mean(), list(network.encoder.parameters()), retain_graph=True)
            for one, network in ((found[task], model), (output, plain))
        )
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-4, atol=1e-5, msg=name)
