"""The argument parser of every verb: options and positionals stand in any order, and an error names its mend."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from compactmtl.config.lookup import close_names
from compactmtl.errors import ConfigError

if TYPE_CHECKING:
    from compactmtl.runs import Run

OVERRIDES = "overrides"  # the positional that takes key=value words, wherever they stand
_OVERRIDE = re.compile(r"[^=/\\]+=.*", re.DOTALL)  # a path with = in it has a slash: ./lr=0.1
_NUMBER = re.compile(r"-\.?\d")
MOST = 2**48  # numbers in an input whose shape is given: no machine's memory holds more


_Group = tuple[
    argparse.Action | None, list[str]
]  # an option as it is declared, and as it stands with its values


class _Several(argparse.Action):
    """The values of an option that takes several: given twice, it has the values of both."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        given = self.dest in vars(namespace).setdefault("_given", set())
        namespace._given.add(self.dest)
        setattr(namespace, self.dest, [*(getattr(namespace, self.dest) if given else []), *values])


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that takes options anywhere and raises ConfigError on a wrong command line.

    `train demo --out runs train.epochs=3` reads as `train demo train.epochs=3 --out runs` does, also below subcommands.
    An option that takes several values leaves what it cannot take, or what the positionals lack:
    `export --target T RUN` and `sweep --seeds 0 1 SWEEP key=value` read as a user means them. `given` of what is parsed
    are the options that the command line has, whatever their values.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        kwargs.setdefault("allow_abbrev", False)  # an abbreviation would break when an option is added
        super().__init__(*args, **kwargs)

    def add_argument(self, *names: Any, **kwargs: Any) -> argparse.Action:
        """As argparse's, but a positional that may be empty is not named among the missing ones."""
        option = names[0].startswith("-")
        if kwargs.get("nargs") == "*" and not option:
            kwargs.setdefault("default", [])
        if kwargs.get("nargs") == "+" and option:
            kwargs.setdefault("action", _Several)
        return super().add_argument(*names, **kwargs)

    @property
    def options(self) -> list[str]:
        """The long options, as a hint may name them; of all subcommands where there are some."""
        words = [word for word in self._option_string_actions if word.startswith("--") and word != "--help"]
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                words += [word for one in action.choices.values() for word in one.options]
        return list(dict.fromkeys(words))

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """As argparse's, but positionals and options may be mixed."""
        words = list(args or ())
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                first = next((index for index, word in enumerate(words) if word in action.choices), 0)
                return super().parse_known_args(
                    [*words[first : first + 1], *words[:first], *words[first + 1 :]], namespace
                )
        plain, overrides, groups = self._sorted(words)
        options = [word for _, group in groups for word in group]
        # Positionals first: argparse gives an empty one its default at the first option that it meets. A path such
        # as -a.jpg can only stand behind `--`, and there it is alone with its like.
        dashed = any(word.startswith("-") and word != "-" for word in plain)
        line = [*options, "--", *plain] if dashed else [*plain, *options]
        arguments, extra = super().parse_known_args(line, namespace)
        if overrides:
            setattr(arguments, OVERRIDES, [*getattr(arguments, OVERRIDES), *overrides])
        vars(arguments).pop("_given", None)
        arguments.given = frozenset(action.dest for action, _ in groups if action is not None)
        return arguments, extra

    def _sorted(self, words: Sequence[str]) -> tuple[list[str], list[str], list[_Group]]:
        """The positionals without overrides, the overrides, and the options with their values."""
        plain: list[str] = []
        groups: list[_Group] = []
        rest = list(words)
        while rest:
            word = rest.pop(0)
            if word == "--":
                plain += rest
                break
            if not _is_option(word):
                plain.append(word)
                continue
            name, sign, value = word.partition("=")
            action = self._option_string_actions.get(name)
            groups.append((action, [word]))
            while rest and not sign and action is not None and self._takes(action, groups[-1][1], rest[0]):
                groups[-1][1].append(rest.pop(0))
            if action is not None and "" in (groups[-1][1][1:] if not sign else [value]):
                wanted = action.metavar if isinstance(action.metavar, str) else action.dest.upper()
                self.error(
                    f"argument {name}: the value is empty, as of a variable that is not set; it takes {wanted}"
                )
        positionals = [action for action in self._actions if not action.option_strings]
        takes_overrides = any(action.dest == OVERRIDES for action in positionals)
        overrides = [word for word in plain if takes_overrides and _OVERRIDE.fullmatch(word)]
        plain = [word for word in plain if word not in overrides]
        named = [action for action in positionals if action.nargs in (None, "+", "?")]
        lacking = max(0, len(named) - len(plain))
        # A number or one of a few names is the option's own: words of any kind go first.
        several = [(action, group) for action, group in reversed(groups) if action and action.nargs == "+"]
        for _, group in sorted(several, key=lambda one: _particular(one[0])):
            if lacking and len(group) > 2:
                cut = max(2, len(group) - lacking)
                plain, lacking = [*group[cut:], *plain], lacking - (len(group) - cut)
                del group[cut:]
        return plain, overrides, groups

    def _takes(self, action: argparse.Action, group: Sequence[str], word: str) -> bool:
        """Whether an option that has some values already takes the next word too."""
        if _is_option(word) or word == "--":
            return False
        if action.nargs is None:
            return len(group) == 1
        if action.nargs != "+":
            return False
        if len(group) == 1:
            return True  # it needs one; a wrong one is named as its value
        if action.choices is not None:
            return word in action.choices
        if action.type is not None:
            return _converts(action.type, word)
        return not _OVERRIDE.fullmatch(word)

    def error(self, message: str) -> NoReturn:
        """Raise instead of exiting, so that every wrong command line looks the same."""
        hint = f"see `{self.prog} --help`"
        _, _, unknown = message.partition("unrecognized arguments: ")
        near = close_names(unknown.split()[0].partition("=")[0], self.options) if unknown else []
        raise ConfigError(
            f"{self.prog}: {message}", f"did you mean {' or '.join(near)}? {hint}" if near else hint
        )


def _is_option(word: str) -> bool:
    name = word.partition("=")[0]
    return word.startswith("-") and word != "-" and not _NUMBER.match(word) and " " not in name


def _particular(action: argparse.Action) -> bool:
    return action.type is not None or action.choices is not None


def _converts(kind: Any, word: str) -> bool:
    try:
        kind(word)
    except (TypeError, ValueError, argparse.ArgumentTypeError):
        return False
    return True


def refuse(args: argparse.Namespace, names: Sequence[str], what: str) -> None:
    """Raise ConfigError where the command line has one of these options, which mean nothing for `what`."""
    given = args.given | ({OVERRIDES} if args.overrides else set())
    for name in names:
        if name in given:
            option = "key=value" if name == OVERRIDES else "--" + name.replace("_", "-")
            raise ConfigError(f"{option} has no meaning for {what}", "leave it out")


def add_device(parser: argparse.ArgumentParser, runs: str) -> None:
    """Declare --device, where the torch model runs; `runs` says what it does there."""
    parser.add_argument(
        "--device",
        metavar="NAME",
        default="cpu",
        help=f"{runs} on this torch device, such as cuda:0 (default: cpu)",
    )


def add_tasks(parser: argparse.ArgumentParser, out: str = "") -> None:
    """Declare --tasks and --out, which make a run of some of a run's tasks; `out` is what else --out is for."""
    parser.add_argument(
        "--tasks",
        metavar="TASK",
        nargs="+",
        help="these tasks alone: a run of its own is made beside RUN, without the other heads and what only they read",
    )
    parser.add_argument(
        "--out", metavar="DIR", help=f"with --tasks: folder of that run (default: RUN-TASK-TASK…){out}"
    )


def of_tasks(run: Run, args: argparse.Namespace) -> Run:
    """The run itself or, with --tasks, the run of these alone. Raises ConfigError for --out without --tasks."""
    from compactmtl.runs import subset_run

    if args.tasks:
        return subset_run(run, args.tasks, args.out, args.overrides)
    if args.out:
        raise ConfigError(
            "--out is the folder of a subset of the tasks", "give --tasks with it, or leave it out"
        )
    return run


def trusted(args: argparse.Namespace) -> tuple[str, ...]:
    """--trust where it was given, for the command that a verb names as the next."""
    return ("--trust",) if getattr(args, "trust", False) else ()


def add_trust(parser: argparse.ArgumentParser) -> None:
    """Declare --trust, the user's word for `compactmtl.config.trust`, which `main` gives on."""
    parser.add_argument(
        "--trust",
        action="store_true",
        help="allow running code that a recipe, run or target names, such as a class of your own or a library",
    )
