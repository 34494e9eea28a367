"""`compactmtl targets`: list and show deployment targets."""

from __future__ import annotations

import argparse

from compactmtl.cli.listing import print_entries, print_file, print_resolved
from compactmtl.errors import OK

HELP = "list and show deployment targets"
EXAMPLE = """
compactmtl targets list
compactmtl targets show onnxruntime-cpu --resolved
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the subcommands."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    actions.add_parser("list", help="list every target by name")
    show = actions.add_parser("show", help="show a target as it is written, or with every value resolved")
    show.add_argument("target", metavar="TARGET", help="target by name or path")
    show.add_argument("overrides", metavar="key=value", nargs="*", help="values that override the target")
    show.add_argument("--resolved", action="store_true", help="show every value and where it comes from")


def run(args: argparse.Namespace) -> int:
    """Run one subcommand."""
    if args.action == "list":
        print_entries("target")
        return OK
    from compactmtl.backends import resolve_target

    resolved = resolve_target(args.target, args.overrides)
    if args.resolved or args.overrides:
        print_resolved(resolved.target, resolved.origins)
    else:
        print_file(resolved.path)
    return OK
