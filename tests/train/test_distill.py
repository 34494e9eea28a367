"""Lessons of a teacher: nothing where student and teacher agree, and a gradient towards it where they do not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from compactmtl.config import Resolved
from compactmtl.config.recipe import TaskConfig
from compactmtl.errors import ArtifactError, ConfigError
from compactmtl.tasks import TargetSpec, build_task
from compactmtl.train import train
from compactmtl.train.build import build_session
from compactmtl.train.distill import Distiller, check_kinds, distillation_loss
from compactmtl.train.session import Session

Make = Callable[..., Resolved]


def spec(kind: str, **options: object) -> TargetSpec:
    return TargetSpec(**{"kind": kind, **options})  # type: ignore[arg-type]


def distiller_of(session: Session) -> Distiller:
    part = session.part(Distiller)
    assert part is not None
    return part


@pytest.mark.parametrize(
    ("kind", "target"),
    [
        ("classification", {"kind": "class", "classes": ("a", "b", "c")}),
        ("segmentation", {"kind": "mask", "classes": ("a", "b", "c")}),
        ("depth", {"kind": "depth"}),
        ("normals", {"kind": "normals"}),
    ],
)
def test_agreement_costs_nothing_and_descent_leads_to_the_teacher(
    kind: str, target: dict[str, object]
) -> None:
    task = build_task("one", TaskConfig(kind=kind), spec(**target))  # type: ignore[arg-type]
    shape = (2, task.channels, 4, 4) if task.dense else (2, task.channels)
    generator = torch.Generator().manual_seed(0)
    taught = torch.rand(shape, generator=generator) + 0.5
    student = (torch.rand(shape, generator=generator) + 0.5).requires_grad_()
    assert float(distillation_loss(task, taught, taught, 2.0)) == pytest.approx(0, abs=1e-6)
    first = distillation_loss(task, student, taught, 2.0)
    assert float(first.detach()) > 0
    optimizer = torch.optim.Adam([student], lr=0.02)
    for _ in range(30):
        optimizer.zero_grad()
        distillation_loss(task, student, taught, 2.0).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert float(distillation_loss(task, student, taught, 2.0).detach()) < 0.5 * float(first.detach())


def test_a_teacher_that_is_the_model_counts_from_its_start_and_is_resumed(tiny: Make, tmp_path: Path) -> None:
    recipe = tiny(
        "tasks.segmentation.head.dropout=0", more="\ndistillation: {start: 0.3, weight: 2.0}\n"
    ).recipe
    session = build_session(recipe)
    distiller = distiller_of(session)
    batch = next(iter(session.train_loader))
    _, total = session.forward(batch)
    assert distiller.state_dict()["self"] == {}
    session.update(total)
    session.position.step = 4  # of 12
    session.forward(batch)
    saved = distiller.state_dict()
    assert saved["self"].keys() == session.model.state_dict().keys()
    torch.save(saved, tmp_path / "teacher.pt")
    weights = {name: value.clone() for name, value in session.model.state_dict().items()}
    session.update(session.forward(batch)[1])
    loaded = torch.load(tmp_path / "teacher.pt", weights_only=True)
    for state in (loaded, loaded["self"]):  # the second as earlier versions saved it
        other = build_session(recipe)
        distiller_of(other).load_state_dict(other, state)
        other.model.load_state_dict(session.model.state_dict())
        other.position.step = session.position.step
        teacher = distiller_of(other)._own
        assert teacher is not None
        for name, value in teacher.network.state_dict().items():
            assert torch.equal(value, weights[name]), name
        session.model.eval()
        other.model.eval()
        mine, theirs = (one.forward_pass(batch).losses for one in (session, other))
        assert {name: v.item() for name, v in mine.items()} == {name: v.item() for name, v in theirs.items()}


@pytest.mark.slow
def test_a_run_is_a_teacher_and_must_not_change_on_the_way(
    tiny: Make, tmp_path: Path, quiet: Callable[[], object]
) -> None:
    teacher = tmp_path / "teacher" / "seed0"
    train(tiny("train.epochs=1"), teacher, console=quiet())  # type: ignore[arg-type]
    taught = tiny(f"distillation.teacher={tmp_path}/teacher/seed{{seed}}", "distillation.start=0")
    session = build_session(taught.recipe)
    batch = next(iter(session.train_loader))
    plain = build_session(tiny().recipe)
    assert float(session.forward(batch)[1].detach()) > float(plain.forward(batch)[1].detach())
    with pytest.raises(ConfigError, match="was trained on"):
        build_session(tiny(f"distillation.teacher={teacher}", "data.size=[48,48]").recipe)
    run = train(
        tiny(f"distillation.teacher={teacher}", "train.epochs=2", "train.max_steps=1"),
        tmp_path / "taught",
        console=quiet(),  # type: ignore[arg-type]
    )
    (cost,) = run.meta["teachers"]
    assert (cost["path"], cost["epochs"]) == (str(teacher), 1) and cost["seconds"] > 0
    state = distiller_of(session).state_dict()
    train(tiny("train.epochs=1", "seed=1"), teacher, overwrite=True, console=quiet())  # type: ignore[arg-type]
    other = build_session(taught.recipe)
    with pytest.raises(ArtifactError, match="the outputs' teacher are not those that this run began with"):
        distiller_of(other).load_state_dict(other, state)


def test_a_kind_whose_outputs_cannot_be_distilled_is_named_with_what_can_be_done() -> None:
    tasks = {"parts": build_task("parts", TaskConfig(kind="instances"), spec("instances", classes=("a",)))}
    with pytest.raises(ConfigError, match="task parts is of kind instances") as caught:
        check_kinds(tasks)
    assert "distillation.teacher: null" in caught.value.hint
