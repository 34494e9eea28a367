"""Whatever the project tells a user to type is taken by the real parser: examples, docs, hints, `next:` lines."""

from __future__ import annotations

import argparse
import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from compactmtl.cli.main import VERBS, parser_of
from compactmtl.cli.parser import Parser
from compactmtl.errors import command

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "compactmtl").rglob("*.py"))
# The reference pages are written from the parsers themselves.
DOCS = [
    ROOT / "README.md",
    *sorted(path for path in (ROOT / "docs").rglob("*.md") if path.parent.name != "reference"),
]
OPTIONS = {option for verb in VERBS for option in parser_of(verb).options}
ANY = "1"  # stands for a value that is known only when the message is made; a number and a text
# Says which program wrote the file, and is searched for in files of older versions.
NOT_TO_TYPE = {"<!-- Written by `compactmtl report`; remove this line to keep your own text. -->"}

_QUOTED = re.compile(r"`compactmtl ([a-z][^`]*)`")
_VERB = "|".join(VERBS)
_TO_THE_END = re.compile(rf"(?<![`\w./])compactmtl ((?:{_VERB}) [^`\n]*)$", re.MULTILINE)
_OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]+")


def _texts(tree: ast.AST) -> Iterator[str]:
    """Every text of a module but its docstrings, with `ANY` where a value is put in."""
    parts: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                parts.add(first.value)
        if isinstance(node, ast.JoinedStr):
            parts.update(node.values)
            yield _joined(node)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in parts:
            yield node.value


def _joined(node: ast.JoinedStr) -> str:
    pieces = []
    for value in node.values:
        if isinstance(value, ast.Constant):
            pieces.append(str(value.value))
        elif isinstance(value, ast.FormattedValue) and _is_command(value.value):
            assert isinstance(value.value, ast.Call)
            pieces.append(shlex.join(["compactmtl", *_words(value.value)]))
        else:
            pieces.append(ANY)
    return "".join(pieces)


def _is_command(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "command"


def _words(call: ast.Call) -> list[str]:
    """The words of a call of `command`; of a starred list one or none."""
    fixed = [argument for argument in call.args if not isinstance(argument, ast.Starred)]
    return [str(one.value) if isinstance(one, ast.Constant) else ANY for one in fixed]


def _commands_of_source() -> Iterator[tuple[str, str]]:
    for path in SOURCES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        name = str(path.relative_to(ROOT))
        for text in _texts(tree):
            if text not in NOT_TO_TYPE:
                for found in (*_QUOTED.findall(text), *_TO_THE_END.findall(text)):
                    yield name, found
        for node in ast.walk(tree):
            if _is_command(node):
                assert isinstance(node, ast.Call)
                if words := _words(node):
                    yield name, shlex.join(words)


def _commands_of_docs() -> Iterator[tuple[str, str]]:
    for path in DOCS:
        text = path.read_text(encoding="utf-8")
        blocks = "\n".join(re.findall(r"```.*?```|^    .*$", text, re.DOTALL | re.MULTILINE))
        lines = [line.strip() for line in blocks.splitlines()]
        spans = re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
        for found in (*lines, *(" ".join(span.split()) for span in spans)):
            words = found.partition("  #")[0].removeprefix("PYTHONPATH=. ")
            if (
                words.startswith("compactmtl ") and len(words.split()) > 2
            ):  # `compactmtl train` only names the verb
                yield path.name, words.removeprefix("compactmtl ")


def _as_typed(text: str) -> list[str]:
    """A printed command's words: [optional] parts given, `RUN…` as one run, the shell's pipe left out."""
    text = re.sub(r"[\[\]](?=\s|$)|(?<=\s)[\[]", "", text)
    words = shlex.split(text.replace("…", ""))
    cut = next((index for index, word in enumerate(words) if word in (">", "|", "&&")), len(words))
    return words[:cut]


def _all() -> list[tuple[str, str]]:
    return sorted({*_commands_of_source(), *_commands_of_docs()})


@pytest.mark.slow
def test_there_are_commands_to_follow() -> None:
    places = {place for place, _ in _all()}
    assert {"README.md", "export.md", "compactmtl/cli/export.py", "compactmtl/runs/run.py"} <= places


@pytest.mark.parametrize(("place", "text"), _all())
def test_a_printed_command_parses(place: str, text: str) -> None:
    verb, *words = _as_typed(text)
    assert verb in VERBS
    if "--help" not in words:
        parser_of(verb).parse_args(words)


@pytest.mark.slow
@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_message_names_only_options_that_there_are(path: Path) -> None:
    """A verb's own messages name its own options; a room below the verbs doesn't know who calls it."""
    verb = path.stem if path.parent.name == "cli" and path.stem in VERBS else None
    known = parser_of(verb).options if verb else OPTIONS
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not (isinstance(node, ast.Call) and getattr(node.func, "id", "").endswith("Error")):
            continue
        for argument in node.args:
            for text in _texts(argument):
                bare = re.sub(r"`?(compactmtl|python|pip|docker) [^`]*`?", "", text)
                unknown = [word for word in _OPTION.findall(bare) if word not in known]
                assert not unknown, f"line {node.lineno}: {text!r} names {unknown}"


def _leaves(parser: Parser, words: tuple[str, ...] = ()) -> Iterator[tuple[Parser, tuple[str, ...]]]:
    """The parsers of a verb's subcommands with the words that lead to them; its own where it has none."""
    below = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not below:
        yield parser, words
    for action in below:
        for name, child in action.choices.items():
            yield from _leaves(child, (*words, name))


def _value(action: argparse.Action) -> str:
    if action.choices:
        return str(next(iter(action.choices)))
    return "3" if action.type in (int, float) else "some"


@pytest.mark.parametrize("verb", VERBS)
def test_options_before_the_positionals_as_usage_lines_have_them(verb: str) -> None:
    """Every option alone, in front of, between and behind what the verb takes by position."""
    for leaf, words in _leaves(parser_of(verb)):
        wanted = [
            action for action in leaf._actions if not action.option_strings and action.dest != "overrides"
        ]
        names = [_value(action) for action in wanted]
        takes = any(action.dest == "overrides" for action in leaf._actions)
        for action in leaf._actions:
            if not action.option_strings or action.dest == "help":
                continue
            values = {0: [], "+": [_value(action)] * 2}.get(action.nargs, [_value(action)])
            option = [action.option_strings[-1], *values]
            override = ["data.root=/a b"] if takes else []
            lines = [[*names, *override, *option], [*option, *names, *override], [*override, *option, *names]]
            first, *others = (parser_of(verb).parse_args([*words, *line]) for line in lines)
            assert all(other == first for other in others), (verb, words, option)


def test_a_command_is_quoted_for_the_shell() -> None:
    words = ["export", "runs/mi receta", "data.root=/a b", "data.size=[8,8]", "--target", "it's"]
    assert shlex.split(command(*words)) == ["compactmtl", *words]


@pytest.mark.slow
def test_every_printed_path_goes_through_the_quoting_helper() -> None:
    """A command that is put together with a value in it is put together by `command`."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                plain = "".join(
                    str(value.value) if isinstance(value, ast.Constant) else "\0" for value in node.values
                )
                found = re.search(rf"compactmtl ({_VERB})\b[^`\n]*\0", plain)
                assert found is None, f"{path.name}:{node.lineno}: {plain!r}"
