"""Convert a data set's files once: with a progress bar, in threads, resumable, and never leaving half a file."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from compactmtl.errors import INTERRUPTED, USAGE, CompactError, DataError


@dataclass(frozen=True)
class Job:
    """One sample to convert: `make` writes all `outputs`; where they are there already, there is nothing to do."""

    outputs: tuple[Path, ...]
    make: Callable[[], None]


@dataclass(frozen=True)
class Outcome:
    """How many samples were made, how many were there before, and what is wrong with those that cannot be made."""

    made: int
    skipped: int
    faults: tuple[str, ...]


def convert(jobs: Sequence[Job], title: str) -> Outcome:
    """Do the jobs that are not done, in threads; a damaged file is reported and the others go on.

    Interrupted, it can be started again and goes on where it was.
    """
    todo = [job for job in jobs if not all(path.is_file() for path in job.outputs)]
    faults: list[str] = []
    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    pool = ThreadPoolExecutor(min(os.cpu_count() or 1, 8))
    try:
        with Progress(*columns, console=Console(stderr=True)) as progress:
            line = progress.add_task(title, total=len(jobs), completed=len(jobs) - len(todo))
            for done in as_completed([pool.submit(job.make) for job in todo]):
                try:
                    done.result()
                except DataError as error:
                    faults.append(error.message)
                progress.advance(line)
    finally:
        pool.shutdown(cancel_futures=True)
    return Outcome(len(todo) - len(faults), len(jobs) - len(todo), tuple(sorted(faults)))


def run_tool(work: Callable[[], int]) -> int:
    """The exit code of a tool's work; what goes wrong with its files is reported in a line."""
    try:
        return work()
    except CompactError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:  # a full disk, a folder that may not be written
        print(f"error: {error}", file=sys.stderr)
        return USAGE
    except KeyboardInterrupt:
        print("interrupted; run it again to go on", file=sys.stderr)
        return INTERRUPTED


def save_png(path: Path, pixels: NDArray[np.uint8] | NDArray[np.uint16]) -> None:
    """Write an image, whole or not at all: under another name first, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        Image.fromarray(np.ascontiguousarray(pixels)).save(temporary, format="PNG")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def copy_file(source: Path, target: Path) -> None:
    """Copy a file, whole or not at all. Raises DataError where the source cannot be read."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        content = source.read_bytes()
    except OSError as error:
        raise DataError(f"{source}: cannot be read ({error.strerror})", "fetch it again") from error
    try:
        temporary.write_bytes(content)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
