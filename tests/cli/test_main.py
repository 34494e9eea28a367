import argparse
import errno
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from compactmtl.cli import main as cli
from compactmtl.cli.disk import refused_place
from compactmtl.errors import (
    BROKEN_PIPE,
    CompactError,
    ConfigError,
    DataError,
    GateError,
    MissingDependencyError,
)

Invoke = Callable[..., tuple[int, str, str]]


@pytest.fixture
def invoke(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Invoke:
    """Run a command line whose one verb fails with the given exception."""

    def run(failure: BaseException | signal.Signals | None, *words: str) -> tuple[int, str, str]:
        def work(args: argparse.Namespace) -> int:
            if isinstance(failure, signal.Signals):
                signal.raise_signal(failure)
            elif failure is not None:
                raise failure
            print("done")
            return 0

        def arguments(parser: argparse.ArgumentParser) -> None:
            parser.add_argument("--out")

        verb = SimpleNamespace(
            HELP="train", EXAMPLE="compactmtl train demo", add_arguments=arguments, run=work
        )
        monkeypatch.setattr(cli, "_load", lambda name: verb)
        code = cli.main(["train", *words])
        return code, *capsys.readouterr()

    return run


def test_a_verb_that_ends_well(invoke: Invoke) -> None:
    assert invoke(None) == (0, "done\n", "")


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (CompactError("wrong", "mend"), 2),
        (ConfigError("wrong", "mend"), 2),
        (DataError("wrong", "mend"), 2),
        (MissingDependencyError("wrong", "mend"), 3),
        (GateError("wrong", "mend"), 4),
        (CompactError("wrong", "mend", exit_code=7), 7),
    ],
)
def test_a_user_s_error_is_told_with_its_mend_and_code(
    invoke: Invoke, failure: CompactError, code: int
) -> None:
    assert invoke(failure) == (code, "", "error: wrong\n  mend\n")


def test_a_hint_of_several_lines_is_indented_whole(invoke: Invoke) -> None:
    assert invoke(CompactError("wrong", "one\ntwo"))[2] == "error: wrong\n  one\n  two\n"


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC, errno.EACCES, errno.ENOENT])
def test_a_disk_that_refuses_names_the_path(invoke: Invoke, number: int) -> None:
    code, _, shown = invoke(OSError(number, "refused", "/runs/demo/log.jsonl"))
    assert code == 2
    assert shown.startswith("error: /runs/demo/log.jsonl: refused\n  ")
    assert "Traceback" not in shown


@pytest.mark.parametrize("number", [errno.ENOTDIR, errno.EEXIST])
def test_a_file_in_place_of_a_folder_is_said(invoke: Invoke, number: int) -> None:
    code, _, shown = invoke(OSError(number, "refused", "runs"))
    assert (code, shown.splitlines()[0]) == (2, "error: runs: a file exists where a folder should be")


@pytest.mark.parametrize("name", cli.VERBS)
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EEXIST])
def test_the_mend_of_a_disk_names_only_what_the_verb_has(name: str, number: int) -> None:
    parser = cli.parser_of(name)
    said = cli.disk_failure(OSError(number, "refused", "/runs/x"), parser, argparse.Namespace())
    assert set(re.findall(r"--[a-z-]+", said[1])) <= set(parser.options)
    assert said[0].startswith("/runs/x: ")


@pytest.mark.parametrize(
    "failure",
    [
        RuntimeError("[enforce fail] write failed: No space left on device"),
        RuntimeError('I/O error: Os { code: 28, kind: StorageFull, message: "x" }'),
        ValueError("cannot write: (os error 30)"),
    ],
)
def test_a_library_s_own_words_for_a_full_disk_are_no_bug(invoke: Invoke, failure: Exception) -> None:
    code, _, shown = invoke(failure, "--out", "runs")
    assert code == 2
    assert shown.startswith("error: ")
    assert "Traceback" not in shown


def test_a_full_disk_is_named_by_the_folder_that_lies_on_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system does not say which file a write failed for; the disk that is full says it."""
    full = tmp_path / "full"
    full.mkdir()
    state = SimpleNamespace(f_bavail=1 << 30, f_frsize=4096, f_flag=0)
    spent = SimpleNamespace(f_bavail=0, f_frsize=4096, f_flag=os.ST_RDONLY)
    monkeypatch.setattr(os, "statvfs", lambda path: spent if Path(path) == full else state)
    args = argparse.Namespace(run=str(full / "run"), baseline=None, target=["onnxruntime-cpu"], align=3)
    assert refused_place(errno.ENOSPC, args) == str(full)
    assert refused_place(errno.EROFS, args) == str(full)


def test_an_option_of_another_verb_is_named_with_it(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "recipe.yaml").write_text("data: {name: scenes, size: [8, 8]}\ntasks: {a: {kind: depth}}\n")
    (tmp_path / "meta.json").write_text("{")
    assert cli.main(["compact", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "--overwrite" in said
    assert "--overwrite is an option of `compactmtl train`" in said


@pytest.mark.parametrize("mark", ["`", ""])
def test_a_command_in_a_hint_has_options_of_its_own(capsys: pytest.CaptureFixture[str], mark: str) -> None:
    hint = f"measure one: {mark}compactmtl latency RECIPE --target TARGET{mark}"
    assert cli._whose_options(hint, cli.parser_of("compact")) == hint


def test_a_full_disk_without_a_path_names_the_output_folder(invoke: Invoke) -> None:
    code, _, shown = invoke(OSError(errno.ENOSPC, "No space left on device"), "--out", "runs")
    assert (code, shown.splitlines()[0]) == (2, "error: runs: No space left on device")


def test_ctrl_c_leaves_with_130(invoke: Invoke) -> None:
    assert invoke(KeyboardInterrupt()) == (130, "", "error: interrupted\n")


@pytest.mark.parametrize("ignored", [False, True])  # Ctrl-C, as in a shell's background process
def test_sigterm_does_what_ctrl_c_does(invoke: Invoke, request: pytest.FixtureRequest, ignored: bool) -> None:
    if ignored:
        former = signal.signal(signal.SIGINT, signal.SIG_IGN)
        request.addfinalizer(lambda: signal.signal(signal.SIGINT, former))
    assert invoke(signal.SIGTERM) == (130, "", "error: interrupted\n")
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_handler_of_the_calling_program_stays(invoke: Invoke, request: pytest.FixtureRequest) -> None:
    seen: list[int] = []
    former = signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    request.addfinalizer(lambda: signal.signal(signal.SIGTERM, former))
    assert invoke(signal.SIGTERM) == (0, "done\n", "")
    assert seen == [signal.SIGTERM]


def test_a_stop_that_ctrl_c_only_wishes_for_is_one_by_sigterm_too(
    invoke: Invoke, request: pytest.FixtureRequest
) -> None:
    wished: list[int] = []
    former = signal.signal(signal.SIGINT, lambda number, frame: wished.append(number))
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, former))
    assert invoke(signal.SIGTERM) == (0, "done\n", "")
    assert wished == [signal.SIGTERM]


@pytest.mark.parametrize(
    "failure", [ValueError("inner"), OSError(errno.EIO, "inner"), AssertionError("inner")]
)
def test_anything_else_is_a_bug_with_its_traceback(invoke: Invoke, failure: Exception) -> None:
    code, _, shown = invoke(failure)
    assert code == 1
    assert "Traceback" in shown
    assert "inner" in shown
    assert "this is a bug in compactmtl" in shown


def test_the_help_of_a_verb_shows_its_example(invoke: Invoke) -> None:
    code, shown, _ = invoke(None, "--help")
    assert code == 0
    assert "example:\n  compactmtl train demo" in shown


def test_a_wrong_option_is_a_user_s_error(invoke: Invoke) -> None:
    code, _, shown = invoke(None, "--nope")
    assert code == 2
    assert "--nope" in shown
    assert "compactmtl train --help" in shown


@pytest.mark.parametrize(
    ("word", "hint"), [("trian", "did you mean train"), ("xyz", "the commands are data, recipes")]
)
def test_an_unknown_verb_comes_with_the_nearest(
    word: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([word]) == 2
    assert hint in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--version"], ["-V"]])
def test_the_version(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words) == 0
    assert capsys.readouterr().out == "compactmtl 0.1.0\n"


@pytest.mark.parametrize("words", [[], ["--help"], ["help"]])
def test_the_overview_names_every_verb_in_walking_order(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    start = lines.index("commands:") + 1
    assert tuple(line.split()[0] for line in lines[start : start + len(cli.VERBS)]) == cli.VERBS


@pytest.mark.parametrize("name", cli.VERBS)
def test_every_verb_has_help_and_a_worked_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([name, "--help"]) == 0
    shown = capsys.readouterr().out
    assert f"usage: compactmtl {name}" in shown
    assert f"example:\n  compactmtl {name}" in shown


def test_a_reader_that_leaves_is_no_error() -> None:
    code = "import sys\nfrom compactmtl.cli.main import main\nsys.stdin.read()\nsys.exit(main(['targets', 'list']))"
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.close()  # before it writes
    _, shown = process.communicate()
    assert (process.returncode, shown) == (BROKEN_PIPE, b"")
