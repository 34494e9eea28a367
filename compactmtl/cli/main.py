"""`compactmtl VERB …`: pick the verb, run it, turn every failure into a message and an exit code."""

from __future__ import annotations

import argparse
import difflib
import errno
import importlib
import os
import re
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, Protocol, cast

import compactmtl
from compactmtl.cli.disk import disk_error, refused_place
from compactmtl.cli.parser import Parser
from compactmtl.config.trust import trusting
from compactmtl.distributed.environment import processes, tell_torchrun
from compactmtl.errors import (
    BROKEN_PIPE,
    BUG,
    INTERRUPTED,
    OK,
    USAGE,
    CompactError,
    CompactWarning,
    ConfigError,
    machine_fault,
)

# In the order in which a user needs them; each is a module of this package, imported when it is asked for.
VERBS = (
    "data",
    "recipes",
    "targets",
    "explain",
    "fit",
    "train",
    "compact",
    "export",
    "collect",
    "profile",
    "tasks",
    "latency",
    "report",
    "predict",
    "probe",
    "sweep",
    "demo",
    "doctor",
)
# What says how OpenMP's idle threads wait: GNU's, which torch's Linux wheels bring, and Intel's and LLVM's.
WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")

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
    args, parser = argparse.Namespace(), None
    try:
        if not words or words[0] in ("-h", "--help", "help"):
            print(_overview())
            return OK
        if words[0] in ("-V", "--version"):
            print(f"compactmtl {compactmtl.__version__}")
            return OK
        _check_text(words)
        verb = _load(_known(words[0]))
        parser = parser_of(words[0])
        args = parser.parse_args(words[1:])
        _check_processes(words[0], args)
        with (
            _ended_as_by_ctrl_c(),
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
        hint = _whose_options(error.hint, parser)
        return _fail(error.message, hint, error.exit_code, second_hand=error.second_hand)
    except KeyboardInterrupt:
        return _fail("interrupted", "", INTERRUPTED)
    except BrokenPipeError:  # the reader, such as head, has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return BROKEN_PIPE
    except OSError as error:
        if parser is not None and error.errno in _FULL | _FORBIDDEN | _WRONG_KIND:
            return _fail(*disk_failure(error, parser, args), USAGE)
        return _unforeseen(error)
    except Exception as error:
        refusal = disk_error(error)
        if parser is not None and refusal is not None:
            return _fail(*disk_failure(refusal, parser, args), USAGE)
        return _unforeseen(error)


@contextmanager
def _ended_as_by_ctrl_c() -> Iterator[None]:
    """SIGTERM does what Ctrl-C does, unless the program that calls has a handler of its own for it.

    Not where torchrun started several processes: one that waits for another runs no handler, and torchrun, which says that
    they were ended, would have to kill it half a minute later.
    """
    alone = processes() == 1 and threading.current_thread() is threading.main_thread()
    if not alone or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        handler = signal.getsignal(signal.SIGINT)
        if not callable(handler):  # a shell's background process ignores Ctrl-C
            raise KeyboardInterrupt
        handler(number, frame)

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def wait_passively(environment: Mapping[str, str]) -> dict[str, str]:
    """Variables that let OpenMP's idle threads sleep; none where the user has said how they wait.

    By default they spin between two operators, and beside another busy process they take the processor from whoever
    has work: surgery of a small network took 134 s instead of 2.
    """
    if any(name in environment for name in WAITING):
        return {}
    return {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0", "KMP_BLOCKTIME": "0"}


def _check_text(words: Sequence[str]) -> None:
    """Raise ConfigError for a word whose bytes are not UTF-8: runtimes open no such file, and no recipe or report names it."""
    for word in words:
        plain = word.encode(errors="backslashreplace").decode()
        if plain != word:
            raise ConfigError(f"{plain} on the command line is not UTF-8", "rename the file or folder")


def _check_processes(verb: str, args: argparse.Namespace) -> None:
    """Raise ConfigError where torchrun started several processes of what one does."""
    count = processes()
    if count > 1 and (verb != "train" or args.dry_run):
        what = "train --dry-run" if verb == "train" else verb
        raise ConfigError(
            f"`compactmtl {what}` runs in one process, and torchrun started {count}",
            "start it without torchrun",
        )


def _known(word: str) -> str:
    if word in VERBS:
        return word
    near = difflib.get_close_matches(word, VERBS, n=2)
    hint = f"did you mean {' or '.join(near)}?" if near else f"the commands are {', '.join(VERBS)}"
    raise ConfigError(f"no command `{word}`", hint)


def _load(name: str) -> Verb:
    return cast(Verb, importlib.import_module(f"compactmtl.cli.{name}"))


def parser_of(name: str) -> Parser:
    """The parser of a verb."""
    verb = _load(name)
    note = getattr(verb, "NOTE", "")
    example = "example:\n" + "\n".join(f"  {line}" for line in verb.EXAMPLE.strip().splitlines())
    example += f"\n\n{note}" if note else ""
    parser = Parser(prog=f"compactmtl {name}", description=verb.HELP, epilog=example)
    verb.add_arguments(parser)
    return parser


def _overview() -> str:
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {name:<{width}}  {_load(name).HELP}" for name in VERBS)
    return (
        f"usage: compactmtl COMMAND …\n\n{compactmtl.__doc__}\n\ncommands:\n{verbs}\n\n"
        "`compactmtl COMMAND --help` shows its options and an example. `compactmtl demo` runs the whole pipeline."
    )


def disk_failure(error: OSError, parser: Parser, args: argparse.Namespace) -> tuple[str, str]:
    """What the disk refused and where; the mend names only what this verb has."""
    path = error.filename2 or error.filename  # of a copy or a renaming: what was to be written
    if path is None:
        path = refused_place(error.errno, args)
    where = "" if path is None else f"{os.fsdecode(path)}: "
    message = f"{where}{error.strerror or error}"
    elsewhere = ", or choose another folder with --out" if "--out" in parser.options else ""
    if error.errno in _FULL:
        return message, f"free space there{elsewhere}"
    if error.errno in _FORBIDDEN:
        return message, f"make it readable and writable{elsewhere}"
    if error.errno in (errno.EEXIST, errno.ENOTDIR) and path is not None:
        return f"{where}a file exists where a folder should be", f"check the path{elsewhere}"
    return message, "check the path"


def _whose_options(hint: str, parser: Parser | None) -> str:
    """For options in a hint that this verb lacks: the verb that has them.

    What lies below the verbs doesn't know which of them runs: a damaged run is trained again, whoever finds it.
    """
    own = [] if parser is None else parser.options
    bare = re.sub(r"`compactmtl [^`]*`|: compactmtl [^`\n]*", "", hint)
    foreign = [
        word for word in dict.fromkeys(re.findall(r"(?<![\w-])--[a-z][a-z-]+", bare)) if word not in own
    ]
    lines = []
    for verb in ("train", *VERBS):
        there = [word for word in foreign if word in parser_of(verb).options]
        foreign = [word for word in foreign if word not in there]
        if there:
            isare = "is an option" if len(there) == 1 else "are options"
            lines.append(f"{' and '.join(there)} {isare} of `compactmtl {verb}`")
    return "\n".join([hint, *lines])


def _fail(message: str, hint: str, code: int, *, second_hand: bool = False) -> int:
    lines = [f"error: {message}", *(f"  {line}" for line in hint.splitlines())]
    print("\n".join(lines), file=sys.stderr, flush=True)
    tell_torchrun(message, second_hand=second_hand)
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
    tell_torchrun(traceback.format_exc())
    return BUG
