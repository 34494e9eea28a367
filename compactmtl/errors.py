"""The errors that a user can cause and mend; every other exception is a bug."""

from __future__ import annotations

import shlex

OK = 0
BUG = 1
USAGE = 2
MISSING = 3
GATE = 4
INTERRUPTED = 130


def command(*words: object) -> str:
    """`compactmtl WORDS…` as a message shows it: quoted, so that a shell reads back the same words."""
    return shlex.join(["compactmtl", *map(str, words)])


class CompactError(Exception):
    """A failure with a mend: `message` says what is wrong and where, `hint` how to put it right."""

    exit_code = USAGE

    def __init__(self, message: str, hint: str = "", exit_code: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        if exit_code is not None:
            self.exit_code = exit_code

    def __str__(self) -> str:
        return f"{self.message}\n  {self.hint}" if self.hint else self.message


class ConfigError(CompactError):
    """A recipe, target, override or command line that cannot be used."""


class DataError(CompactError):
    """A data set that is missing, empty or damaged."""


class ArtifactError(CompactError):
    """A run, checkpoint, plan or bundle that is not what it should be."""


class SurgeryError(CompactError):
    """A model that cannot be traced or edited."""


class TrainingError(CompactError):
    """Training that cannot go on, such as a loss that is not finite."""


class MissingDependencyError(CompactError):
    """A package or device that the command needs and this machine lacks."""

    exit_code = MISSING


class GateError(CompactError):
    """A bound on accuracy, parity, latency or size that does not hold."""

    exit_code = GATE
