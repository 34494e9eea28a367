"""Whether memory, file handles and threads stay where they are over a long run.

    python -m tools.soak                                  # 1,000 steps, then 200 cycles of compact and export
    python -m tools.soak --steps 1000 --cycles 0          # one of the two alone
    python -m tools.soak --cycles 40 --out soak.json

Trains a tiny network of two tasks on rendered rooms, with factors, shrinking, validation and a checkpoint every ten steps, and
then compacts and exports that run again and again, all in this process. After every tenth step and every cycle it reads the
process's resident memory, open files and threads. Linux alone: they are read from /proc.

The first quarter warms caches up. Memory grows by the difference between the medians of the last quarter and of the second one; exit
code 1 where that is more than `--most` MiB, or where files or threads are more at the end than after the first quarter.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

RECIPE = """
data: {{name: scenes, size: [32, 48], batch_size: 4, workers: {workers}, options: {{train: 40, val: 4}}}}
tasks:
  segmentation: {{kind: segmentation, head: {{kind: fcn, width: 8, dropout: 0.2}}}}
  depth: {{kind: depth, head: {{kind: fcn, width: 8}}}}
model:
  encoder: {{name: resnet10t, options: {{channels: [16, 16, 24, 32], stem_width: 16}}, output_stride: 16}}
overparam: {{kind: svd}}
sparsity:
  selective: {{mac_reduction: 0.3, start: 0.1, end: 0.6, every: 10, min_channels: 4}}
train: {{epochs: {epochs}, optimizer: {{lr: 2e-3}}, threads: 1}}
surgery: {{align: 4}}
"""
STEPS_AN_EPOCH = 10
TARGET = """
backend: onnxruntime
latency: {warmup: 1, repeats: 3}
"""
MOST = 16.0  # MiB between the medians of two quarters: what allocators leave lying about, and no more


@dataclass(frozen=True)
class Look:
    """What a process holds at one moment."""

    megabytes: float  # MiB resident
    files: int
    threads: int


@dataclass(frozen=True)
class Course:
    """How that went over one kind of work: medians of memory in each quarter, and files and threads after the first and at the end."""

    work: str
    count: int
    seconds: float
    quarters: tuple[float, float, float, float]
    files: tuple[int, int]
    threads: tuple[int, int]
    open_at_end: tuple[str, ...] = ()  # the files, where they became more

    @property
    def growth(self) -> float:
        """MiB between the medians of the second and the last quarter."""
        return self.quarters[3] - self.quarters[1]

    def faults(self, most: float) -> list[str]:
        """What grew, in words."""
        found = []
        if self.growth > most:
            each = 1024 * self.growth / (self.count / 2)
            found.append(
                f"{self.work}: memory grew by {self.growth:.1f} MiB over half of {self.count}, {each:.0f} KiB for each"
            )
        for what, (first, last) in (("open files", self.files), ("threads", self.threads)):
            if last > first:
                found.append(f"{self.work}: {what} were {first} and became {last}")
        return found

    def line(self) -> str:
        """For people."""
        memory = " ".join(f"{one:.1f}" for one in self.quarters)
        return (
            f"{self.work}: {self.count} in {self.seconds:.0f} s; resident MiB by quarter {memory} (growth {self.growth:+.1f}); "
            f"open files {self.files[0]} -> {self.files[1]}; threads {self.threads[0]} -> {self.threads[1]}"
        )


def look() -> Look:
    """This process now, after what is garbage is gone."""
    gc.collect()
    with suppress(
        OSError, AttributeError
    ):  # glibc's alone: gives free pages back, which else look like a leak
        ctypes.CDLL(None).malloc_trim(0)
    resident = int(Path("/proc/self/statm").read_text().split()[1])
    return Look(
        resident * os.sysconf("SC_PAGE_SIZE") / 2**20,
        len(list(Path("/proc/self/fd").iterdir())),
        len(list(Path("/proc/self/task").iterdir())),
    )


def course(work: str, count: int, seconds: float, looks: Sequence[Look]) -> Course:
    """What looks, of which there are four or more, at even distances come to."""
    bounds = [len(looks) * part // 4 for part in range(5)]
    parts = [looks[first:last] for first, last in itertools.pairwise(bounds)]
    first, second, third, fourth = (statistics.median(one.megabytes for one in part) for part in parts)
    settled, end = parts[1], looks[-1]
    files = (max(one.files for one in settled), end.files)
    threads = (max(one.threads for one in settled), end.threads)
    return Course(
        work,
        count,
        seconds,
        (first, second, third, fourth),
        files,
        threads,
        _open() if files[1] > files[0] else (),
    )


def _open() -> tuple[str, ...]:
    names = []
    for one in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # the listing's own is closed by now
            names.append(str(one.readlink()))
    return tuple(sorted(names))


def train_long(folder: Path, steps: int, workers: int = 0) -> Course:
    """Train `steps` steps, a multiple of 10, into the run `folder`; every look is while it trains, with the files of its work open."""
    from rich.console import Console

    from compactmtl.config import resolve_recipe
    from compactmtl.train import train

    recipe = folder.with_suffix(".yaml")
    recipe.write_text(RECIPE.format(epochs=steps // STEPS_AN_EPOCH, workers=workers))
    looks: list[Look] = []
    start = time.perf_counter()
    train(
        resolve_recipe(recipe),
        folder,
        console=Console(quiet=True),
        watch=lambda epoch, score: looks.append(look()),
    )
    return course("steps of training", steps, time.perf_counter() - start, looks)


def cycles(folder: Path, count: int, told: Callable[[str], None] = lambda line: None) -> Course:
    """Compact and export the run `folder` so many times, each time over the former result."""
    from compactmtl.backends import load_target
    from compactmtl.export import export_run
    from compactmtl.runs import Run, compact_run

    target = folder.with_name("target.yaml")
    target.write_text(TARGET)
    looks: list[Look] = []
    start = time.perf_counter()
    for number in range(count):
        run = Run.open(folder)
        compact_run(run)
        export_run(run, "soak", load_target(str(target)))
        looks.append(look())
        told(f"cycle {number + 1} of {count}: {looks[-1].megabytes:.1f} MiB")
    return course("cycles of compact and export", count, time.perf_counter() - start, looks)


def main(words: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--steps", type=int, default=1000, help="of training, a multiple of 10 (default 1000)"
    )
    parser.add_argument("--cycles", type=int, default=200, help="of compact and export (default 200)")
    parser.add_argument("--workers", type=int, default=0, help="processes that load data (default 0)")
    parser.add_argument(
        "--most", type=float, default=MOST, help=f"MiB that memory may grow by (default {MOST:g})"
    )
    parser.add_argument("--out", type=Path, help="write the figures there as JSON")
    given = parser.parse_args(words)
    if given.steps < 5 * STEPS_AN_EPOCH or given.steps % STEPS_AN_EPOCH:
        parser.error("--steps: give a multiple of 10 of at least 50")
    if given.cycles and given.cycles < 4:
        parser.error("--cycles: give at least 4, or 0")
    courses = []
    with tempfile.TemporaryDirectory(prefix="compactmtl-soak-") as folder:
        run = Path(folder) / "run"
        courses.append(train_long(run, given.steps, given.workers))
        print(courses[-1].line(), flush=True)
        if given.cycles:
            courses.append(
                cycles(run, given.cycles, lambda line: print(f"\r{line} ", end="", file=sys.stderr))
            )
            print(file=sys.stderr)
            print(courses[-1].line())
    if given.out:
        given.out.write_text(json.dumps([asdict(one) for one in courses], indent=1) + "\n")
    faults = [fault for one in courses for fault in one.faults(given.most)]
    for one in courses:
        faults += [f"  open: {name}" for name in one.open_at_end]
    for fault in faults:
        print(fault, file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
