"""Networks of the user's own: those that keep the rules train, and each broken rule is an error that names its mend."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from compactmtl.config import Resolved, resolve_recipe, trusting
from compactmtl.config.trust import UntrustedError
from compactmtl.errors import CompactError, ConfigError
from compactmtl.models import OwnModel
from compactmtl.train import build as build_module
from compactmtl.train.build import build_session
from compactmtl.train.faults import explained
from compactmtl.train.session import Session
from tests.support.own_networks import NETWORKS, RECIPE

Make = Callable[..., Resolved]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the user's module and a recipe."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "own_networks.py").write_text(NETWORKS)
    (folder / "recipe.yaml").write_text(RECIPE)
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))
    sys.modules.pop("own_networks", None)


@pytest.fixture
def make(place: Path) -> Make:
    """The recipe with overrides."""

    def made(*overrides: str, network: str = "Shown", tasks: Sequence[str] = ()) -> Resolved:
        words = [f"model.factory=own_networks:{network}", *overrides]
        return resolve_recipe(place / "recipe.yaml", words, tasks=tasks)

    return made


def session_of(resolved: Resolved) -> Session:
    with trusting():
        return build_session(resolved.recipe)


def step(session: Session) -> dict[str, Tensor]:
    """One step; the parameters by name."""
    session.model.train()
    session.train_loader.sampler.set_epoch(1)
    batch = next(iter(session.train_loader))
    _, total = session.forward(batch)
    session.update(total)
    return {name: value.detach().clone() for name, value in session.model.named_parameters()}


NAMED = (
    "model.outputs=[segmentation,depth]",
    "model.encoder_path=backbone",
    "model.head_paths.segmentation=decoder.seg",
    "model.head_paths.depth=decoder.z",
)
SELECTIVE = ("sparsity.selective.mac_reduction=0.4", "sparsity.selective.min_channels=4")


@pytest.mark.parametrize(
    ("network", "more"), [("Shown", ()), ("Named", NAMED), ("Closed", ()), ("Neck", ()), ("Twice", ())]
)
def test_a_network_trains(make: Make, network: str, more: Sequence[str]) -> None:
    session = session_of(make(*more, network=network))
    assert isinstance(session.model, OwnModel)
    before = {name: value.detach().clone() for name, value in session.model.named_parameters()}
    after = step(session)
    assert all(not torch.equal(after[name], value) for name, value in before.items() if value.ndim > 1)


@pytest.mark.slow  # of two sessions
@pytest.mark.parametrize(
    "more", [("balancing.name=upgrad", "balancing.at=features"), ("balancing.name=upgrad",)]
)
def test_gradients_meet_at_the_encoder(make: Make, more: Sequence[str]) -> None:
    """The network with its own names gives the same step as the one with ours."""
    ours, named = session_of(make(*more)), session_of(make(*more, *NAMED, network="Named"))
    one, other = step(ours), step(named)
    assert [value.shape for value in one.values()] == [value.shape for value in other.values()]
    for mine, theirs in zip(one.values(), other.values(), strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.slow  # of two sessions
@pytest.mark.parametrize(
    "more",
    [
        ("regularization.dgr.strength=0.1",),
        ("regularization.weight_gradient.strength=0.1",),
        ("regularization.pta.decoders=2",),
        ("train.optimizer.encoder_scale=0.5", "train.optimizer.layer_decay=0.9"),
        ("train.competition=1",),
        ("overparam.rank=full",),
        SELECTIVE,
    ],
    ids=lambda words: words[0].split("=")[0],
)
def test_what_needs_the_parts_works_under_any_name(make: Make, more: Sequence[str]) -> None:
    one, other = step(session_of(make(*more))), step(session_of(make(*more, *NAMED, network="Named")))
    for mine, theirs in zip(one.values(), other.values(), strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize(
    ("more", "key"),
    [
        (("balancing.name=upgrad", "balancing.at=features"), "balancing.name: upgrad"),
        (("regularization.dgr.strength=0.1",), "regularization.dgr"),
        (("train.optimizer.encoder_scale=0.5",), "train.optimizer.encoder_scale"),
        (("train.competition=1",), "train.competition"),
        (("overparam.rank=full",), "overparam.scope"),
        (SELECTIVE, "sparsity.scope"),
    ],
    ids=lambda words: words if isinstance(words, str) else "",
)
def test_what_needs_an_encoder_says_so(make: Make, more: Sequence[str], key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        session_of(make(*more, network="Closed"))
    assert key in caught.value.message
    assert "model.encoder_path" in caught.value.hint


@pytest.mark.parametrize(
    ("network", "more", "message", "hint"),
    [
        ("Neck", ("balancing.name=upgrad",), "neck.0.weight is in neither", "model.encoder_path"),
        ("Neck", ("regularization.dgr.strength=0.1",), "none of the encoder's features", "regularization.dgr"),
        ("Twice", ("balancing.name=upgrad", "balancing.at=features"), "calls it 2 times", "call the encoder once"),
        ("Changed", ("regularization.dgr.strength=0.1",), "changes what heads.segmentation gives", "the head give"),
        ("Shown", ("model.encoder_path=encodr",), "no submodule 'encodr'", "encoder"),
        ("Shown", ("model.head_paths.depth=heads.deph",), "no submodule 'heads.deph'", "heads.depth"),
        ("Named", ("model.outputs=[segmentation,depth]", "model.head_paths.depth=decoder.z"), "segmentation has no head", ""),
    ],
)  # fmt: skip
def test_parts_that_do_not_fit(
    make: Make, network: str, more: Sequence[str], message: str, hint: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        session_of(make(*more, network=network))
    assert message in caught.value.message
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("network", "message", "hint"),
    [
        ("Lists", "gives a list of 2", "model.outputs: [segmentation, depth]"),
        ("OtherNames", "no output 'segmentation': its outputs are seg, depth", "tasks.NAME.target"),
        ("Extra", "gives features, which is no task", "model.outputs=[segmentation,depth,features]"),
        ("Small", "shape (2, 11, 16, 24)", "F.interpolate"),
        ("Classes", "of int64", "raw outputs"),
        ("Unbatched", "shape (1, 11, 32, 48)", "batch"),
        ("Empty", "no parameters", "nn.ModuleList"),
        ("Frozen", "requires_grad is False", "requires_grad"),
        ("Detached", "'depth' depends on no parameter", "detach()"),
        ("Dropping", "the network draws random numbers in eval mode", "self.training"),
        ("Stubborn", "drop stays in training mode", "super().train(mode)"),
        ("Counting", "another one for the same images", "no counter"),
        ("TwoDevices", "more.weight on the meta device", "one real device"),
        ("PlainTensor", "network.offset is a plain tensor on meta", "register_buffer('offset'"),
        ("Unsaved", "offset is in no state_dict", "register_buffer"),
        ("Kept", "'depth' is network.map itself", "clone()"),
        ("Learned", "'depth' is the same whatever the images are", "argument of forward"),
        ("Changing", "another network at every call", "model.options"),
        ("Raises", "KeyError: 'normals'", "images (B, C, H, W)"),
        ("TrainsOtherwise", "gives a list of 2", "model.outputs"),
        ("same", "the same network at every call", "a new one"),
        ("built", "built already", "builds a new one"),
        ("number", "returned a int", "nn.Module"),
        ("fails", "KeyError: 'width'", "model.options"),
        ("Nothing", "own_networks has no Nothing", ""),
    ],
)
def test_a_broken_rule_names_itself_and_the_mend(make: Make, network: str, message: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        session_of(make(network=network))
    assert message in caught.value.message
    assert hint in caught.value.hint
    assert caught.value.exit_code == 2


def test_statistics_of_one_value_are_explained_as_in_training(make: Make) -> None:
    resolved = make(network="Pooled")
    with (
        pytest.raises(
            ConfigError, match=r"layer \S*norm normalizes by .* one value per channel \[2, 32, 1, 1\]"
        ),
        explained(resolved.recipe),
    ):
        session_of(resolved)


def test_a_broken_rule_moves_no_random_number(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    states: list[Tensor] = []

    def broken(*given: object) -> None:
        states.append(torch.get_rng_state())
        torch.rand(3)
        raise ConfigError("broken", "mend it")

    monkeypatch.setattr(build_module, "check_own", broken)
    with pytest.raises(ConfigError, match="broken"):
        session_of(make())
    assert torch.equal(torch.get_rng_state(), states[0])


def test_nothing_to_shrink(make: Make) -> None:
    with pytest.raises(ConfigError, match="no coupled channel groups"):
        session_of(make(*SELECTIVE, "sparsity.scope=model", network="NothingToShrink"))


def test_an_output_that_is_named_and_no_task_is_left_aside(make: Make) -> None:
    session = session_of(make("model.outputs=[segmentation,depth,features]", network="Extra"))
    (image,) = torch.randn(1, 1, 3, 32, 48)
    assert list(session.model(image)) == ["segmentation", "depth"]


def test_one_task_of_a_whole_network(make: Make) -> None:
    session = session_of(make(*NAMED[:2], network="Named", tasks=["depth"]))
    assert list(session.model(torch.randn(1, 3, 32, 48))) == ["depth"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.factory=own_networks"], "package.module:name"),
        (["model.options.widht=8"], "did you mean width?"),
        (["model.encoder.name=resnet18", "model.encoder.output_stride=8"], "leave one out"),
        (["tasks.depth.head.kind=fcn"], "tasks.depth.head: model.factory builds the heads"),
        (["model.head_paths.normals=heads.depth"], "names normals, which is no task"),
        (["overparam.per_task=true"], "overparam.per_task"),
        (["model.weights=nowhere.safetensors"], "there is no file"),
    ],
)
def test_a_recipe_that_cannot_be(make: Make, overrides: list[str], message: str) -> None:
    with pytest.raises(CompactError) as caught:
        session_of(make(*overrides))
    assert message in str(caught.value)


def test_no_code_runs_without_the_users_word(make: Make) -> None:
    with pytest.raises(UntrustedError, match=r"model.factory: own_networks:Shown is code"):
        build_session(make().recipe)


def test_weights_are_those_of_the_file(make: Make, tmp_path: Path) -> None:
    """Under the module's own names, and under those of a run's checkpoint."""
    first = session_of(make("seed=1")).model
    assert isinstance(first, OwnModel)
    for name, state in (("own.pth", first.network.state_dict()), ("run.pth", first.state_dict())):
        torch.save({"state_dict": dict(state)}, tmp_path / name)
        second = session_of(make(f"model.weights={tmp_path / name}")).model
        for key, value in first.state_dict().items():
            assert torch.equal(value, second.state_dict()[key])
    torch.save(dict(first.network.get_submodule("heads").state_dict()), tmp_path / "part.pth")
    with pytest.raises(CompactError, match=r"missing: network\.encoder"):
        session_of(make(f"model.weights={tmp_path / 'part.pth'}"))


def test_the_check_leaves_network_and_generators_alone(make: Make) -> None:
    """A session draws what it would draw without the check: the weights depend on the seed alone."""
    with trusting():
        torch.manual_seed(0)
        resolved = make()
        from compactmtl.runs.model import fresh_model

        session = build_session(resolved.recipe)
        state = torch.get_rng_state()
        torch.manual_seed(resolved.recipe.seed)
        expected = fresh_model(resolved.recipe, session.tasks)
    assert torch.equal(torch.get_rng_state(), state)
    for mine, theirs in zip(session.model.parameters(), expected.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_an_encoder_and_a_head_of_ones_own(place: Path) -> None:
    words = [
        "model={}",
        "model.encoder.name=own_networks:Encoder",
        "model.encoder.options.width=12",
        "tasks.depth.head.kind=own_networks:Pyramid",
        "tasks.depth.head.options.hidden=5",
        "train.optimizer.layer_decay=0.5",
    ]
    session = session_of(resolve_recipe(place / "recipe.yaml", words))
    step(session)
    outputs = session.model.eval()(torch.randn(2, 3, 32, 48))
    assert {name: tuple(one.shape) for name, one in outputs.items()} == {
        "segmentation": (2, 11, 32, 48),
        "depth": (2, 1, 32, 48),
    }
    assert (outputs["depth"] > 0).all()  # what the task puts behind a last layer
    rates = {group["lr"] for group in session.optimizer.param_groups}
    assert len(rates) > 2  # `attention` is a name like any other


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.encoder.name=own_networks:OneMap", "tasks.depth.head.kind=own_networks:Pyramid"], "gives one map"),
        (["model.encoder.name=own_networks:Encoder", "tasks.depth.head.kind=mtan"], "mtan"),
        (["model.encoder.name=own_networks:Encoder", "model.encoder.pretrained=true"], "pretrained"),
        (["tasks.depth.head.kind=own_networks:Pyramid", "tasks.depth.head.options.channels=3"], "compactmtl gives"),
        (["tasks.depth.head.kind=own_networks:Head"], "in_channels"),
        (["tasks.depth.head.kind=fcnn"], "did you mean"),
    ],
)  # fmt: skip
def test_parts_of_ones_own_that_do_not_fit(place: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(CompactError) as caught:
        session_of(resolve_recipe(place / "recipe.yaml", ["model={}", *overrides]))
    assert message in str(caught.value)
