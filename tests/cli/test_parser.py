import argparse

import pytest

from compactmtl.cli.parser import Parser
from compactmtl.errors import ConfigError


@pytest.fixture
def train() -> Parser:
    parser = Parser(prog="compactmtl train")
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--out", default="runs")
    parser.add_argument("--resume", action="store_true")
    return parser


@pytest.mark.parametrize(
    "line",
    [
        "demo a=1 b=2 --out x --resume",
        "demo --out x a=1 b=2 --resume",
        "demo a=1 --out x --resume b=2",
        "--out x demo a=1 --resume b=2",
        "--resume --out=x demo a=1 b=2",
    ],
)
def test_options_may_stand_anywhere(train: Parser, line: str) -> None:
    args = train.parse_args(line.split())
    assert (args.recipe, args.overrides, args.out, args.resume) == ("demo", ["a=1", "b=2"], "x", True)


def test_defaults_hold(train: Parser) -> None:
    args = train.parse_args(["demo"])
    assert (args.overrides, args.out, args.resume) == ([], "runs", False)
    assert train.parse_args(["demo", "a=1"]).overrides == ["a=1"]
    assert train.parse_args(["demo"]).overrides == []  # the default is not shared


def test_options_may_stand_anywhere_below_a_subcommand() -> None:
    parser = Parser(prog="compactmtl data")
    check = parser.add_subparsers(dest="action", required=True).add_parser("check")
    check.add_argument("name")
    check.add_argument("overrides", nargs="*")
    check.add_argument("--out")
    args = parser.parse_args(
        ["check", "--out", "x.png", "utkface", "root=/a", "--out", "y.png", "size=[8,8]"]
    )
    assert (args.name, args.overrides, args.out) == ("utkface", ["root=/a", "size=[8,8]"], "y.png")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("", "required: recipe"),
        ("demo --nope", "--nope"),
        ("demo --out", "expected one argument"),
        ("demo --resum", "--resum"),
    ],
)
def test_a_wrong_line_raises_with_a_mend(train: Parser, line: str, says: str) -> None:
    with pytest.raises(ConfigError) as error:
        train.parse_args(line.split())
    assert says in error.value.message
    assert "overrides" not in error.value.message
    assert error.value.hint == "see `compactmtl train --help`"


def test_help_exits_with_zero(train: Parser, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        train.parse_args(["--help"])
    assert stop.value.code == 0
    assert isinstance(train, argparse.ArgumentParser)
    assert "usage: compactmtl train" in capsys.readouterr().out
