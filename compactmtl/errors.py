"""The errors that a user can cause and fix; every other exception is a bug."""

from __future__ import annotations

import errno
import shlex

OK = 0
BUG = 1
USAGE = 2
MISSING = 3
GATE = 4
INTERRUPTED = 130
BROKEN_PIPE = 141  # what a shell reports for a process that SIGPIPE ended

EXIT_CODES = {
    OK: "The command succeeded.",
    BUG: "The command failed because of a bug. The traceback is shown.",
    USAGE: "The command line, a recipe, a target, the data or a file cannot be used.",
    MISSING: "A package or device is missing, or the machine's memory is full.",
    GATE: "A gate failed: a bound on accuracy, parity, latency or size does not hold.",
    INTERRUPTED: "The command was interrupted, by Ctrl-C or SIGTERM. Training can be resumed with `--resume`.",
    BROKEN_PIPE: "The program that read the output, such as `head`, has ended.",
}


def command(*words: object) -> str:
    """`compactmtl WORDS…` as a message shows it: quoted, so that a shell reads back the same words."""
    return shlex.join(["compactmtl", *map(str, words)])


class CompactError(Exception):
    """A failure that the user can fix: `message` says what is wrong and where, `hint` how to fix it."""

    exit_code = USAGE
    second_hand = False  # of several processes: another one has the reason, and this one only follows

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
    """Training that cannot continue, for example because a loss is not finite."""


class MissingDependencyError(CompactError):
    """A package or device that the command needs and this machine lacks."""

    exit_code = MISSING


class MachineError(CompactError):
    """A machine that is out of memory, or that ended one of our processes."""

    exit_code = MISSING


class GateError(CompactError):
    """A bound on accuracy, parity, latency or size that does not hold."""

    exit_code = GATE


class HeldError(CompactError):
    """A run folder that another process is writing to."""


class CompactWarning(UserWarning):
    """What a user should know although the command continues."""


# What torch, ONNX Runtime and the system say. torch is not imported for it: the command line asks before it is loaded.
_DEVICE_FULL = ("CUDA out of memory", "CUDA error: out of memory", "STATUS_ALLOC_FAILED", "HIP out of memory")
_MEMORY_FULL = (
    "DefaultCPUAllocator",
    "not enough memory: you tried",
    "bad_alloc",
    "Failed to allocate memory",
)
_SHARED_FULL = ("</torch_", "shared memory object", "shared memory(shm)", "Bus error")
_WORKER_DIED = ("DataLoader worker (pid",)


def first_line(error: BaseException) -> str:
    """The first line of what an exception says, or its kind where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].strip()


def machine_fault(error: BaseException) -> MachineError | None:
    """The fault of the machine that an exception reports, with its fix; None where it reports none."""
    text = str(error)
    shown = next((line.strip() for line in reversed(text.splitlines()) if line.strip()), type(error).__name__)
    runtime = isinstance(error, RuntimeError)  # torch.OutOfMemoryError is one
    if runtime and any(word in text for word in _DEVICE_FULL):
        first = text[max(text.find("CUDA"), 0) :].split(". GPU")[0].splitlines()[0]
        return MachineError(
            f"the device's memory is full: {first}",
            "use a smaller batch or image, end other processes on the device, or use the CPU",
        )
    if runtime and any(word in text for word in _SHARED_FULL):
        return MachineError(
            f"the shared memory (/dev/shm) that loader processes pass batches through is full: {shown}",
            "set data.workers=0 or lower, use a smaller batch, or give the container more: `docker run --shm-size=8g`",
        )
    if runtime and any(word in text for word in _WORKER_DIED):
        return MachineError(
            f"a process that loads data died: {shown}",
            "the system ends processes when memory runs out: set data.workers lower; with data.workers=0 an error of "
            "the data set itself is shown",
        )
    full = isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
    if full or (runtime and any(word in text for word in _MEMORY_FULL)):
        return MachineError(
            f"the machine's memory is full: {shown}",
            "use a smaller batch or image, fewer data.workers or data.cache=none, or end other processes",
        )
    return None
