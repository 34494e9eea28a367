"""A recipe's training, a fit of the recipe, and a loop written by hand around Shrinking give the same zeros and weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from compactmtl.artifacts.layout import PLAN
from compactmtl.backends import surgery_align
from compactmtl.config import Recipe, resolve_recipe
from compactmtl.data import build_loader, load_dataset
from compactmtl.data.base import Batch
from compactmtl.data.images import normalize
from compactmtl.fit import fit, plan_road, stages
from compactmtl.loops import Shrinking
from compactmtl.models import MultiTaskModel, build_model
from compactmtl.runs import Run
from compactmtl.sparsity import channel_groups
from compactmtl.surgery import CompactResult, Plan, compact
from compactmtl.tasks import build_tasks
from compactmtl.train.build import build_session
from compactmtl.train.optimizers import rate
from compactmtl.train.sparse import Sparsifier
from tests.loops.nets import backward

pytestmark = pytest.mark.slow  # seconds

RECIPE = """
data: {name: scenes, size: [32, 48], batch_size: 4, options: {train: 14, val: 4}}
tasks:
  segmentation: {kind: segmentation, head: {kind: fcn, width: 8, dropout: 0}}
  depth: {kind: depth, head: {kind: fcn, width: 8, dropout: 0}}
model:
  encoder: {name: resnet10t, options: {channels: [16, 16, 24, 32], stem_width: 16}, output_stride: 16}
train: {epochs: 4, clip: 1.0, optimizer: {lr: 2e-3, weight_decay: 0.05}}
surgery: {align: 4}
sparsity: SECTION
"""
SELECTIVE = {"start": 0.1, "end": 0.6, "every": 1, "min_channels": 4}
WAYS: dict[str, dict[str, Any]] = {
    "selective": {"mac_reduction": 0.4, **SELECTIVE},
    "controller": {"mac_reduction": 0.3, "method": "controller", "end": 0.5, "every": 1, "min_channels": 4},
    "magnitude": {"parameter_reduction": 0.4, "method": "magnitude", "at": 0.5, "min_channels": 4},
    "strength": {"strength": 0.05},
    "selective, shrinking": {"mac_reduction": 0.4, "shrink_every": 1, **SELECTIVE},
    "controller, shrinking": {
        "mac_reduction": 0.3,
        "method": "controller",
        "end": 0.5,
        "every": 1,
        "min_channels": 4,
        "shrink_every": 1,
    },
}


@pytest.fixture(autouse=True)
def _float64(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Recipes train in float32: here their models are built in float64, and loaders give images as that."""
    monkeypatch.setattr("compactmtl.data.loader.normalize", lambda *args: normalize(*args).double())
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def section(arguments: dict[str, Any]) -> str:
    """The section of a recipe that says what Shrinking's arguments say."""
    top = {key: arguments[key] for key in ("strength", "shrink_every") if key in arguments}
    rest = {key: value for key, value in arguments.items() if key not in top}
    method = rest.pop("method", "selective")
    if method == "magnitude":
        rest["method"], method = method, "prune"
    return str(top if "strength" in top else {**top, method: rest}).replace("'", "")


def by_recipe(recipe: Recipe) -> tuple[MultiTaskModel, CompactResult]:
    session = build_session(recipe)
    for epoch in range(1, recipe.train.epochs + 1):
        session.position.epoch = epoch
        session.model.train()
        for batch in session.batches(epoch, 0, session.steps_per_epoch):
            _, total = session.forward(batch)
            session.update(total)
        session.end_epoch()
    assert session.eligible and isinstance(session.sparsifier, Sparsifier)
    whole = build_model(recipe, session.tasks)
    whole.load_state_dict(dict(session.weights()))
    (align,) = {session.sparsifier.steering.align.channels}  # type: ignore[attr-defined]
    return session.model, compact(whole, (torch.zeros(1, 3, *recipe.data.size),), align=align)


class Stopped(Exception):
    """Ends a fit before its export, whose runtimes take float32."""


def by_fit(
    path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[MultiTaskModel, Plan, CompactResult]:
    """The last weights of `fit`, whole; the plan of its compact model; and the last weights made compact."""

    def stop(*args: Any, **kwargs: Any) -> None:
        raise Stopped

    monkeypatch.setattr(stages, "export_run", stop)
    # Else the memory layout is what is quicker on the day, and sums are taken in its order.
    road = plan_road(str(path), ["train.channels_last=false"], out=out, dense=False)
    with pytest.raises(Stopped):
        fit(road)
    run = Run.open(road.run)
    assert run.finished and run.has_compact
    model, plan = run.load_plain("last"), Plan.load(run.compact_folder / PLAN)
    return model, plan, compact(model, run.example_inputs(), align=surgery_align(run.recipe).channels)


def by_hand(recipe: Recipe, arguments: dict[str, Any]) -> tuple[nn.Module, CompactResult]:
    data = load_dataset(recipe.data, "train")
    batches = build_loader(data, recipe.data, train=True, seed=recipe.seed)
    tasks = build_tasks(recipe.tasks, data.specs)
    steps = recipe.train.epochs * len(batches)
    torch.manual_seed(recipe.seed)
    model = build_model(recipe, tasks)
    image = torch.zeros(1, 3, *recipe.data.size)
    shrunk = frozenset[str]()  # weight decay would shrink them twice
    if arguments.keys() & {"strength"} or arguments.get("method") == "controller":
        shrunk = channel_groups(model, image).parameter_names
    decayed = [p for name, p in model.named_parameters() if p.ndim > 1 and name not in shrunk]
    others = [p for p in model.parameters() if all(p is not one for one in decayed)]
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(
        groups,
        lr=recipe.train.optimizer.lr,
        betas=recipe.train.optimizer.betas,
        weight_decay=recipe.train.optimizer.weight_decay,
        fused=True,
    )
    schedule = LambdaLR(optimizer, lambda step: rate(recipe.train.schedule, step, steps))
    shrinking = Shrinking(model, optimizer, image, total_steps=steps, scope="encoder", align=4, **arguments)

    def loss(batch: Batch) -> Tensor:
        outputs = model(batch["image"])
        losses = [task.loss(outputs[name], batch["targets"][task.target]) for name, task in tasks.items()]
        return torch.stack(losses).sum()

    for epoch in range(1, recipe.train.epochs + 1):
        batches.sampler.set_epoch(epoch)
        model.train()
        for batch in batches:
            optimizer.zero_grad()
            backward(loss(batch))
            shrinking.observe()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            shrinking.step()
            schedule.step()
        shrinking.end_epoch()
    return model, shrinking.finish()


def assert_same(found: CompactResult, expected: CompactResult) -> None:
    """The same channels are gone, and what is left computes with the same weights."""
    assert found.plan == expected.plan and found.plan.slices
    assert found.report.mac_reduction == expected.report.mac_reduction > 0
    compacted = found.model.state_dict()
    for name, tensor in expected.model.state_dict().items():
        torch.testing.assert_close(compacted[name], tensor, rtol=0, atol=1e-9)


@pytest.mark.parametrize("way", WAYS)
def test_the_same_zeros_and_weights(way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.replace("SECTION", section(WAYS[way])))
    recipe = resolve_recipe(path).recipe
    theirs, expected = by_recipe(recipe)
    ours, found = by_hand(recipe, WAYS[way])
    parameters = dict(ours.named_parameters())
    zeros = 0
    for name, value in theirs.named_parameters():
        assert torch.equal(value == 0, parameters[name] == 0), name
        torch.testing.assert_close(parameters[name], value, rtol=0, atol=1e-9)
        zeros += int((value == 0).sum())
    assert zeros or "shrinking" in way
    buffers = dict(ours.named_buffers())
    for name, buffer in theirs.named_buffers():
        torch.testing.assert_close(buffers[name], buffer, rtol=0, atol=1e-9)
    assert_same(found, expected)
    if "strength" in WAYS[way]:  # a λ alone is no budget, which a fit has
        return
    fitted, plan, of_fit = by_fit(path, tmp_path / "runs", monkeypatch)
    assert_same(of_fit, expected)
    assert plan.slices == expected.plan.slices  # of the best epoch, when the channels were settled
    if "shrinking" in way:  # the others' networks are small ones by now
        return
    for name, value in fitted.state_dict().items():
        assert torch.equal(value == 0, theirs.state_dict()[name] == 0), name
        torch.testing.assert_close(theirs.state_dict()[name], value, rtol=0, atol=1e-9)
