"""`compactmtl sweep`: train a table over seeds, one run after the other, or search, and write what came of it."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from compactmtl.artifacts.layout import SEARCH_JOURNAL
from compactmtl.cli.parser import add_trust, refuse

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from compactmtl.config import SweepConfig
    from compactmtl.report import Report
    from compactmtl.report.table import Table
    from compactmtl.sweep import Failure, Job, Searching

HELP = "train several recipes over several seeds, or search among many; the same command continues an interrupted sweep"
EXAMPLE = """\
compactmtl sweep --list
compactmtl sweep utkface/overparam data.root=/data
compactmtl sweep utkface/overparam data.root=/data --only plain joint --seeds 0 1
compactmtl sweep my-sweep.yaml --out runs/my-sweep --table
compactmtl sweep my-space.yaml --trials 50 --storage sqlite:///search.db"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("sweep", metavar="SWEEP", nargs="?", help="sweep by name or path (see --list)")
    parser.add_argument(
        "overrides",
        metavar="key=value",
        nargs="*",
        help="values that override the recipe of every entry, such as data.root=/data",
    )
    parser.add_argument("--list", action="store_true", help="list every sweep by name")
    parser.add_argument(
        "--out",
        metavar="DIR",
        help="folder of the runs and tables (default: runs/ followed by the sweep's name)",
    )
    parser.add_argument("--only", metavar="ENTRY", nargs="+", default=[], help="train only these entries")
    parser.add_argument(
        "--seeds", metavar="N", nargs="+", type=int, default=[], help="train only these seeds"
    )
    parser.add_argument(
        "--trials",
        metavar="N",
        type=int,
        help="of a sweep with a search: how many trials there are to be, those of before and of other workers included",
    )
    parser.add_argument(
        "--storage",
        metavar="URL",
        help="where the search is kept: a database by its URL, such as sqlite:///search.db, or the path of a journal file "
        f"(default: {SEARCH_JOURNAL} in the folder of the runs)",
    )
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument(
        "--table", action="store_true", help="write the tables of finished runs and train nothing"
    )
    instead.add_argument(
        "--dry-run", action="store_true", help="show what would be trained and write nothing"
    )
    parser.add_argument("--smoke", action="store_true", help="train two steps on small images in every run")
    add_trust(parser)


def run(args: argparse.Namespace) -> int:
    """Train what is missing, then write and print the tables."""
    import sys
    from pathlib import Path

    from rich.console import Console

    from compactmtl.config import resolve_sweep
    from compactmtl.config.lookup import entries
    from compactmtl.errors import OK, ConfigError, command

    if args.list:
        _check_alone(args)
        listed = entries("sweep")
        width = max((len(entry.name) for entry in listed), default=0)
        print("\n".join(f"{entry.name:<{width}}  {entry.description}".rstrip() for entry in listed))
        return OK
    if args.sweep is None:
        raise ConfigError("no sweep is named", "name one; `compactmtl sweep --list` lists all")
    resolved = resolve_sweep(args.sweep)
    sweep = resolved.sweep
    name = "-".join(resolved.name.split("/")) + ("-smoke" if args.smoke else "")
    out = Path(args.out) if args.out else Path("runs") / name
    _check_options(args, sweep)
    from compactmtl.artifacts.lock import writing
    from compactmtl.report.selection import selection_cells
    from compactmtl.sweep import (
        collect_runs,
        exit_code,
        open_search,
        plan_jobs,
        probed,
        run_sweep,
        sweep_latencies,
        write_table,
    )
    from compactmtl.train import TrainingInterrupted

    jobs = plan_jobs(sweep, out, args.overrides, only=args.only, seeds=args.seeds, smoke=args.smoke)
    if args.dry_run:
        _print_plan(args, sweep, jobs, out)
        return OK
    search: Searching | None = None
    if sweep.search is not None:
        search = open_search(
            sweep, name, out, args.storage, args.overrides, smoke=args.smoke, must_exist=args.table
        )
        sweep = search.sweep
    console, interrupted = Console(), None
    failed: dict[str, Failure] = {}
    if not args.table:
        try:
            failed = run_sweep(sweep, jobs, console)
            if search is not None:
                failed |= search.run(collect_runs(sweep, jobs), args.trials, console)
        except TrainingInterrupted as error:
            interrupted = error
        except KeyboardInterrupt:  # between two trainings, or while one begins
            interrupted = TrainingInterrupted("interrupted", "give the same command again to go on")
    runs = collect_runs(sweep, jobs, args.only)
    runs.failed = {path: failure.reason for path, failure in failed.items()}
    words = [args.sweep, *args.overrides, "--out", str(out)]
    words += ["--only", *args.only] if args.only else []
    words += ["--seeds", *map(str, args.seeds)] if args.seeds else []
    words += ["--trials", str(args.trials)] if args.trials else []
    words += ["--storage", search.storage] if search is not None else []
    words += ["--smoke"] if args.smoke else []
    against = {name: entry.against for name, entry in sweep.entries.items() if entry.against}
    series = {name: entry.series for name, entry in sweep.entries.items() if entry.series}
    found: Table | None = None
    with writing(
        out, "sweep tables", wait=600
    ):  # another shell of this sweep may have come to its end as well
        if search is not None:
            best = search.front()
            runs.finished |= best
            series |= dict.fromkeys(best, "search")
            found = search.write(command("sweep", *words))
        latencies = sweep_latencies(
            sweep, runs, out, lambda line: print(line, file=sys.stderr), measure=interrupted is None
        )
        report = write_table(
            resolved.name, sweep.description, command("sweep", *words), runs, sweep.baseline, out, against,
            latencies, sweep.targets, series,
        )  # fmt: skip
    if interrupted is not None:
        raise interrupted
    if report is None:
        print("no run has finished, so that there is no table yet", file=sys.stderr)
        return exit_code(failed)
    _print_tables(report, (selection_cells(report, runs.finished), *probed(runs), found))
    print(f"tables: {out}")
    for path, failure in failed.items():
        print(f"failed: {path}: {failure.reason}", file=sys.stderr)
    return exit_code(failed)


def _check_options(args: argparse.Namespace, sweep: SweepConfig) -> None:
    """Raise ConfigError for options that the sweep has no use for, and where a search lacks the number of its trials."""
    from compactmtl.errors import ConfigError

    if sweep.search is None:
        refuse(args, ("trials", "storage"), "a sweep that has no section `search`")
        return
    refuse(args, ("only", "seeds"), "a search, whose trials need all entries and seeds")
    if args.trials is not None and args.trials < 1:
        raise ConfigError(
            f"--trials {args.trials}: a search needs at least one trial", "give a number above 0"
        )
    if args.trials is None and not (args.table or args.dry_run):
        raise ConfigError(
            "how many trials the search is to have is not said", "give --trials, such as --trials 50"
        )


def _print_plan(args: argparse.Namespace, sweep: SweepConfig, jobs: Sequence[Job], out: Path) -> None:
    from compactmtl.artifacts.layout import SEARCH_TRIALS
    from compactmtl.config.yaml import flow
    from compactmtl.sweep.space import check_space

    for job in jobs:
        print(f"{job.path}  {job.resolved.name}")
    if sweep.search is None:
        return
    base = check_space(sweep, args.overrides, smoke=args.smoke)
    print(
        f"{out / SEARCH_TRIALS}/*  {base.name}, {args.trials or 'some'} trials over {len(sweep.seeds)} seeds"
    )
    for key, one in sweep.search.parameters.items():
        print(f"  {key}  {flow(one.model_dump(mode='json', exclude_defaults=True))}")


def _check_alone(args: argparse.Namespace) -> None:
    """Raise ConfigError where --list comes with words that it doesn't read."""
    from compactmtl.errors import ConfigError

    given = [str(word) for word in (args.sweep, *args.overrides) if word is not None]
    given += [
        f"--{key.replace('_', '-')}"
        for key in ("out", "only", "seeds", "trials", "storage", "table", "dry_run", "smoke")
        if vars(args)[key]
    ]
    if given:
        raise ConfigError(f"--list takes no other words, found {' '.join(given)}", "leave one of the two out")


def _print_tables(report: Report, others: Sequence[Table | None]) -> None:
    import sys

    from compactmtl.report import delta_cells, plain
    from compactmtl.report.deployed import deployed_cells
    from compactmtl.report.paired import paired_cells
    from compactmtl.report.table import rich_table

    for table in (delta_cells(report), paired_cells(report), deployed_cells(report), *others):
        if table is None:
            continue
        if sys.stdout.isatty():
            from rich.console import Console

            Console().print(rich_table(table))
        else:
            print(plain(table))
