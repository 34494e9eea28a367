"""What a report reads of a run's files: surgery.json and the epoch lines of log.jsonl."""

from __future__ import annotations

import statistics
from typing import Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from compactmtl.verify.result import TaskMetrics


class Read(BaseModel):
    """Immutable; keys that this report doesn't show are passed over."""

    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True, ser_json_inf_nan="strings")


class Change(Read):
    """One number before and after surgery."""

    before: int
    after: int


class LayerChange(Read):
    """One layer's (out, in) channels and MACs before and after surgery."""

    name: str
    type: str
    before: tuple[int, int]
    after: tuple[int, int]
    macs: Change


class ProofCase(Read):
    """The masked model against the compact one on one input shape."""

    shape: tuple[int, ...]
    max_relative_error: float


class Proof(Read):
    """Largest relative error over all cases and the bound it was held to."""

    max_relative_error: float
    tolerance: float
    dtype: str
    cases: tuple[ProofCase, ...] = ()


class NotPruned(Read):
    """A layer that surgery leaves at its width, and why."""

    name: str
    reason: str


class Surgery(Read):
    """compact/surgery.json."""

    macs: Change
    parameters: Change
    layers: tuple[LayerChange, ...]
    proof: Proof
    not_pruned: tuple[NotPruned, ...] = Field(
        (),
        validation_alias=AliasChoices("not_pruned", "kept_whole"),  # files of earlier versions say kept_whole
    )
    seconds: float


class Sparsity(Read):
    """State of the channel groups at the end of an epoch."""

    groups_zero: float | None = None
    strength: float | None = None
    macs_removable: float | None = None
    parameters_removable: float | None = None
    layers: dict[str, float] = {}  # share of zero groups, by the layer that first writes them


class Competition(Read):
    """How the tasks' gradients lie to each other in each shared layer, and how their diagonals spread."""

    cosines: dict[str, dict[str, float]] = {}  # layer -> "task|task" -> cosine
    spread: dict[str, dict[str, float]] = {}  # layer -> task, "shared" or "between" -> standard deviation

    @property
    def pairs(self) -> tuple[str, ...]:
        """The pairs of tasks, in order."""
        return tuple(dict.fromkeys(pair for values in self.cosines.values() for pair in values))

    def mean_cosine(self, pair: str) -> float:
        """The mean over the layers."""
        return statistics.fmean(values[pair] for values in self.cosines.values() if pair in values)


class SourceNorms(Read):
    """The metrics with each data set's own statistics of batch norm, before they are folded."""

    own_statistics: TaskMetrics = {}


class TaskLayer(Read):
    """One layer's channels: which were removed, and each channel's share of each task's importance.

    A `branch` is a whole residual branch as one channel, beside the layers in it.
    """

    name: str
    branch: bool = False
    channels: int
    removed: tuple[int, ...]
    shares: dict[
        str, tuple[float, ...]
    ]  # task -> a share a channel; of removed ones as it was when they were chosen


class TaskLoss(Read):
    """What a task lost at a check, as a share of its reference (none: it had no number, or lost infinitely much), with one standard error
    (none: not known).
    """

    share: float | None
    error: float | None = None


class BoundCheck(Read):
    """One look at the held-out data: the share of the target that was gone, and whether all bounds held."""

    step: int
    share: float
    losses: dict[str, TaskLoss]
    held: bool


class TaskBounds(Read):
    """What tasks might lose, and what they lost at each check."""

    most: dict[str, float]
    reference: dict[str, float]
    checks: tuple[BoundCheck, ...]
    gone: float  # the share of the target that was gone when shrinking ended
    steps_back: int
    stopped: int | None = None
    seconds: float
    final: dict[str, TaskLoss] = {}  # of the network that is deployed


class Importance(Read):
    """importance/importance.json."""

    version: Literal[1]
    importance: str
    tasks: tuple[str, ...]
    looks: int
    seconds: float
    layers: tuple[TaskLayer, ...]
    bounds: TaskBounds | None = None


class TrainLosses(Read):
    """Mean weighted loss of an epoch and the single tasks' losses."""

    loss: float
    losses: dict[str, float] = {}


class Epoch(Read):
    """One `epoch` line of log.jsonl."""

    epoch: int
    step: int
    seconds: float
    lr: float
    train: TrainLosses
    val: TaskMetrics = {}
    score: float | None = None
    delta_m: float | None = None
    sparsity: Sparsity | None = None
    competition: Competition | None = None
    batch_norm: SourceNorms | None = None
