"""Which channels serve which tasks, layer by layer, and which task paid for what was removed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from compactmtl.report.bars import Bar, BarChart, BarRow
from compactmtl.report.charts import COLORS, staircase
from compactmtl.report.model import RunView
from compactmtl.report.read import Importance, TaskLayer, TaskLoss
from compactmtl.report.table import MISSING, Cell, Row, Table
from compactmtl.sparsity.held_out import Loss

ALL = "all layers"


@dataclass(frozen=True)
class TaskChannels:
    """The drawings of a run's channels and tasks, the table of its bounds, and what knowing it cost."""

    serving: BarChart
    paid: BarChart | None  # none: nothing was removed
    bounds: Table | None
    checked: str  # of the bounds' checks, in words
    cost: str


def task_channels(run: RunView) -> TaskChannels | None:
    """Everything that is shown of a run's channels by task; none where training did not look at it."""
    known = run.importance
    if known is None or not known.layers:
        return None
    return TaskChannels(serving(known), paid(known), _bounds(known), _checked(known), _cost(run, known))


def serving(known: Importance) -> BarChart:
    """A row a layer, from the input: a column a channel, colored by the tasks that it serves; removed channels are empty."""
    tasks = known.tasks
    rows = []
    for layer in known.layers:
        columns = _columns(layer, tasks)
        heights = [[sum(column[: index + 1]) for column in columns] for index in range(len(tasks))]
        # the last task's area reaches up to 1, the others' are drawn over it
        areas = tuple((staircase(heights[index]), index % COLORS) for index in reversed(range(len(tasks))))
        kept = layer.channels - len(layer.removed)
        text = ("stays" if kept else "removed") if layer.branch else f"{kept} of {layer.channels}"
        rows.append(BarRow(layer.name, areas=areas, text=text))
    layers = [layer for layer in known.layers if not layer.branch]
    caption = (
        f"Which tasks the channels of each of {len(layers)} layers serve, from the input on: a column is a channel that stays,"
        " its colors are the tasks' shares in it, each task measured by what it has in all layers together; the empty part"
        f" of a row was removed. {_stay(layers)} channels stay"
    )
    if len(layers) < len(rows):
        branches = [layer for layer in known.layers if layer.branch]
        caption += f"; {_stay(branches)} residual branches stay"
        if any(layer.removed for layer in branches):
            caption += ", and the others took their layers with them"
    return BarChart(tasks, tuple(rows), caption, colors=True)


def _stay(layers: Sequence[TaskLayer]) -> str:
    whole = sum(layer.channels for layer in layers)
    return f"{whole - sum(len(layer.removed) for layer in layers)} of {whole}"


def _columns(layer: TaskLayer, tasks: tuple[str, ...]) -> list[list[float]]:
    """Each task's part of each channel that stays, ordered by the task that needs it most; then nothing for each removed."""
    removed = set(layer.removed)
    columns = []
    for channel in range(layer.channels):
        if channel in removed:
            continue
        values = [layer.shares[task][channel] for task in tasks]
        whole = sum(values)
        columns.append([value / whole if whole > 0 else 0.0 for value in values])
    columns.sort(key=lambda column: (column.index(max(column)), -max(column)))
    return columns + [[0.0] * len(tasks)] * len(removed)


def paid(known: Importance) -> BarChart | None:
    """The share of each task's importance that left with the channels of each layer, the costliest layer first."""
    costs = {
        layer.name: [sum(layer.shares[task][channel] for channel in layer.removed) for task in known.tasks]
        for layer in known.layers
        if layer.removed
    }
    if not costs:
        return None
    whole = [sum(cost[index] for cost in costs.values()) for index in range(len(known.tasks))]
    longest = max(max(whole), 1e-12)

    def row(name: str, values: list[float]) -> BarRow:
        return BarRow(name, tuple(Bar(value / longest, f"{100 * value:.2g} %") for value in values))

    ordered = sorted(costs, key=lambda name: -max(costs[name]))
    caption = (
        "Which task paid for what was removed: the share of each task's importance that its removed channels had when they"
        " were chosen to go, in all layers and in each, the costliest first"
    )
    return BarChart(
        known.tasks, (row(ALL, whole), *(row(name, costs[name]) for name in ordered)), caption, colors=True
    )


def _bounds(known: Importance) -> Table | None:
    """What each bounded task might lose, and what it had lost at the last check."""
    bounds = known.bounds
    if bounds is None or not bounds.checks:
        return None
    rows = []
    for task, most in bounds.most.items():
        cells = [Cell(f"{100 * most:g} %"), Cell(f"{bounds.reference[task]:.4g}")]
        cells += [_lost(loss, most) for loss in (bounds.checks[-1].losses[task], bounds.final.get(task))]
        rows.append(Row(task, tuple(cells)))
    columns = ("may lose", "reference", "lost at the last check", "lost in the deployed network")
    return Table(columns, tuple(rows), "What tasks may lose, and what they have lost")


def _lost(loss: TaskLoss | None, most: float) -> Cell:
    """A loss with its standard error; good where it is within the bound and that."""
    if loss is None:
        return MISSING
    if loss.share is None:  # it was measured, and what is no number holds no bound
        return Cell("no number", "bad")
    error = "" if loss.error is None else f"± {100 * loss.error:.2f} %"
    held = Loss(loss.share, loss.error).within(most)
    return Cell(f"{100 * loss.share:.2f} %", "good" if held else "bad", error)


def _checked(known: Importance) -> str:
    bounds = known.bounds
    if bounds is None or not bounds.checks:
        return ""
    last = bounds.checks[-1]
    back = f"was put back {_times(bounds.steps_back)}" if bounds.steps_back else "was never put back"
    return (
        f"Measured {_times(len(bounds.checks))} on the held-out part of train, last after step {last.step}; what had been"
        f" removed {back}. {100 * bounds.gone:.0f} % of what was asked is gone."
        " Green: within the bound and one standard error. The reference is the best value at a check before it, the first of the network before any channel"
        " went."
    )


def _times(count: int) -> str:
    return {1: "once", 2: "twice"}.get(count, f"{count} times")


def _cost(run: RunView, known: Importance) -> str:
    """Seconds of the looks and checks, and their share of the training time where that is known."""
    parts = [("Looking at each task", known.looks, known.seconds)]
    if known.bounds is not None:
        parts.append(("checking the bounds", len(known.bounds.checks), known.bounds.seconds))
    words = []
    for what, count, seconds in parts:
        share = f", {100 * seconds / run.seconds:.1f} % of the training time" if run.seconds else ""
        words.append(f"{what} {_times(count)} took {seconds:.1f} s{share}")
    return "; ".join(words) + "."
