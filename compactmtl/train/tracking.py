"""The output of a run while it trains: log.jsonl, TensorBoard, MLflow, and a progress bar or plain lines."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter

from compactmtl.artifacts.files import append_line, write_text
from compactmtl.artifacts.layout import LOG, TENSORBOARD
from compactmtl.artifacts.run_folder import read_log
from compactmtl.config import Recipe
from compactmtl.tasks import Task
from compactmtl.train.interrupt import GivenUp, TrainingInterrupted
from compactmtl.train.mlflow_log import MlflowLog, scalars

PSEUDO_LABELS = "pseudo_labels"  # key of the event `start`
EVERY = 30.0  # seconds between lines of progress where there is no terminal


class EventLog:
    """log.jsonl: one event a line, durable before the next step. Only the process that is `heard` writes it."""

    def __init__(self, path: Path, *, heard: bool = True) -> None:
        self.path = path
        self._heard = heard

    def append(self, event: str, **values: Any) -> None:
        if not self._heard:
            return
        append_line(self.path, json.dumps({"event": event, **values}))

    def rewind(self, epochs: int) -> None:
        """Drop what was logged after `epochs` whole epochs: a resumed run writes it again."""
        if not self._heard:
            return
        kept = [
            event
            for event in read_log(self.path)
            if event["event"] != "end" and (event["event"] != "epoch" or event["epoch"] <= epochs)
        ]
        write_text(self.path, "".join(json.dumps(event) + "\n" for event in kept))


@contextmanager
def failures_told_once() -> Iterator[None]:
    """While entered, TensorBoard's thread that writes prints no traceback of its own: what it failed of, such as a full disk, is
    raised again where the next event is handed to it."""
    former = threading.excepthook

    def hook(failed: threading.ExceptHookArgs) -> None:
        if not type(failed.thread).__module__.startswith("tensorboard."):
            former(failed)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = former


class Tracker:
    """Sends every event to the log, TensorBoard, the console and, where the recipe says so, MLflow. A context manager.

    On a terminal it shows a progress bar and one line an epoch; elsewhere the lines, and one every half minute between.
    Of several processes the first is `heard`; the others' trackers write and show nothing.
    """

    def __init__(
        self,
        path: Path,
        tasks: Mapping[str, Task],
        steps: int,
        done: int,
        console: Console,
        recipe: Recipe | None = None,
        *,
        heard: bool = True,
    ) -> None:
        self.log = EventLog(path / LOG, heard=heard)
        self.console = console if heard else Console(quiet=True, force_terminal=False)
        self._tasks = tasks
        self._steps = steps
        self._writer = (
            SummaryWriter(path / TENSORBOARD, purge_step=done + 1 if done else None) if heard else None
        )
        self._bar: tuple[Progress, TaskID] | None = None
        self._first: tuple[int, float] | None = (
            None  # steps before the first of this sitting, and when it began
        )
        self._said = time.perf_counter()
        self._mlflow = None
        if heard and recipe is not None and recipe.train.mlflow is not None:
            self._mlflow = MlflowLog(recipe.train.mlflow, path, recipe, self.say)

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("steps"),
                TextColumn("{task.fields[speed]}"),
                TimeRemainingColumn(),
                console=self.console,
                transient=True,
            )
            self._bar = (progress, progress.add_task("", total=self._steps, speed=""))
            progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar[0].stop()
        if self._writer is not None:
            self._writer.close()
        if self._mlflow is not None:
            stopped = kind is not None and issubclass(kind, GivenUp | TrainingInterrupted | KeyboardInterrupt)
            self._mlflow.end("FINISHED" if kind is None else "KILLED" if stopped else "FAILED")

    def groups(self, notes: Sequence[str]) -> None:
        """What is to be known of a sparse recipe's channel groups."""
        self.log.append("groups", notes=list(notes))
        for note in notes:
            self.say(note)

    def say(self, line: str) -> None:
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def start(
        self, versions: Mapping[str, str], layout: Mapping[str, Any], taught: Sequence[Mapping[str, Any]] = ()
    ) -> None:
        """Log the start; `taught` are the tasks whose unlabeled images have a teacher, each with what came of it."""
        labels = {PSEUDO_LABELS: [dict(one) for one in taught]} if taught else {}
        self.log.append("start", **versions, layout=dict(layout), **labels)

    def resume(self, epoch: int, step: int, changed: Sequence[str] = ()) -> None:
        """Log that training goes on in `epoch` after `step` steps, on data that changed in what `changed` says."""
        self.log.rewind(epoch - 1)
        self.log.append(
            "resume", epoch=epoch, step=step, **({"data_changed": list(changed)} if changed else {})
        )
        for line in changed:
            self.say(f"the data set changed and is taken as it is: {line}")
        since = "" if step else ": the run had no checkpoint yet"
        self.say(f"resuming in epoch {epoch} after step {step} of {self._steps}{since}")

    def end(
        self,
        best_epoch: int,
        best: Mapping[str, Mapping[str, float]],
        val: Mapping[str, Mapping[str, float]],
        seconds: float,
        images: int,
        more: Mapping[str, Any] | None = None,
    ) -> None:
        """Log the end: the best epoch, its metrics where it was chosen and on val, seconds of training over all sittings, and `more`."""
        self.log.append("end", best_epoch=best_epoch, best=best, val=val, seconds=seconds, **(more or {}))
        self.say(f"trained {images} images in {seconds:.1f} s ({images / max(seconds, 1e-9):.0f} images/s)")
        parts = (
            f"{name} {format_metric(task, task.primary, best[name][task.primary])}"
            for name, task in self._tasks.items()
        )
        self.say(f"best epoch {best_epoch}: " + "  ".join(parts))

    def step(self, epoch: int, step: int, images_per_second: float) -> None:
        """Move the bar; where there is no terminal, say every half minute how far training is and how long it takes."""
        if self._bar:
            progress, task = self._bar
            progress.update(
                task, completed=step, description=f"epoch {epoch}", speed=f"{images_per_second:.0f} images/s"
            )
            return
        first, begun = self._first = self._first or (step - 1, time.perf_counter())
        seconds = (time.perf_counter() - begun) / max(step - first, 1)
        self._say_now_and_then(
            f"epoch {epoch}  step {step}/{self._steps}  {images_per_second:.0f} images/s  "
            f"{format_seconds(seconds * (self._steps - step))} left"
        )

    def phase(self, epoch: int, name: str, done: int, of: int) -> None:
        """As `step`, of a part of an epoch that makes no optimizer steps: `done` of `of` batches."""
        if self._bar:
            progress, task = self._bar
            progress.update(task, description=f"epoch {epoch}, {name}")
        else:
            self._say_now_and_then(f"epoch {epoch}  {name} {done}/{of}")

    def _say_now_and_then(self, line: str) -> None:
        now = time.perf_counter()
        if now - self._said >= EVERY:
            self._said = now
            self.say(line)

    def epoch(self, values: Mapping[str, Any], *, of: int, images: int, best: bool) -> None:
        """Log one epoch's event; `images` is how many were trained on in it."""
        self._said = time.perf_counter()
        self.log.append("epoch", **values)
        if self._writer is not None:
            for name, value in scalars(values):
                self._writer.add_scalar(name, value, values["step"])
            self._writer.flush()
        if self._mlflow is not None:
            self._mlflow.epochs()
        self.say(epoch_line(values, self._tasks, of=of, images=images, best=best))


def epoch_line(
    values: Mapping[str, Any], tasks: Mapping[str, Task], *, of: int, images: int, best: bool
) -> str:
    """One epoch in one line: loss, each task's primary metric, sparsity, speed."""
    parts = [f"epoch {values['epoch']:>{len(str(of))}}/{of}", f"loss {values['train']['loss']:.4g}"]
    for name, task in tasks.items():
        parts.append(f"{name} {format_metric(task, task.primary, values['val'][name][task.primary])}")
    if values["delta_m"] is not None:
        parts.append(f"Δm {values['delta_m']:+.2%}")
    if values["sparsity"] is not None and values["sparsity"]["macs_removable"] is None:
        parts.append(f"groups zero {values['sparsity']['groups_zero']:.1%}")
    elif values["sparsity"] is not None:
        parts.append(f"MACs removable {values['sparsity']['macs_removable']:.1%}")
    parts.append(f"{values['seconds']:.1f} s ({images / max(values['seconds'], 1e-9):.0f} images/s)")
    return "  ".join(parts) + ("  *" if best else "")


def format_metric(task: Task, metric: str, value: float) -> str:
    """One metric as people read it: a share as a percentage, else with its unit."""
    info = task.metric_info[metric]
    if info.share:
        return f"{metric} {value:.1%}"
    unit = info.unit if info.unit in ("", "°") else f" {info.unit}"
    return f"{metric} {value:.4g}{unit}"


def format_seconds(seconds: float) -> str:
    """A duration in its two largest units: 40 s, 12 min, 3 h 20 min, 2 d 4 h."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"
