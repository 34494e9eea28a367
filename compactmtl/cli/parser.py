"""The argument parser of every verb: options may stand anywhere, and an error names its mend."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from compactmtl.errors import ConfigError


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that takes options between positionals and raises ConfigError on a wrong command line.

    `train demo --out runs train.epochs=3` reads as `train demo train.epochs=3 --out runs` does, also below
    subcommands.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        kwargs.setdefault("allow_abbrev", False)  # an abbreviation would break when an option is added
        super().__init__(*args, **kwargs)
        self._intermixing = False

    def add_argument(self, *names: Any, **kwargs: Any) -> argparse.Action:
        """As argparse's, but a positional that may be empty is not named among the missing ones."""
        if kwargs.get("nargs") == "*" and not names[0].startswith("-"):
            kwargs.setdefault("default", [])
        return super().add_argument(*names, **kwargs)

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """As argparse's, but positionals and options may be mixed."""
        has_subcommands = any(isinstance(action, argparse._SubParsersAction) for action in self._actions)
        if self._intermixing or has_subcommands:
            return super().parse_known_args(args, namespace)
        self._intermixing = True
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._intermixing = False

    def error(self, message: str) -> NoReturn:
        """Raise instead of exiting, so that every wrong command line looks the same."""
        raise ConfigError(f"{self.prog}: {message}", f"see `{self.prog} --help`")


def add_trust(parser: argparse.ArgumentParser) -> None:
    """Declare --trust, the user's word for `compactmtl.config.trust`, which `main` gives on."""
    parser.add_argument(
        "--trust",
        action="store_true",
        help="let code run that a recipe, run or target names: a data set's class, a library",
    )
