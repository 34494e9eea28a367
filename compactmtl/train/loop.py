"""The training loop: epochs of steps, validation, best and last checkpoint, and a clean stop.

Two runs of one recipe on one machine are bit-equal, and so is a run that was interrupted and resumed.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console

from compactmtl.artifacts.files import new_folder
from compactmtl.artifacts.hashes import write_hashed
from compactmtl.artifacts.layout import BEST, CHECKPOINTS, IMPORTANCE, IMPORTANCE_FILE, LAST
from compactmtl.artifacts.lock import writing
from compactmtl.artifacts.run_folder import check_folder
from compactmtl.artifacts.versions import resolve
from compactmtl.config import Resolved, trusting
from compactmtl.data.base import Batch
from compactmtl.distributed.agree import first_does, totals, wait
from compactmtl.distributed.processes import is_first
from compactmtl.errors import TrainingError
from compactmtl.runs.checkpoint import save_best
from compactmtl.runs.identity import recipe_hash
from compactmtl.runs.meta import versions
from compactmtl.runs.run import Run, check_same_recipe
from compactmtl.tasks import delta_m, mean_score
from compactmtl.train.alternating import DiagonalPass
from compactmtl.train.begin import begun, resumed
from compactmtl.train.bounds import TaskBounds, held_out
from compactmtl.train.competition import competition
from compactmtl.train.faults import explained
from compactmtl.train.interrupt import Interrupt, StopRequested, TrainingInterrupted
from compactmtl.train.machine import torch_settings
from compactmtl.train.mlflow_log import check_store
from compactmtl.train.norms import train_mode
from compactmtl.train.part import Position
from compactmtl.train.pseudo_labels import records
from compactmtl.train.resume import Progress, save_last
from compactmtl.train.session import Session
from compactmtl.train.together import EVERY, check_state, check_supported, prepare
from compactmtl.train.tracking import Tracker, failures_told_once
from compactmtl.train.unread import UnreadSamples
from compactmtl.train.validation import metrics_on_val, validated
from compactmtl.train.watch import LossWatch, NotFiniteError, check_weights
from compactmtl.verify.result import TaskMetrics

Watch = Callable[[int, float], None]  # is told each epoch and its score


def train(
    resolved: Resolved,
    run_dir: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    accept_changed_data: bool = False,
    console: Console | None = None,
    trust: bool = False,
    watch: Watch | None = None,
) -> Run:
    """Train a recipe into the folder `run_dir` and return the run.

    `resume` goes on with a run from its last checkpoint (from the start where there is none yet), `overwrite` replaces
    a run that is there. `accept_changed_data` goes on although the data set is not what it was at the start. `trust` lets
    a class be imported that the recipe names as its data set. `watch` is called after every epoch but the last, once its
    checkpoint is written, with the epoch and its score; what it raises ends the training, which can be resumed.

    Where `torch.distributed` is initialized, all its processes call this alike and train one network; each has its part of every
    batch of `data.batch_size` images, and the first one writes the run, in a folder that all can read.

    Raises ConfigError where the folder is taken, there is no run to resume or it is of another recipe; HeldError where
    another process is writing into the run; DataError where the data set has changed; TrainingError where a loss is
    not finite or processes drift apart; MachineError where the machine runs out of memory or loses a process; TrainingInterrupted (exit
    code 130) after Ctrl-C or SIGTERM with `last` saved; OSError naming the path where nothing can be written.
    """
    recipe, path = resolved.recipe, Path(run_dir)
    console = (console or Console()) if is_first() else Console(quiet=True)
    check_supported(recipe)
    if recipe.train.mlflow is not None:
        mlflow = recipe.train.mlflow
        first_does(
            lambda: check_store(mlflow)
        )  # before what takes minutes, and before the run's folder is made
    first_does(lambda: check_folder(path, resume=resume, overwrite=overwrite))
    if resume:
        check_same_recipe(path, recipe)
        if (run := Run.open(path)).finished:
            console.print(f"{path} is finished: nothing to resume", highlight=False, soft_wrap=True)
            return run
    with ExitStack() as held:

        def hold() -> None:
            held.enter_context(writing(path, "train"))
            check_folder(
                path, resume=resume, overwrite=overwrite
            )  # another process may have been here meanwhile

        first_does(hold)
        with trusting(trust), torch_settings(recipe), explained(recipe), failures_told_once():
            changed: list[str] | None = None
            if resume:
                session, progress, changed = resumed(recipe, Run.open(path), accept=accept_changed_data)
            else:
                session, progress = begun(resolved, path, overwrite=overwrite)
            lines = prepare(session)
            steps, done = session.total_steps, session.position.step
            tracker = Tracker(path, session.measured, steps, done, console, recipe, heard=is_first())
            with tracker, Interrupt() as interrupt:
                for line in lines:
                    tracker.say(line)
                Loop(session, progress, path, tracker, interrupt, watch).run(resumed=changed)
    return Run.open(path)


@dataclass
class Loop:
    """One sitting of a run, from its position to the end or to an interruption."""

    session: Session
    progress: Progress
    path: Path
    tracker: Tracker
    interrupt: Interrupt
    watch: Watch | None = None

    def __post_init__(self) -> None:
        self._unread = UnreadSamples(self.session, self.progress)

    def run(self, *, resumed: list[str] | None = None) -> None:
        """Train to the end; `resumed` is given where the run goes on: how its data changed since it began."""
        session, progress, tracker = self.session, self.progress, self.tracker
        check_state(session, thoroughly=True)
        if resumed is None:
            tracker.start(versions(), asdict(session.layout), records(session.data.taught))
            for line in (*session.data.notes, *session.layout.notes()):
                tracker.say(line)
            if session.sparsifier:
                tracker.groups(session.sparsifier.notes())
        else:
            tracker.resume(session.position.epoch, session.position.step, resumed)
        while not self._done():
            try:
                self._train_epoch()
                session.before_validation()
                metrics = self._validate()
            except StopRequested:
                raise self._stop() from None
            except NotFiniteError as error:
                raise self._not_finite(error) from error
            self._finish_epoch(metrics)
        if progress.best_epoch == 0:
            raise TrainingError(
                "no epoch had a finite score, so there is no best checkpoint",
                f"look at the metrics in {tracker.log.path}; lower train.optimizer.lr or set train.clip",
            )
        first_does(self._write_importance)
        val = first_does(self._val)
        if line := self._unread.line(of_run=True):
            tracker.say(line)
        tracker.end(
            progress.best_epoch,
            progress.best_metrics,
            val,
            progress.seconds,
            progress.images,
            self._unread.end(),
        )
        wait()

    def _done(self) -> bool:
        position, patience = self.session.position, self.session.recipe.train.patience
        if position.batch:  # in mid-epoch, or with its validation still to come
            return False
        return position.step >= self.session.total_steps or self.progress.stale >= (patience or math.inf)

    def _train_epoch(self) -> None:
        """The rest of the epoch's batches, after those of its pass 1 where it has one."""
        session, progress, position = self.session, self.progress, self.session.position
        if session.diagonals is not None:
            train_mode(session.model, session.recipe)
            self._train_diagonals(session.diagonals)
        names = [*session.tasks, *session.penalties, "total"]
        watch = LossWatch(names, session.device, progress.sums)
        train_mode(session.model, session.recipe)
        images, earlier, start = 0, progress.epoch_seconds, time.perf_counter()
        last = min(session.steps_per_epoch, position.batch + session.total_steps - position.step)
        for batch in session.batches(position.epoch, position.batch, last):
            self._unread.note(batch)
            losses, total = session.forward(batch)
            watch.note(position.step + 1, {**losses, **session.penalties, "total": total})
            session.update(total)
            stop, seen = self._agreed(batch)
            images += seen
            self.tracker.step(position.epoch, position.step, images / (time.perf_counter() - start))
            if position.step % EVERY == 0:
                check_state(session, thoroughly=False)
            if stop or position.step >= session.total_steps:
                break
        watch.look()
        check_weights(session.model, position.step)
        progress.sums = watch.sums
        progress.epoch_images += images
        progress.epoch_seconds = earlier + time.perf_counter() - start
        self._unread.join()
        self.interrupt.stop_where_asked()

    def _agreed(self, batch: Batch) -> tuple[bool, int]:
        """Whether any process was asked to stop, and the images of a batch on all of them."""
        asked, images = totals([float(self.interrupt.requested), len(batch["image"])])
        return asked > 0, int(images)

    def _train_diagonals(self, diagonals: DiagonalPass) -> None:
        """The rest of the epoch's pass 1, over the data in an order of its own; the rest of the model stays."""
        session, progress, epoch = self.session, self.progress, self.session.position.epoch
        first, images, start = diagonals.start(epoch), 0, time.perf_counter()
        watch = LossWatch(list(session.tasks), session.device, diagonals.sums)
        with diagonals.training():
            for batch in session.batches(-epoch, first, diagonals.steps_per_epoch):
                self._unread.note(batch)
                watch.note(diagonals.place.step + 1, diagonals.update(session, batch))
                stop, seen = self._agreed(batch)
                images += seen
                self.tracker.phase(epoch, "pass 1", diagonals.place.batch, diagonals.steps_per_epoch)
                if stop:
                    break
        watch.look()
        check_weights(session.model, session.position.step)
        diagonals.sums = watch.sums
        progress.epoch_images += images
        progress.epoch_seconds += time.perf_counter() - start
        self._unread.join()
        self.interrupt.stop_where_asked()

    def _validate(self) -> TaskMetrics:
        return validated(self.session, self.tracker, self.interrupt)

    def _write_importance(self) -> None:
        """What each channel is worth to each task, where a sparse run knows it: an artifact of the run, with its hash."""
        session, sparsifier = self.session, self.session.sparsifier
        if sparsifier is None:
            return
        if session.part(TaskBounds) is not None:
            sparsifier.steering.finished(held_out(session, Run.open(self.path).load_plain()))
        record = sparsifier.steering.record()
        if record is None:
            return
        with new_folder(self.path / IMPORTANCE) as folder:
            write_hashed(folder, {IMPORTANCE_FILE: (json.dumps(record) + "\n").encode()})
        bounds = record["bounds"]
        spent = {"each task's importance": record["seconds"], "held-out checks": bounds and bounds["seconds"]}
        whole = max(self.progress.seconds, 1e-9)
        shares = (f"{what} {seconds / whole:.1%}" for what, seconds in spent.items() if seconds is not None)
        self.tracker.say(f"of the training time: {', '.join(shares)}")
        if sparsifier.control.short:
            self.tracker.say(sparsifier.control.short)

    def _val(self) -> TaskMetrics:
        """The best checkpoint's metrics on val, as it is deployed; where another split chose it, measured once here."""
        if self.session.recipe.data.select_on == "val":
            return self.progress.best_metrics
        return metrics_on_val(self.session, Run.open(self.path), self.tracker)

    def _finish_epoch(self, metrics: TaskMetrics) -> None:
        """Score, checkpoint and log; then the next epoch is in progress."""
        session, progress, position = self.session, self.progress, self.session.position
        single = session.recipe.single_task
        gain = delta_m(metrics, single, session.measured) if single else None
        score = mean_score(metrics, session.measured) if gain is None else gain
        # before a sparse run has reached its target the best model would be the dense one
        eligible = session.eligible
        best = eligible and score > progress.best_score
        if best:
            progress.best_score, progress.best_epoch, progress.best_metrics = score, position.epoch, metrics
            summary = {
                "epoch": position.epoch,
                "step": position.step,
                "score": score,
                "metrics": metrics,
                "recipe_hash": recipe_hash(session.recipe),
            }
            if is_first():
                save_best(self.path / CHECKPOINTS / BEST, session.weights(session.deployed), summary)
        start = time.perf_counter()
        session.end_epoch()
        progress.epoch_seconds += time.perf_counter() - start
        for line in (line for part in session.parts for line in part.said()):
            self.tracker.say(line)
        progress.stale = 0 if best or not eligible else progress.stale + 1
        means = {name: value / position.batch for name, value in progress.sums.items()}
        values = {
            "epoch": position.epoch,
            "step": position.step,
            "seconds": progress.epoch_seconds,
            "lr": session.lr,
            "train": {
                "loss": means.pop("total"),
                "losses": {name: means[name] for name in session.tasks},
                "penalties": {name.removeprefix("penalty/"): means[name] for name in session.penalties},
            },
            "val": metrics,
            "score": score,
            "delta_m": gain,
            "sparsity": None,  # what no part reports
            "diagonals": None,
            "competition": competition(session),
            **self._unread.epoch(),
            **{part.logs: part.report() for part in session.parts if part.logs},
        }
        if line := self._unread.line(of_run=False):
            self.tracker.say(line)
        self.tracker.epoch(values, of=session.recipe.train.epochs, images=progress.epoch_images, best=best)
        progress.seconds += progress.epoch_seconds
        progress.images += progress.epoch_images
        progress.epoch_seconds, progress.epoch_images, progress.sums = 0.0, 0, {}
        progress.epoch_replaced = 0
        session.position = Position(position.epoch + 1, 0, position.step)
        self._save_last()
        if self.watch is not None and not self._done():
            self.watch(position.epoch, score)

    def _save_last(self) -> None:
        check_state(self.session, thoroughly=True)
        if is_first():
            save_last(self.session, self.progress, self.path / CHECKPOINTS / LAST)

    def _stop(self) -> TrainingInterrupted:
        self._save_last()
        position, last = self.session.position, self.path / CHECKPOINTS / LAST
        return TrainingInterrupted(
            f"interrupted in epoch {position.epoch} after step {position.step} of "
            f"{self.session.total_steps}; saved {last}",
            "give the same command with --resume to go on from there",
        )

    def _not_finite(self, error: NotFiniteError) -> TrainingError:
        last = self.path / CHECKPOINTS / LAST
        kept = (
            f"the last good checkpoint is {last}" if resolve(last).is_dir() else "there is no checkpoint yet"
        )
        return TrainingError(
            f"{error} (epoch {self.session.position.epoch}); {kept}",
            "lower train.optimizer.lr, set train.clip, lengthen train.schedule.warmup, or use train.autocast=off",
        )
