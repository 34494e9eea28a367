"""`profile RUN --update`: the bundles of an exported run timed again."""

from __future__ import annotations

import argparse
import sys

from compactmtl.artifacts.layout import BUNDLE_FILE
from compactmtl.artifacts.told import tell
from compactmtl.cli.parser import refuse, trusted

OF_MEASURING = (
    "batch",
    "batches",
    "settle",
    "warmup",
    "repeats",
    "shape",
    "explain",
    "no_memory",
    "no_layers",
    "out",
)


def update(args: argparse.Namespace) -> int:
    """Time the bundles of a run again; a gate that fails now fails the command after all others are done."""
    from pathlib import Path

    from compactmtl.artifacts.layout import EXPORT
    from compactmtl.artifacts.run_folder import is_run
    from compactmtl.cli.export import summary as lines_of
    from compactmtl.errors import ConfigError, command
    from compactmtl.export.remeasure import remeasure_run
    from compactmtl.export.run import check_baseline
    from compactmtl.runs import Run
    from compactmtl.verify.gates import raise_failed

    refuse(args, OF_MEASURING, "--update, which measures as the bundle's target says")
    if len(args.subjects) != 1 or not is_run(Path(args.subjects[0])):
        raise ConfigError("--update takes one run", "name one run folder that was exported")
    opened = Run.open(args.subjects[0], args.overrides)
    baseline = Run.open(args.baseline, args.overrides) if args.baseline else None
    if baseline is not None:
        check_baseline(opened, baseline)
    folder = opened.path / EXPORT
    known = (
        sorted(one.name for one in folder.iterdir() if (one / BUNDLE_FILE).is_file())
        if folder.is_dir()
        else []
    )
    names = known if args.target is None else [args.target]
    if not names:
        raise ConfigError(f"{opened.path} has no bundle", f"export it: {command('export', opened.path)}")
    gates = []
    for name in names:
        print(f"{opened.name} for {name}", file=sys.stderr)
        verification = remeasure_run(opened, name, baseline, progress=tell)
        print("\n".join(lines_of(verification, opened.tasks)))
        gates += list(verification.gates)
    against = ("--baseline", baseline.path) if baseline else ()
    print(f"next: {command('report', opened.path, *against, *args.overrides, *trusted(args))}")
    raise_failed(tuple(gates), opened.name)
    return 0
