"""`compactmtl tasks`: what each task of a run costs on a target."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING

from compactmtl.artifacts.told import tell
from compactmtl.cli.parser import add_trust

if TYPE_CHECKING:
    from compactmtl.export.task_costs import TaskCosts

HELP = "what each task of a run costs: MACs, parameters and milliseconds that leave without it"
EXAMPLE = """\
compactmtl tasks runs/scenes-compact
compactmtl tasks runs/scenes-compact --target onnxruntime-cpu-int8
compactmtl compact runs/scenes-compact --tasks depth normals"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("run", metavar="RUN", help="a run folder that `train` wrote")
    parser.add_argument(
        "overrides",
        metavar="key=value",
        nargs="*",
        help="where the run's data is on this machine, such as data.root=/data; int8 is calibrated on it",
    )
    parser.add_argument(
        "--target", metavar="NAME", help="target by name or path (default: the recipe's first target)"
    )
    add_trust(parser)


def run(args: argparse.Namespace) -> int:
    """Measure and print."""
    from compactmtl.backends import load_target
    from compactmtl.errors import ConfigError
    from compactmtl.export.task_costs import task_costs
    from compactmtl.runs import Run

    opened = Run.open(args.run, args.overrides)
    name = args.target or next(iter(opened.recipe.targets), None)
    if name is None:
        raise ConfigError(f"the recipe of {opened.path} names no target", "give --target NAME")
    costs = task_costs(opened, load_target(name), progress=tell)
    print("\n".join(lines(costs, name)))
    return 0


def lines(costs: TaskCosts, target: str) -> Iterator[str]:
    """The costs as a table for a terminal."""
    rows = [("without", "MACs less", "", "parameters less", "", f"ms less on {target}", "")]
    for one in costs.tasks:
        rows.append(
            (
                one.task,
                f"{one.macs:,}",
                f"{one.macs / costs.macs:.1%}",
                f"{one.parameters:,}",
                f"{one.parameters / costs.parameters:.1%}",
                f"{one.milliseconds:.3f}",
                f"{one.milliseconds / costs.milliseconds:.1%}",
            )
        )
    rows.append(
        ("of all", f"{costs.macs:,}", "", f"{costs.parameters:,}", "", f"{costs.milliseconds:.3f}", "")
    )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        first, *others = row
        cells = (f"{cell:>{width}}" for cell, width in zip(others, widths[1:], strict=True))
        yield f"{first:<{widths[0]}}  {'  '.join(cells)}".rstrip()
    if noisy := [one.task for one in costs.tasks if not one.certain]:
        yield f"note: the time without {', '.join(noisy)} differs from the whole's by no more than the noise of the rounds"
