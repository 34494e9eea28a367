"""A worker of a search whose trainings are made up, for tests that start several of them as processes.

python -m tests.support.made_up_search SPACE.yaml OUT STORAGE TRIALS NAME [TRIAL SECONDS]

Everything but the training and its measures is the command's own. What a worker does it appends to OUT/told.txt: `begin`
and `end` with the trial's number and the worker's NAME. With TRIAL and SECONDS it takes so long over that trial.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from rich.console import Console

from compactmtl.config import Resolved, resolve_sweep
from compactmtl.sweep import search as search_module
from compactmtl.sweep.run import SweepRuns
from compactmtl.sweep.searching import open_search


def values_of(lr: float, clip: int) -> tuple[float, float]:
    """Two objectives, both to be small, that pull against each other: MACs and parameters as functions of the values."""
    return 1e6 * lr * (1 + (clip - 3) ** 2), 0.1 / lr * (1 + (clip - 2) ** 2)


def main() -> None:
    """One worker, from its first claim to the end of the search."""
    space, out, storage, trials, name, *slow = sys.argv[1:]
    told = Path(out) / "told.txt"
    held = {int(slow[0]): float(slow[1])} if slow else {}

    def tell(word: str, path: Path) -> int:
        number = int(path.parent.name.removeprefix("trial-"))
        with told.open("a") as file:
            file.write(f"{word} {number} {name}\n")
        return number

    def train(resolved: Resolved, path: Path, **_: Any) -> Any:
        number = tell("begin", path)
        time.sleep(held.get(number, 0.02))
        tell("end", path)
        return SimpleNamespace(recipe=resolved.recipe, path=path)

    def measured(objective: Any, run: Any, baseline: Any) -> float:
        train_config = run.recipe.train
        by_name = dict(
            zip(
                ("macs", "parameters"),
                values_of(train_config.optimizer.lr, int(train_config.clip)),
                strict=True,
            )
        )
        return by_name[objective.name]

    stand_ins: dict[str, Callable[..., object]] = {
        "train": train,
        "measured": measured,
        "finish": lambda *_: None,
        "wait_for": lambda count: time.sleep(0.1),
    }
    for word, stand_in in stand_ins.items():
        setattr(search_module, word, stand_in)
    sweep = resolve_sweep(space).sweep
    searching = open_search(sweep, "space", Path(out), storage, [], smoke=False, must_exist=False)
    failed = searching.run(SweepRuns(), int(trials), Console())
    assert failed == {}, failed


if __name__ == "__main__":
    main()
