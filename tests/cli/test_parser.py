import argparse
import itertools

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
    assert error.value.hint.endswith("see `compactmtl train --help`")


def test_a_misspelt_option_comes_with_the_nearest(train: Parser) -> None:
    with pytest.raises(ConfigError) as error:
        train.parse_args(["demo", "--resum"])
    assert error.value.hint.startswith("did you mean --resume?")


@pytest.fixture
def several() -> Parser:
    parser = Parser(prog="compactmtl sweep")
    parser.add_argument("sweep")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--only", nargs="+", default=[])
    parser.add_argument("--seeds", nargs="+", type=int, default=[])
    parser.add_argument("--predictors", nargs="+", choices=("linear", "knn"), default=["knn"])
    parser.add_argument("--smoke", action="store_true")
    return parser


WORDS = [
    ["table"],
    ["a=1"],
    ["--only", "x", "y"],
    ["--seeds", "0", "-1"],
    ["--predictors", "linear"],
    ["--smoke"],
]


@pytest.mark.parametrize("order", list(itertools.permutations(range(len(WORDS)), len(WORDS)))[::7])
def test_every_order_of_a_command_line_reads_alike(several: Parser, order: tuple[int, ...]) -> None:
    args = several.parse_args([word for index in order for word in WORDS[index]])
    assert (args.sweep, args.overrides, args.only) == ("table", ["a=1"], ["x", "y"])
    assert (args.seeds, args.predictors, args.smoke) == ([0, -1], ["linear"], True)


def test_an_option_of_several_values_keeps_one_for_itself(several: Parser) -> None:
    with pytest.raises(ConfigError, match="required: sweep"):
        several.parse_args(["--only", "table"])


def test_an_option_of_several_values_given_twice_has_both(several: Parser) -> None:
    args = several.parse_args(["table", "--only", "x", "--only", "y", "--seeds", "1"])
    assert (args.only, args.seeds) == (["x", "y"], [1])


def test_a_wrong_value_is_named_as_the_option_s(several: Parser) -> None:
    with pytest.raises(ConfigError, match="--seeds: invalid int value: 'one'"):
        several.parse_args(["table", "--seeds", "one"])


def test_a_path_that_begins_with_a_dash_stands_behind_two(several: Parser) -> None:
    args = several.parse_args(["--smoke", "--", "-table", "a=1"])
    assert (args.sweep, args.overrides, args.smoke) == ("-table", ["a=1"], True)


def test_a_path_with_an_equals_sign_is_no_override(several: Parser) -> None:
    assert several.parse_args(["./lr=0.1", "a=1"]).sweep == "./lr=0.1"


def test_help_exits_with_zero(train: Parser, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        train.parse_args(["--help"])
    assert stop.value.code == 0
    assert isinstance(train, argparse.ArgumentParser)
    assert "usage: compactmtl train" in capsys.readouterr().out


def test_it_is_known_what_the_command_line_has(train: Parser) -> None:
    assert train.parse_args(["demo", "a=1"]).given == frozenset()
    assert train.parse_args(["demo", "--out", "runs", "--resume"]).given == {"out", "resume"}
    assert train.parse_args(["--out=runs", "demo"]).given == {"out"}


@pytest.mark.parametrize("line", [["demo", "--out", ""], ["--out=", "demo"]])
def test_an_empty_value_is_an_error(train: Parser, line: list[str]) -> None:
    with pytest.raises(ConfigError, match="argument --out: the value is empty"):
        train.parse_args(line)
