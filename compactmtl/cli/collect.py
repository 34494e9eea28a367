"""`compactmtl collect`: take what a device kit found on its device into the run's bundle."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING

from compactmtl.artifacts.told import tell
from compactmtl.cli.parser import add_trust, trusted

if TYPE_CHECKING:
    from compactmtl.export.kit.files import DeviceRecord
    from compactmtl.tasks import Task

HELP = "take a device kit's results into the run, checked and held against the target's gates"
EXAMPLE = """\
compactmtl collect runs/scenes-compact results.json
compactmtl collect runs/scenes-compact orin/results.json --name "Orin in the lab" data.root=/data"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("run", metavar="RUN", help="the run folder that the kit was exported from")
    parser.add_argument("results", metavar="RESULTS", help="the results.json that kit.py wrote on the device")
    parser.add_argument(
        "overrides",
        metavar="key=value",
        nargs="*",
        help="where the run's data is on this machine, such as data.root=/data",
    )
    parser.add_argument(
        "--name", default="", help="what reports call the device (default: what it calls itself)"
    )
    add_trust(parser)


def run(args: argparse.Namespace) -> int:
    """Check and keep the results, print them, and fail where a gate fails."""
    import sys
    from pathlib import Path

    from compactmtl.errors import command
    from compactmtl.export.kit.collect import collect_results
    from compactmtl.runs import Run
    from compactmtl.verify.gates import raise_failed

    opened = Run.open(args.run, args.overrides)
    collected = collect_results(
        opened,
        Path(args.results),
        name=args.name,
        progress=tell,
    )
    record = collected.record
    print("\n".join(_summary(record, opened.tasks)))
    if collected.replaced:
        print(f"note: the former results of {record.name} were replaced", file=sys.stderr)
    print(f"kept in {collected.bundle}")
    print(f"next: {command('report', opened.path, *args.overrides, *trusted(args))}")
    raise_failed(record.gates, f"{record.target} on {record.name}")
    return 0


def _summary(record: DeviceRecord, tasks: dict[str, Task]) -> Iterator[str]:
    """What a device found, in lines for a terminal."""
    from compactmtl.cli.export import accuracy_lines, gate_lines, latency_lines, parity_line

    versions = ", ".join(f"{name} {version}" for name, version in record.versions.items())
    yield f"{record.target} on {record.name}: {record.device}, {versions}"
    if record.accuracy is None:
        yield f"accuracy: not run, {record.not_run['accuracy']}"
    else:
        yield f"accuracy on {record.accuracy.samples} validation images:"
        yield from accuracy_lines(record.accuracy, tasks)
    yield parity_line(record.parity)
    yield from latency_lines(record.latency, elsewhere=record.machine.processors)
    for name, phases in record.phases.items():
        yield (
            f"  {name} by the GPU's clock: copy in {phases.copy_in_ms:.3f}, compute {phases.compute_ms:.3f},"
            f" copy out {phases.copy_out_ms:.3f} ms"
        )
    if record.held_back:
        yield "the device held itself back while it was measured: " + "; ".join(record.held_back)
    elif record.held_back is None:
        yield "whether the device throttled is not known: its system does not tell"
    yield from gate_lines(record.gates)
