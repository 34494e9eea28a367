"""What each task may lose, watched while a network shrinks: its primary metric on the held-out part of train."""

from __future__ import annotations

from compactmtl.data.base import Batch
from compactmtl.models import MultiTaskModel
from compactmtl.sparsity.held_out import PARTS, HeldOut
from compactmtl.train.part import Part, Setup, Training
from compactmtl.train.sparse import Sparsifier
from compactmtl.verify.accuracy import evaluate_parts, torch_runner


class TaskBounds(Part):
    """Measures the tasks when the sparsifier's control asks for it, and lets it judge.

    What is measured is the network in training, in eval mode and with its running statistics as they are; weights and
    random generators stay. It is without a state: that of the bounds is the sparsifier's.
    """

    def __init__(self) -> None:
        self._said: list[str] = []

    def after_step(self, training: Training, batch: Batch) -> None:
        sparsifier = training.part(Sparsifier)
        if sparsifier is None or not sparsifier.steering.check_due:
            return
        said = sparsifier.steering.judge(training.model, lambda: held_out(training))
        if said:
            self._said.append(said)

    def said(self) -> list[str]:
        said, self._said = self._said, []
        return said


def held_out(training: Training, model: MultiTaskModel | None = None) -> dict[str, HeldOut]:
    """Each task's primary metric on the held-out part of train, of the network as it is, or of another of its tasks."""
    device = next(training.model.parameters()).device
    model = training.model if model is None else model.to(device)
    whole, parts = evaluate_parts(torch_runner(model, device), training.held_out, training.tasks, PARTS)
    found = {}
    for name, task in training.tasks.items():
        metric = task.primary
        values = tuple(part[name][metric] if name in part else float("nan") for part in parts)
        better = task.metric_info[metric].higher_is_better
        found[name] = HeldOut(whole[name][metric], values, better)
    return found


def build_bounds(setup: Setup) -> TaskBounds | None:
    """The watch on the recipe's `sparsity.selective.losses`, or None where it has none."""
    config = setup.recipe.sparsity
    return TaskBounds() if config is not None and config.losses else None
