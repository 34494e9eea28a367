"""`compactmtl explain` and the reference pages say the same of every key."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from compactmtl import cli
from compactmtl.cli.explain import option_keys, option_names, schema_keys
from compactmtl.cli.main import VERBS, main
from compactmtl.config.explain import READERS, explained, matches
from compactmtl.config.lookup import Kind
from compactmtl.errors import ConfigError

PAGES: dict[Kind, str] = {"recipe": "recipe.md", "target": "target.md", "sweep": "sweep.md"}
REFERENCE = Path(__file__).parents[2] / "docs" / "reference"
KNOWN = list(schema_keys())


def rows(page: str) -> dict[str, tuple[str, str, str]]:
    """Type, default and meaning by key, as the tables of a page have them."""
    table = re.compile(r"^\| `([^`]+)` \| (.*?) \| (.*?) \| (.*?) \|$", re.MULTILINE)
    text = (REFERENCE / page).read_text("utf-8").replace("\\|", "¦")
    return {
        name: (kind.replace("¦", "|"), default.strip("`").replace("¦", "|"), meaning.replace("¦", "|"))
        for name, kind, default, meaning in table.findall(text)
    }


@pytest.mark.parametrize("kind", PAGES)
def test_the_command_says_of_every_key_what_its_page_says(kind: Kind) -> None:
    page = rows(PAGES[kind])
    assert set(page) == {one.key.name for one in KNOWN if one.kind == kind}
    for name, (values, default, meaning) in page.items():
        found = [one for one in matches(f"{kind}.{name}", KNOWN) if one.key.name == name]
        assert len(found) == 1, name
        told = " ".join(" ".join(explained(found[0], KNOWN)).split())
        for text in (values, default, meaning):
            assert " ".join(text.split()) in told, name


@pytest.mark.slow
def test_options_are_those_of_the_lists() -> None:
    text = (REFERENCE / "lists.md").read_text("utf-8")
    for one in option_keys():
        if "encoder" not in one.owner:
            assert f"| `{one.key.name}` | {one.key.type} |" in text, one


@pytest.mark.parametrize("kind", PAGES)
def test_every_section_says_who_reads_it(kind: Kind) -> None:
    top = {one.key.name for one in KNOWN if one.kind == kind and "." not in one.key.name}
    assert "" in READERS[kind] or set(READERS[kind]) == top


def named(text: str) -> set[str]:
    """The commands that a reader's text names."""
    return set(re.findall(r"[a-z]+", text)) & set(VERBS)


def verbs_with(pattern: str) -> set[str]:
    """Commands whose module has a text."""
    sources = {verb: (Path(cli.__file__).parent / f"{verb}.py").read_text("utf-8") for verb in VERBS}
    return {verb for verb, source in sources.items() if re.search(pattern, source)}


def test_every_command_that_reads_a_recipe_is_a_reader() -> None:
    readers = READERS["recipe"]
    reading = verbs_with(r"\bRun\.open\(|\b(load_recipe|resolve_recipe|plan_road)\b")
    assert {"train", "fit", "tasks", "export"} <= reading
    reading.remove("demo")  # which gives a recipe of its own to other commands
    assert reading <= set().union(*map(named, readers.values()))


def test_what_trains_reads_all_that_decides_a_training() -> None:
    """But for what is read after it."""
    training = verbs_with(r"from compactmtl\.(train|fit|sweep)(\.run|\.compose)? import")
    assert training == {"train", "fit", "sweep"}
    after = {"description", "surgery", "targets", "single_task"}
    for section, text in READERS["recipe"].items():
        assert section in after or training <= named(text), section


def test_a_key_is_found_by_its_end_and_by_names_of_ones_own() -> None:
    assert [one.key.name for one in matches("decay", KNOWN)] == ["train.ema.decay"]
    assert [one.key.name for one in matches("tasks.my_depth.loss", KNOWN)] == ["tasks.*.loss"]
    assert {one.kind for one in matches("description", KNOWN)} == {"recipe", "target", "sweep"}
    assert {one.kind for one in matches("target.description", KNOWN)} == {"target"}


@pytest.mark.parametrize(
    ("word", "meant"), [("train.emma", "train.ema"), ("data.chanels", "data.channels"), ("emaa", "train.ema")]
)
def test_a_wrong_key_names_the_nearest(word: str, meant: str) -> None:
    with pytest.raises(ConfigError, match="no key") as caught:
        matches(word, KNOWN)
    assert meant in caught.value.hint


def test_the_command_lists_sections_their_keys_and_who_sets_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain"]) == 0
    listed = capsys.readouterr().out
    assert "recipe keys" in listed and "  balancing" in listed and "target keys" in listed
    assert main(["explain", "train.ema", "backend"]) == 0
    told = capsys.readouterr().out
    assert "train.ema.warmup" in told and "read by   compactmtl train" in told
    assert "onnxruntime-cpu (onnxruntime)" in told
    assert main(["explain", "train.epoch"]) == 2
    assert "train.epochs" in capsys.readouterr().err


def test_names_of_options_that_are_read_from_text_are_those_of_the_classes() -> None:
    assert set(option_names()) == {one.key.name for one in option_keys()}


@pytest.mark.parametrize(
    ("word", "hint"),
    [("nosie", "did you mean data.options.noise?"), ("data.options.nosie", "did you mean data.options.noise"),
     ("foo", "`compactmtl explain` lists the sections"), ("foo.bar.baz", "lists the sections")],
)  # fmt: skip
def test_a_key_that_there_is_not_is_refused_without_loading_torch(word: str, hint: str) -> None:
    code = (
        "import sys; from compactmtl.cli.main import main; print(main(sys.argv[1:]), 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "explain", word], capture_output=True, text=True, check=True
    )
    assert hint in done.stderr
    assert done.stdout.split() == ["2", "False"]


@pytest.mark.slow
def test_an_option_says_whose_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "data.options.noise"]) == 0
    assert "the data set scenes" in capsys.readouterr().out
    assert main(["explain", "tasks.it.options.low"]) == 0
    assert "tasks of kind binned_regression" in capsys.readouterr().out
