"""An interruption of training at a step, as by Ctrl-C."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console
from torch import Tensor

from compactmtl.config import Resolved
from compactmtl.train import Run, TrainingInterrupted, train
from compactmtl.train.session import Session


def trained_in_two_parts(
    resolved: Resolved, path: Path, console: Console, steps: int, between: Callable[[], object] = lambda: None
) -> Run:
    """A run that was interrupted after so many optimizer steps, and resumed after `between`; fails where it was not
    interrupted.
    """
    update, calls = Session.update, 0

    def stop(self: Session, loss: Tensor) -> None:
        nonlocal calls
        update(self, loss)
        calls += 1
        if calls == steps:
            signal.raise_signal(signal.SIGINT)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Session, "update", stop)
        with pytest.raises(TrainingInterrupted):
            train(resolved, path, console=console)
    between()
    return train(resolved, path, resume=True, console=console)
