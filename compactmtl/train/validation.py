"""Metrics while a run trains: of each epoch on the split that selects, and at its end on val."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from compactmtl.data import build_loader, load_dataset
from compactmtl.data.base import Batch
from compactmtl.data.inputs import Images
from compactmtl.data.loader import Loader
from compactmtl.distributed.processes import distributed
from compactmtl.errors import DataError
from compactmtl.runs.run import Run
from compactmtl.train.interrupt import Interrupt, StopRequested
from compactmtl.train.machine import pinned
from compactmtl.train.session import Session
from compactmtl.train.source_norms import SourceNorms, folding_line
from compactmtl.train.together import validates_in_parts
from compactmtl.train.tracking import Tracker
from compactmtl.verify.accuracy import ModuleRun, evaluate, torch_runner
from compactmtl.verify.result import TaskMetrics


def validated(session: Session, tracker: Tracker, interrupt: Interrupt) -> TaskMetrics:
    """The metrics of the network as it would be deployed, on the split that selects; the same on all processes.

    Raises StopRequested where this process, of several any, is asked to stop.
    """
    run, loader = torch_runner(session.deployed, session.device), session.select_loader
    if distributed():
        return _together(run, loader, session, interrupt)
    numbers = itertools.count()

    def interruptible(image: Images) -> Mapping[str, Tensor]:
        if interrupt.requested:
            raise StopRequested
        tracker.phase(session.position.epoch, "validation", next(numbers), len(loader))
        return run(image)

    norms = session.part(SourceNorms)
    with run.held():
        metrics = evaluate(interruptible, loader, session.tasks)
        if norms is not None:
            norms.measure(interruptible, loader, session.tasks)
            tracker.say(folding_line(metrics, norms.report()["own_statistics"], session.measured))
        return metrics


def _together(run: ModuleRun, loader: Loader, session: Session, interrupt: Interrupt) -> TaskMetrics:
    """The metrics of the whole split, of which each process evaluates its batches; all are asked whether to stop once."""
    if validates_in_parts(session):
        batches = _UntilAsked(loader, interrupt)
        return evaluate(run, batches, session.tasks, joined=interrupt.stop_where_asked)
    metrics = evaluate(run, loader, session.tasks)
    interrupt.stop_where_asked()
    return metrics


@dataclass(frozen=True)
class _UntilAsked:
    """Batches of a loader until this process is asked to stop."""

    loader: Loader
    interrupt: Interrupt

    @property
    def labeled_apart(self) -> frozenset[str]:
        """As the loader's."""
        return self.loader.labeled_apart

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.loader:
            if self.interrupt.requested:
                return
            yield batch


def metrics_on_val(session: Session, run: Run, tracker: Tracker) -> TaskMetrics:
    """The metrics on val of a finished run's network, as it is deployed; none, with the reason said, without such a split."""
    recipe = session.recipe
    try:
        dataset = load_dataset(recipe.data, "val")
        loader = build_loader(dataset, recipe.data, train=False, seed=recipe.seed, pin=pinned(recipe))
    except DataError as error:
        tracker.say(f"the val split was not measured: {error.message}")
        return {}
    return evaluate(torch_runner(run.load_plain().to(session.device), session.device), loader, session.tasks)
