"""probe.json of a run: what fresh predictors made of its frozen encoder."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from compactmtl.artifacts.files import parse_json
from compactmtl.artifacts.layout import PROBE
from compactmtl.balancing.universality import LossGap
from compactmtl.runs.run import Run
from compactmtl.verify.probe import PREDICTORS, Predictor

VERSION = 1


@dataclass(frozen=True)
class Question:
    """What a probe asks, beside the checkpoint: the same question is answered from probe.json.

    `samples` are of the training split, all where none are given, in an order that `seed` shuffles; `dummies` are the
    dummy heads of the loss gap.
    """

    predictors: tuple[Predictor, ...] = PREDICTORS
    samples: int | None = None
    seed: int = 0
    dummies: int = 10

    def to_json(self, checkpoint: str) -> dict[str, Any]:
        """As probe.json has it; `checkpoint` is the SHA-256 of the weights."""
        return {
            "version": VERSION,
            "checkpoint": checkpoint,
            "predictors": list(self.predictors),
            "samples": self.samples,
            "seed": self.seed,
            "dummies": self.dummies,
        }


STANDARD = Question()


@dataclass(frozen=True)
class TaskProbe:
    """One task's results on val: `scores` by predictor in `metric`, and the loss gap where the head is linear."""

    metric: str
    scores: dict[str, float]
    gap: LossGap | None


@dataclass(frozen=True)
class Probe:
    """A run's results by task; `skipped` says why a task has none."""

    tasks: dict[str, TaskProbe]
    skipped: dict[str, str]
    samples: dict[str, int]  # by split


def to_json(probe: Probe) -> dict[str, Any]:
    """As probe.json has it."""
    values = asdict(probe)
    for name, task in probe.tasks.items():
        if task.gap is not None:
            values["tasks"][name]["gap"]["gap"] = task.gap.gap
    return values


def read_probe(run: Run) -> Probe | None:
    """What the run's probe.json says; None where there is none or it is damaged."""
    answer = read_answer(run.path / PROBE)
    return None if answer is None else answer[1]


def read_answer(path: Path) -> tuple[dict[str, Any], Probe] | None:
    """The question that probe.json answers, and the probe; None where there is none or it is damaged."""
    try:
        values = parse_json(path.read_text(encoding="utf-8"))
        tasks = {}
        for name, task in values["tasks"].items():
            gap = task["gap"] and LossGap(
                **{key: value for key, value in task["gap"].items() if key != "gap"}
            )
            tasks[name] = TaskProbe(task["metric"], task["scores"], gap)
        return values["question"], Probe(tasks, values["skipped"], values["samples"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None  # it is made anew
