"""Learning from features: the losses, what does not match, and that projections follow the network and stay behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from compactmtl.config import Resolved
from compactmtl.config.distillation import FeatureDistillationConfig
from compactmtl.errors import ConfigError
from compactmtl.runs.checkpoint import load_state
from compactmtl.train import Run, train
from compactmtl.train.build import build_session
from compactmtl.train.distill import Distiller
from compactmtl.train.mimic import Mimicry, Projection, relative_error, turned
from compactmtl.train.session import Session
from compactmtl.train.teacher import Teacher
from tests.support.interrupting import trained_in_two_parts

Make = Callable[..., Resolved]

SHRINKING = """
sparsity: {shrink_every: 1, selective: {mac_reduction: 0.4, start: 0.1, end: 0.5, every: 1, min_channels: 4}}
"""
OWN = "\ndistillation: {teacher: null, start: 0.1, features: {teacher: self}}\n"
PYRAMID = "\ntasks: {segmentation: {kind: segmentation, head: {kind: deeplabv3plus, width: 8}}}\n"


def distiller_of(session: Session) -> Distiller:
    part = session.part(Distiller)
    assert part is not None
    return part


def mimicry_of(session: Session) -> Mimicry:
    mimicry = distiller_of(session)._mimicry
    assert mimicry is not None
    return mimicry


def step(session: Session) -> float:
    session.model.train()
    _, total = session.forward(next(iter(session.train_loader)))
    value = float(session.penalties["penalty/features"].detach())
    session.update(total)
    return value


def steps(session: Session, epochs: int, *, shrink: bool) -> None:
    for number in range(1, epochs + 1):
        session.position.epoch = number
        session.train_loader.sampler.set_epoch(number)
        session.model.train()
        for batch in session.train_loader:
            session.update(session.forward(batch)[1])
        if shrink:
            session.end_epoch()


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of weights of another encoder of the tiny recipe's strides."""
    torch.manual_seed(7)
    path = tmp_path_factory.mktemp("weights") / "teacher.safetensors"
    network = timm.create_model("resnet10t", channels=[24, 24, 32, 40], stem_width=16, num_classes=0)
    save_file(network.state_dict(), path)
    return path


def encoder(weights: Path, more: str = "") -> str:
    options = "options: {channels: [24, 24, 32, 40], stem_width: 16}, output_stride: 16"
    return (
        "\ndistillation:\n  teacher: null\n  start: 0\n"
        f"  features: {{encoder: {{name: resnet10t, weights: {weights}, {options}}}{more}}}\n"
    )


@pytest.mark.parametrize("shape", [(3, 5), (3, 5, 2, 4)])
def test_the_losses_are_nothing_for_equal_features_and_of_a_scale_of_their_own(
    shape: tuple[int, ...],
) -> None:
    theirs = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    for loss in (relative_error, turned):
        assert float(loss(theirs, theirs)) == pytest.approx(0, abs=1e-6)
    assert float(relative_error(torch.zeros_like(theirs), theirs)) == pytest.approx(1)
    assert float(relative_error(300 * theirs + 1, 300 * theirs)) == pytest.approx(
        float(relative_error(theirs + 1 / 300, theirs)), rel=1e-4
    )
    assert float(turned(7 * theirs, theirs)) == pytest.approx(0, abs=1e-6)
    assert float(turned(-theirs, theirs)) == pytest.approx(4)
    cosine = torch.nn.functional.cosine_similarity(theirs.roll(1, 0), theirs, dim=1).mean()
    assert float(turned(theirs.roll(1, 0), theirs)) == pytest.approx(2 - 2 * float(cosine), rel=1e-5)


def test_a_projection_begins_as_the_identity_and_reads_what_is_left() -> None:
    torch.manual_seed(0)
    project, features = Projection(4, 4), torch.randn(2, 4, 3, 3)
    assert torch.equal(project(features), features)
    wide = Projection(4, 6)
    torch.nn.init.normal_(wide.bias)
    expected = torch.nn.functional.conv2d(features, wide.weight[:, :, None, None], wide.bias)
    assert torch.equal(wide(features), expected)
    features[:, 1] = 0
    whole = wide(features)
    wide.alive = torch.tensor([0, 2, 3])
    torch.testing.assert_close(wide(features[:, [0, 2, 3]]), whole)  # one term less, which is 0
    assert wide(features[:, [0, 2, 3]].mean((2, 3))).shape == (2, 6)


@pytest.mark.parametrize(
    ("ours", "theirs", "message"),
    [
        (
            [(1, 8, 4, 4)],
            [(1, 8, 8, 8), (1, 8, 4, 4)],
            r"gives 1 feature maps \(4×4\), the teacher 2 \(8×8, 4×4\)",
        ),
        ([(1, 8, 4, 6)], [(1, 8, 2, 3)], r"feature map 0 is 4×6 in the network and 2×3 in the teacher"),
        ([(1, 8)], [(1, 8, 4, 4)], "the network gives one vector an image, the teacher a feature map"),
    ],
)
def test_levels_that_do_not_match_are_named(
    ours: list[tuple[int, ...]], theirs: list[tuple[int, ...]], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        Mimicry(FeatureDistillationConfig(), ours, theirs)
    assert caught.value.hint


def test_the_last_level_alone_is_compared_where_it_is_asked_for() -> None:
    config = FeatureDistillationConfig(levels="last")
    mimicry = Mimicry(config, [(1, 2, 8, 8), (1, 4, 4, 4)], [(1, 9, 2, 2), (1, 3, 1, 1), (1, 6, 4, 4)])
    assert [tuple(one.state_dict()["weight"].shape) for one in mimicry.projections] == [(6, 4)]
    ours, theirs = (
        [torch.ones(1, 2, 8, 8), torch.ones(1, 4, 4, 4)],
        [torch.ones(1, 9, 2, 2), torch.zeros(1, 3, 1, 1), torch.ones(1, 6, 4, 4)],
    )
    assert float(mimicry.loss(ours, theirs).detach()) > 0


def test_sections_without_a_teacher_or_with_two_are_refused(tiny: Make) -> None:
    for more, message in (
        ("{teacher: null}", "there is no teacher"),
        ("{teacher: null, features: {}}", "there is no teacher"),
        ("{features: {teacher: self, encoder: {name: resnet18, pretrained: true}}}", "give one of the two"),
        ("{features: {encoder: {name: resnet18}}}", "random weights teaches nothing"),
        ("{features: {mean: [0, 0, 0]}}", "which is not given"),
    ):
        with pytest.raises(ConfigError, match=message):
            tiny(more=f"\ndistillation: {more}\n")
    with pytest.raises(ConfigError, match=r"overparam\.per_task"):
        tiny(more=OWN + "\noverparam: {kind: svd, per_task: true}\n")


@pytest.mark.slow  # a second
def test_the_networks_own_features_cost_nothing_at_first_and_then_hold_it_back(tiny: Make) -> None:
    session = build_session(tiny("tasks.segmentation.head.dropout=0", more=OWN).recipe)
    assert step(session) == 0.0  # before its start
    # the same network, in train mode here and in eval mode there: running statistics make the difference
    session.model.eval()
    batch = next(iter(session.train_loader))
    session.forward(batch)
    assert float(session.penalties["penalty/features"].detach()) == pytest.approx(0, abs=1e-6)
    for _ in range(3):
        step(session)
    session.model.eval()
    losses, total = session.forward(batch)
    feature = session.penalties["penalty/features"]
    assert float(feature.detach()) > 0
    assert float(total.detach()) == pytest.approx(float((sum(losses.values()) + feature).detach()), rel=1e-5)
    gradients = torch.autograd.grad(
        feature, [*session.model.encoder.parameters()], allow_unused=True, retain_graph=True
    )
    assert any(gradient is not None and bool(gradient.any()) for gradient in gradients)
    heads = torch.autograd.grad(feature, [*session.model.heads.parameters()], allow_unused=True)
    assert all(gradient is None for gradient in heads)


@pytest.mark.slow  # a second
def test_an_encoder_of_other_widths_teaches_and_the_projection_learns(tiny: Make, weights: Path) -> None:
    session = build_session(
        tiny(more=encoder(weights, ", mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5]")).recipe
    )
    plain = build_session(tiny().recipe)
    for name, value in plain.model.state_dict().items():  # the teacher draws nothing that the run would draw
        assert torch.equal(session.model.state_dict()[name], value), name
    before = mimicry_of(session).projections[0].state_dict()["weight"].clone()
    assert before.shape == (40, 32)
    values = [step(session) for _ in range(6)]
    assert values[-1] < values[0]
    assert not torch.equal(mimicry_of(session).projections[0].state_dict()["weight"], before)
    teacher = distiller_of(session)._others["features"]
    assert teacher is not None
    assert all(not p.requires_grad and p.grad is None for p in teacher.network.parameters())
    image = torch.rand(1, 3, 32, 48)
    data = session.recipe.data
    shown = (image - torch.tensor(data.mean).view(3, 1, 1)) / torch.tensor(data.std).view(3, 1, 1)
    with torch.no_grad():
        (expected,) = teacher.network((image - 0.5) / 0.5)
    # images normalized twice in float32
    torch.testing.assert_close(teacher.features(shown)[0], expected, rtol=1e-4, atol=1e-4)


def test_faults_of_a_teaching_encoder_are_told_by_its_own_key(tiny: Make, weights: Path) -> None:
    with pytest.raises(ConfigError, match=r"distillation\.features\.encoder\.weights: there is no file"):
        build_session(tiny(more=encoder(weights.with_name("none.safetensors"))).recipe)
    with pytest.raises(ConfigError, match="feature map 0 is 2×3 in the network and 1×2 in the teacher"):
        build_session(tiny("distillation.features.encoder.output_stride=null", more=encoder(weights)).recipe)


@pytest.mark.slow  # a second each
@pytest.mark.parametrize(
    "more",
    [
        "balancing: {name: pcgrad}",
        "balancing: {name: pcgrad, at: features}",
        "regularization: {sam: {rho: 0.05}}",
        "train: {autocast: bfloat16}",
    ],
)
def test_the_projection_is_trained_whatever_the_step_is_made_of(tiny: Make, weights: Path, more: str) -> None:
    session = build_session(tiny(more=f"{encoder(weights)}\n{more}\n").recipe)
    before = mimicry_of(session).projections[0].state_dict()["weight"].clone()
    assert step(session) > 0
    assert not torch.equal(mimicry_of(session).projections[0].state_dict()["weight"], before)


@pytest.mark.slow  # seconds
def test_one_teacher_of_outputs_and_features_is_asked_once(
    tiny: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = build_session(tiny(more="\ndistillation: {start: 0, features: {}}\n").recipe)
    asked, known = [], Teacher._known  # which every look at an image goes through

    def counted(self: Teacher, image: Tensor) -> Any:
        asked.append(self)
        return known(self, image)

    monkeypatch.setattr(Teacher, "_known", counted)
    step(session)
    assert len(asked) == 1
    with torch.no_grad():
        current = session.forward_pass(next(iter(session.train_loader)))
    assert current.taught is not None


@pytest.mark.slow  # seconds
def test_projections_follow_channels_that_are_removed(tiny: Make) -> None:
    own = "\ndistillation: {teacher: null, start: 0, features: {teacher: self}}\n"
    recipe = tiny(
        "tasks.segmentation.head.dropout=0",
        "train.epochs=4",
        "data.augment=null",
        more=SHRINKING + own + PYRAMID,
    ).recipe
    whole, small = build_session(recipe), build_session(recipe)
    steps(whole, 4, shrink=False)
    steps(small, 4, shrink=True)
    left, all_ = (
        sum(len(one.get_buffer("alive")) for one in mimicry_of(session).projections)
        for session in (small, whole)
    )
    assert left < all_
    whole.model.eval()
    small.model.eval()
    batch = next(iter(whole.train_loader))
    values = []
    for session in (whole, small):
        session.forward(batch)
        values.append(float(session.penalties["penalty/features"].detach()))
    # sixteen Adam steps on sums in another order
    assert values[0] > 0
    assert values[0] == pytest.approx(values[1], rel=2e-2)
    assert "projections" not in " ".join(small.weights())


@pytest.mark.slow  # trains twice
@pytest.mark.parametrize("more", [SHRINKING + PYRAMID, "\noverparam: {kind: svd, training: alternating}\n"])
def test_a_resumed_run_is_bit_equal_and_projections_are_in_last_alone(
    tiny: Make,
    tmp_path: Path,
    quiet: Callable[[], object],
    monkeypatch: pytest.MonkeyPatch,
    weights: Path,
    more: str,
) -> None:
    resolved = tiny("train.epochs=4", "train.ema={}", more=more + encoder(weights))
    run = train(resolved, tmp_path / "whole", console=quiet())  # type: ignore[arg-type]
    # in the last epoch, after channels went
    resumed = trained_in_two_parts(resolved, tmp_path / "parts", quiet(), 14)  # type: ignore[arg-type]
    kinds: tuple[Literal["last", "best"], ...] = ("last", "best")
    for kind in kinds:
        other = resumed.load_model(kind).state_dict()
        for name, value in run.load_model(kind).state_dict().items():
            assert "projection" not in name
            assert torch.equal(value, other[name]), name
    states = [load_state(one.path / "checkpoints" / "last") for one in (run, resumed)]
    mine, theirs = (state and state["session"]["distillation"]["projections"] for state in states)
    assert mine and theirs
    for name, value in mine.items():
        assert torch.equal(value, theirs[name]), name
    if more.startswith(SHRINKING):
        assert states[0] is not None and json.loads(states[0]["session"]["shrunk"])["slices"]
    events = [event["train"]["penalties"] for event in run.log() if event["event"] == "epoch"]
    assert all(event["features"] > 0 for event in events)
    assert Run.open(tmp_path / "parts").best == run.best
