"""Networks of several inputs: steps, parts and resuming, and an error for what the network does not take."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from compactmtl.cli.train import describe
from compactmtl.config import Resolved, resolve_recipe, trusting
from compactmtl.data.inputs import given, parts
from compactmtl.errors import CompactError, ConfigError
from compactmtl.models import OwnModel
from compactmtl.train import dry_run, train
from compactmtl.train.build import build_session
from compactmtl.train.session import Session
from tests.support.interrupting import trained_in_two_parts
from tests.support.own_inputs import MODULE, RECIPE

Make = Callable[..., Resolved]
FOCAL = ("tasks.kind=null", "model.outputs=[kind,focal]")  # the one of the tasks that mixes


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "own_inputs.py").write_text(MODULE)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(str(tmp_path))
    with trusting():
        yield tmp_path
    sys.modules.pop("own_inputs", None)


@pytest.fixture
def make(place: Path) -> Make:
    """The recipe with overrides."""
    return lambda *words: resolve_recipe(place / "recipe.yaml", words)


def stepped(session: Session) -> dict[str, torch.Tensor]:
    """The losses and penalties of one step."""
    session.model.train()
    session.train_loader.sampler.set_epoch(1)
    losses, total = session.forward(next(iter(session.train_loader)))
    found = {**losses, **session.penalties, "total": total}
    session.update(total)
    return {name: one.detach() for name, one in found.items()}


def test_the_forward_is_called_by_name(make: Make) -> None:
    session = build_session(make().recipe)
    assert isinstance(session.model, OwnModel)
    rgb, depth, camera = given(next(iter(session.select_loader)))
    network = session.model.network.eval()
    expected = network(camera=camera, depth=depth, rgb=rgb)
    found = session.model.eval()(rgb, depth, camera)
    assert list(found) == ["kind", "focal"]
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    # The names count, not the order.
    turned = {name: make().recipe.data.inputs[name] for name in ("camera", "rgb", "depth")}
    data = make().recipe.data.model_copy(update={"inputs": turned})
    other = build_session(make().recipe.model_copy(update={"data": data}))
    one, two = stepped(session), stepped(other)
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize(
    "words",
    [
        ["train.mixup=0.4", *FOCAL],
        ["regularization.input_gradient.strength=0.1"],
        ["regularization.weight_gradient.strength=0.1"],
        ["train.channels_last=true", "train.ema.decay=0.9"],
        ["distillation.teacher=self", "distillation.start=0"],
        ["data.augment.flip=true", "data.augment.rotate=10", "data.augment.color=0.3"],
        ["model.head_paths={kind: kind, focal: focal}", "balancing.name=upgrad", "model.encoder_path=encoder", "model.factory=own_inputs:Enclosed"],
        ["overparam={kind: svd, scope: model}", "sparsity=null"],
        ["sparsity.shrink_every=1", "train.autocast=bfloat16"],
    ],
    ids=lambda words: words[-1],
)  # fmt: skip
def test_parts_of_a_step_take_several_inputs(make: Make, words: list[str], place: Path) -> None:
    session = build_session(make(*words).recipe)
    found = stepped(session)
    assert all(bool(one.isfinite()) for one in found.values())
    session.end_epoch()


def test_mixup_mixes_every_input_in_one_share(make: Make) -> None:
    session = build_session(make("train.mixup=0.4", *FOCAL).recipe)
    batch = next(iter(session.train_loader))
    mixed = parts(session.forward_pass(batch).inputs)
    shares = set()
    for one, other in zip(mixed, given(batch), strict=True):
        # one = share * other + (1 - share) * other[order]: the mean over the batch stays
        torch.testing.assert_close(one.mean(0), other.mean(0), atol=1e-5, rtol=0)
        shares.add(torch.equal(one, other))
    assert shares == {False}


def test_a_penalty_on_gradients_is_of_all_inputs(make: Make) -> None:
    from compactmtl.balancing.penalties import input_gradient_penalty

    one, two = (torch.randn(4, 3, requires_grad=True) for _ in range(2))
    loss = (one**2).sum(1).mean() + (3 * two).sum(1).mean()
    expected = (2 * one / 4).square().sum() + 12 * (3 / 4) ** 2
    torch.testing.assert_close(input_gradient_penalty(loss, (one, two)), 4 * expected)


def test_a_dry_run_shows_every_input(make: Make) -> None:
    result = dry_run(make().recipe)
    assert result.inputs == {"rgb": (4, 3, 32, 48), "depth": (4, 1, 32, 48), "camera": (4, 3)}
    assert result.input == (4, 3, 32, 48)
    assert "rgb 4 × 3 × 32 × 48, depth 4 × 1 × 32 × 48, camera 4 × 3" in describe(result)


def test_a_run_goes_on_bit_equal(make: Make, place: Path) -> None:
    resolved = make("data.augment.flip=true", "data.augment.rotate=5", "train.channels_last=false")
    whole = train(resolved, place / "whole")
    again = trained_in_two_parts(resolved, place / "cut", Console(quiet=True), 4)  # in the second epoch
    one, other = (run.load_model().state_dict() for run in (whole, again))
    assert all(torch.equal(one[key], other[key]) for key in one)
    one, other = (load_file(run.path / "checkpoints/last/weights.safetensors") for run in (whole, again))
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model.factory=own_inputs:Picture"], r"the forward of the network takes image, and is called with rgb, depth, camera"),
        (["data.inputs.camera=null"], r"takes rgb, depth, camera, and is called with rgb, depth: missing a required argument: 'camera'"),
        (["data.inputs=null", "data.name=scenes"], r"takes rgb, depth, camera, and is called with the images alone"),
        (["model.factory=own_inputs:Half"], r"no output depends on the input 'depth' of data\.inputs"),
        (["data.inputs.depth.channels=3", "data.inputs.depth.mean=[0,0,0]", "data.inputs.depth.std=[1,1,1]"], r"input depth \(picture of 3\) is uint8 \(1, 32, 48\)"),
        (["distillation.features={encoder: {name: resnet18, pretrained: true}}"], r"distillation\.features\.encoder takes one picture"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_said_at_the_start(make: Make, words: list[str], message: str) -> None:
    if "data.name=scenes" in words:
        words = [*words, "tasks={segmentation: {kind: segmentation}}", "sparsity=null"]
        words.insert(0, "tasks.kind=null")
        words.insert(0, "tasks.focal=null")
    with pytest.raises(CompactError, match=message) as error:
        build_session(make(*words).recipe)
    assert error.value.exit_code == 2 and error.value.hint


def test_a_teacher_needs_the_same_inputs(make: Make, place: Path) -> None:
    train(make("train.epochs=1"), place / "runs/teacher")
    teach = f"distillation.teacher={place / 'runs/teacher'}"
    stepped(build_session(make(teach, "distillation.start=0").recipe))
    with pytest.raises(ConfigError, match=r"the teacher was trained with data\.inputs="):
        build_session(make(teach, "data.inputs.depth.mean=[0.4]").recipe)
