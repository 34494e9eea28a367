"""`compactmtl VERB …`: pick the verb, run it, turn every failure into a message and an exit code."""

from __future__ import annotations

import argparse
import difflib
import errno
import importlib
import os
import sys
import traceback
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast

import compactmtl
from compactmtl.cli.parser import Parser
from compactmtl.config.trust import trusting
from compactmtl.errors import (
    BUG,
    INTERRUPTED,
    OK,
    USAGE,
    CompactError,
    CompactWarning,
    ConfigError,
    machine_fault,
)

# In the order in which a user walks; each is a module of this package, imported when it is asked for.
VERBS = (
    "data",
    "recipes",
    "targets",
    "train",
    "compact",
    "export",
    "profile",
    "report",
    "predict",
    "probe",
    "sweep",
    "demo",
    "doctor",
)
# What says how OpenMP's idle threads wait: GNU's, which torch's Linux wheels bring, and Intel's and LLVM's.
WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
BROKEN_PIPE = 141  # what a shell reports for a process that SIGPIPE ended

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN = {errno.EROFS, errno.EACCES, errno.EPERM}
_WRONG_KIND = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP}


class Verb(Protocol):
    """What a verb's module has. Its imports are light; what is heavy is imported inside `run`."""

    HELP: str
    EXAMPLE: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None: ...

    def run(self, args: argparse.Namespace) -> int: ...


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code (see compactmtl.errors)."""
    words = list(sys.argv[1:] if argv is None else argv)
    if "torch" not in sys.modules:  # its OpenMP reads the environment once, as it is loaded
        os.environ.update(wait_passively(os.environ))
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without λ must not stop a training
    args = argparse.Namespace()
    try:
        if not words or words[0] in ("-h", "--help", "help"):
            print(_overview())
            return OK
        if words[0] in ("-V", "--version"):
            print(f"compactmtl {compactmtl.__version__}")
            return OK
        verb = _load(_known(words[0]))
        parser = _parser(words[0], verb)
        args = parser.parse_args(words[1:])
        with (
            warnings.catch_warnings(),
            trusting(getattr(args, "trust", False)),
        ):  # a program that calls `main` keeps its own
            _show_warnings_plainly()
            code = verb.run(args)
        sys.stdout.flush()
        return code
    except SystemExit as stop:  # argparse's --help
        return stop.code if isinstance(stop.code, int) else OK
    except CompactError as error:
        return _fail(error.message, error.hint, error.exit_code)
    except KeyboardInterrupt:
        return _fail("interrupted", "", INTERRUPTED)
    except BrokenPipeError:  # the reader, such as head, has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return BROKEN_PIPE
    except OSError as error:
        if error.errno in _FULL | _FORBIDDEN | _WRONG_KIND:
            return _fail(*_disk_failure(error, getattr(args, "out", None)), USAGE)
        return _unforeseen(error)
    except Exception as error:
        return _unforeseen(error)


def wait_passively(environment: Mapping[str, str]) -> dict[str, str]:
    """Variables that let OpenMP's idle threads sleep; none where the user has said how they wait.

    By default they spin between two operators, and beside another busy process they take the processor from whoever
    has work: surgery of a small network took 134 s instead of 2.
    """
    if any(name in environment for name in WAITING):
        return {}
    return {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0", "KMP_BLOCKTIME": "0"}


def _known(word: str) -> str:
    if word in VERBS:
        return word
    near = difflib.get_close_matches(word, VERBS, n=2)
    hint = f"did you mean {' or '.join(near)}?" if near else f"the commands are {', '.join(VERBS)}"
    raise ConfigError(f"no command `{word}`", hint)


def _load(name: str) -> Verb:
    return cast(Verb, importlib.import_module(f"compactmtl.cli.{name}"))


def _parser(name: str, verb: Verb) -> Parser:
    example = "example:\n" + "\n".join(f"  {line}" for line in verb.EXAMPLE.strip().splitlines())
    parser = Parser(prog=f"compactmtl {name}", description=verb.HELP, epilog=example)
    verb.add_arguments(parser)
    return parser


def _overview() -> str:
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {name:<{width}}  {_load(name).HELP}" for name in VERBS)
    return (
        f"usage: compactmtl COMMAND …\n\n{compactmtl.__doc__}\n\ncommands:\n{verbs}\n\n"
        "`compactmtl COMMAND --help` shows a worked example. `compactmtl demo` walks the whole road."
    )


def _disk_failure(error: OSError, out: object) -> tuple[str, str]:
    path = error.filename if error.filename is not None else out
    where = f"{path}: " if path is not None else ""
    message = f"{where}{error.strerror or error}"
    if error.errno in _FULL:
        return message, "free space there, or choose another folder with --out"
    if error.errno in _FORBIDDEN:
        return message, "make it readable and writable, or choose another folder with --out"
    return message, "check the path"


def _fail(message: str, hint: str, code: int) -> int:
    lines = [f"error: {message}", *(f"  {line}" for line in hint.splitlines())]
    print("\n".join(lines), file=sys.stderr)
    return code


def _unforeseen(error: Exception) -> int:
    fault = machine_fault(error)
    return _bug() if fault is None else _fail(fault.message, fault.hint, fault.exit_code)


def _show_warnings_plainly() -> None:
    """Our own warnings are notes to the user; those of others keep their file and line."""
    former = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *rest: Any, **options: Any) -> None:
        if issubclass(category, CompactWarning):
            print(f"note: {message}", file=sys.stderr)
        else:
            former(message, category, *rest, **options)

    warnings.showwarning = show


def _bug() -> int:
    traceback.print_exc()
    version = compactmtl.__version__
    print(f"this is a bug in compactmtl {version}: please report it with the text above", file=sys.stderr)
    return BUG
