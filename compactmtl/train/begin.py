"""How a run begins: its folder, written by the first process, or the session as its last checkpoint left it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path

from compactmtl.artifacts.files import write_text
from compactmtl.artifacts.layout import CHECKPOINTS, DATA, LAST
from compactmtl.artifacts.run_folder import create_folder, update_meta, update_recipe
from compactmtl.config import Recipe, Resolved, dump_recipe
from compactmtl.data.base import VisionDataset
from compactmtl.distributed.agree import first_does
from compactmtl.models import MultiTaskModel
from compactmtl.runs.meta import CHANNELS_LAST, new_meta, specs_from_json
from compactmtl.runs.run import Run
from compactmtl.runs.teachers import dump_teachers, teacher_costs
from compactmtl.train.build import build_session
from compactmtl.train.label_teachers import LabelTeacher
from compactmtl.train.layout import Layout, choose, stated
from compactmtl.train.resume import Progress, read_last, restore
from compactmtl.train.same_data import check_data, dump_data, fingerprints
from compactmtl.train.session import Session
from compactmtl.train.sparse import table_of
from compactmtl.train.together import check_parts


def begun(resolved: Resolved, path: Path, *, overwrite: bool) -> tuple[Session, Progress]:
    """A session at its start, and the run's folder `path` with all that it has then."""
    session = build_session(resolved.recipe, layout=partial(_chosen, resolved.recipe))
    check_parts(session)
    first_does(lambda: _create(resolved, session, path, overwrite=overwrite))
    return session, Progress()


def _chosen(recipe: Recipe, model: MultiTaskModel, steps: int) -> Layout:
    """The memory layout of a new run: what the first process finds, so that no other times it meanwhile."""
    found = first_does(lambda: asdict(choose(recipe, model, steps)))
    seconds = found["seconds"]
    return Layout(found["channels_last"], found["origin"], None if seconds is None else tuple(seconds))


def _create(resolved: Resolved, session: Session, path: Path, *, overwrite: bool) -> None:
    """Write what a run's folder has at its start."""
    recipe = resolved.recipe
    labeling = {one.task: one.sha256 for one in session.data.taught}
    data = dump_data(fingerprints(recipe, session.data.splits), labeling)
    teachers = dump_teachers(teacher_costs(recipe))
    meta = new_meta(resolved, session.data.specs, teachers, session.layout.channels_last)
    create_folder(path, dump_recipe(recipe), meta, overwrite=overwrite, data=data)


def resumed(recipe: Recipe, run: Run, *, accept: bool) -> tuple[Session, Progress, list[str]]:
    """Session and progress where the run's last checkpoint left them, and how the data set has changed since."""
    layout = _layout_of(run, recipe)
    state = read_last(recipe, run.path / CHECKPOINTS / LAST)
    data, changed = "", [""]

    def check(datasets: Mapping[str, VisionDataset], teachers: Mapping[str, LabelTeacher]) -> None:
        """Before a changed teacher labels anything."""

        def look() -> tuple[str, list[str]]:
            splits = fingerprints(recipe, datasets)
            text = dump_data(splits, {task: one.sha256 for task, one in teachers.items()})
            return text, check_data(splits, datasets["train"].specs, teachers, run, accept=accept)

        nonlocal data, changed
        data, changed = first_does(look)

    session = build_session(
        recipe,
        specs_from_json(run.meta["specs"]),
        lambda model, steps: layout,
        None if state is None else table_of(state["session"]),
        opened=check,
    )
    check_parts(session)
    progress = Progress()
    if state is not None:
        restore(session, progress, run.path / CHECKPOINTS / LAST, state)

    def write() -> None:
        update_meta(run.path, {**run.meta, CHANNELS_LAST: layout.channels_last})
        update_recipe(run.path, dump_recipe(recipe))
        write_text(run.path / DATA, data)

    first_does(write)
    return session, progress, changed


def _layout_of(run: Run, recipe: Recipe) -> Layout:
    """The memory layout in which a run goes on: what the recipe says now, else the one that it was trained in."""
    if recipe.train.channels_last != "auto":
        return stated(recipe)
    before = run.recipe.train.channels_last
    return Layout(bool(run.meta.get(CHANNELS_LAST, False)) if before == "auto" else before, "run")
