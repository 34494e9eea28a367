"""What `last` holds beside the weights, so that a run goes on bit-equal from any step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from compactmtl.config import Recipe
from compactmtl.runs.checkpoint import load_state, load_weights, save_checkpoint
from compactmtl.runs.identity import check_recipe_hash, recipe_hash
from compactmtl.train.random_state import random_state, restore_random_state
from compactmtl.train.session import Session
from compactmtl.verify.result import TaskMetrics


@dataclass
class Progress:
    """What the loop itself remembers; part of the checkpoint."""

    best_score: float = -math.inf
    best_epoch: int = 0
    best_metrics: TaskMetrics = field(default_factory=dict)
    stale: int = 0  # epochs since the best
    seconds: float = 0.0  # of all whole epochs, validation apart
    images: int = 0
    epoch_seconds: float = 0.0  # of the epoch in progress, as the two below
    epoch_images: int = 0
    sums: dict[str, float] = field(default_factory=dict)  # losses over steps
    epoch_replaced: int = 0  # of the epoch in progress: places of samples that could not be read
    replaced: int = 0  # of the run
    unread: dict[str, str] = field(default_factory=dict)  # those samples by name, with what is wrong


def save_last(session: Session, progress: Progress, folder: Path) -> None:
    """Write weights, session, progress and random generators as the checkpoint `folder`."""
    state = {
        "session": session.state_dict(),
        "progress": asdict(progress),
        "random": random_state(session.device),
        "recipe_hash": recipe_hash(session.recipe),
    }
    save_checkpoint(folder, session.weights(), state)


def read_last(recipe: Recipe, folder: Path) -> dict[str, Any] | None:
    """What `save_last` wrote beside the weights; None where the run was killed before its first checkpoint.

    Raises ArtifactError for a checkpoint that is damaged or of another recipe.
    """
    state = load_state(folder)
    if state is not None:
        check_recipe_hash(state, recipe, folder)
    return state


def restore(session: Session, progress: Progress, folder: Path, state: Mapping[str, Any]) -> None:
    """Put session, progress and random generators to where the checkpoint `folder`, of this `state`, was written.

    Raises ArtifactError where it does not fit the session.
    """
    load_weights(session.model, folder)
    session.load_state_dict(state["session"])
    for name, value in state["progress"].items():
        setattr(progress, name, value)
    restore_random_state(state["random"], session.device)
