"""`compactmtl report`: one offline page, its data and the comparison table from finished runs."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from compactmtl.artifacts.layout import BUNDLE_FILE
from compactmtl.cli.parser import OVERRIDES, add_device, add_trust, refuse

if TYPE_CHECKING:
    from compactmtl.report import Report

HELP = "write one offline page and a table that compare finished runs"
EXAMPLE = """\
compactmtl report runs/scenes-compact --baseline runs/scenes-dense
compactmtl report runs/seed0 runs/seed1 --baseline runs/dense --out reports/seeds
compactmtl report runs/faces-* --baseline single --latex > table.tex
compactmtl report detector-bundle"""


OF_RUNS = ("baseline", "markdown", "latex", "device", OVERRIDES)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument(
        "runs", metavar="RUN", nargs="+", help="run folder written by `train`, or bundles alone"
    )
    parser.add_argument(
        "overrides",
        metavar="key=value",
        nargs="*",
        help="where the runs' data is on this machine, such as data.root=/data",
    )
    parser.add_argument(
        "--baseline",
        metavar="RUN",
        help="run that Δm and changes refer to; or `single`: the single-task runs among RUN, averaged over seeds",
    )
    parser.add_argument("--out", metavar="DIR", help="folder of the report (default: the first run's folder)")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    form.add_argument("--latex", action="store_true", help="print the table of recipes over seeds as LaTeX")
    add_device(parser, "evaluate models that nothing measured")
    add_trust(parser)


def run(args: argparse.Namespace) -> int:
    """Write the report and print its table."""
    import sys
    from contextlib import nullcontext
    from pathlib import Path

    from compactmtl.artifacts.lock import writing
    from compactmtl.artifacts.run_folder import is_run
    from compactmtl.backends.torch.device import find_device
    from compactmtl.cli.disk import check_writable
    from compactmtl.report import collect, write_collected
    from compactmtl.report.reference import SINGLE, Single
    from compactmtl.runs import Run

    if any(_is_bundle(path) for path in args.runs):
        return _of_bundles(args)
    device = find_device(args.device, "--device")
    runs = [Run.open(path, args.overrides) for path in args.runs]
    baseline: Run | Single | None = None
    if args.baseline is not None:
        baseline = SINGLE if args.baseline == SINGLE else Run.open(args.baseline, args.overrides)
    out = Path(args.out) if args.out is not None else runs[0].path
    check_writable(out)
    # locked from here on: a run that another process changes meanwhile would be reported wrongly
    with writing(out, "report") if is_run(out) else nullcontext():
        report, samples = collect(runs, baseline, device=device)
        page = write_collected(report, samples, out)
    _print_table(report, as_markdown=args.markdown, as_latex=args.latex)
    for note in report.notes:
        print(f"note: {note}", file=sys.stderr)
    passed, gates = report.gates
    if passed < gates:
        print(f"{gates - passed} of {gates} gates failed; see the page", file=sys.stderr)
    print(f"report: {page}", file=sys.stderr if args.markdown or args.latex else sys.stdout)
    return 0


def _is_bundle(path: str) -> bool:
    from pathlib import Path

    return (Path(path) / BUNDLE_FILE).is_file()


def _of_bundles(args: argparse.Namespace) -> int:
    """The page of bundles, which belong to no run; without a table, which compares runs."""
    import sys
    from pathlib import Path

    from compactmtl.cli.disk import check_writable
    from compactmtl.errors import ConfigError
    from compactmtl.export import Bundle
    from compactmtl.report import write_bundle_report

    if others := [path for path in args.runs if not _is_bundle(path)]:
        raise ConfigError(f"{', '.join(others)}: not a bundle, and others are", "report either alone")
    refuse(args, OF_RUNS, "bundles alone: they are read, and nothing is measured")
    bundles = [Bundle.open(path) for path in args.runs]
    out = Path(args.out) if args.out is not None else bundles[0].path
    check_writable(out)
    page = write_bundle_report(bundles, out)
    for bundle in bundles:
        if bundle.doubt:
            print(f"{bundle.path}: {bundle.doubt}", file=sys.stderr)
    print(f"report: {page}")
    return 0


def _print_table(report: Report, *, as_markdown: bool, as_latex: bool) -> None:
    """Recipes over their seeds where there are several, else the comparison of the runs.

    Markdown or LaTeX where asked, colored on a terminal, aligned plain text in a pipe.
    """
    import sys

    from compactmtl.report.delta_formats import delta_cells, latex, shows_more
    from compactmtl.report.table import comparison, markdown, plain, rich_table

    if as_latex:
        print(latex(report))
        return
    table = delta_cells(report) if shows_more(report) else comparison(report)
    if as_markdown:
        print(markdown(table))
    elif sys.stdout.isatty():
        from rich.console import Console

        Console().print(rich_table(table))
    else:
        print(plain(table))
