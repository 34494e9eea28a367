from collections.abc import Callable
from pathlib import Path

import pytest

from compactmtl.cli.main import main
from compactmtl.config import load_recipe
from compactmtl.config.lookup import entries

Run = Callable[..., tuple[int, str, str]]
MINE = """\
description: mine
data: {name: scenes, size: [64, 64]}
tasks:
  depth: {kind: depth}
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `compactmtl recipes …` in a folder with one recipe, `mine`, and one that extends it, `kid`."""
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "mine.yaml").write_text(MINE, "utf-8")
    (tmp_path / "recipes" / "kid.yaml").write_text("extends: mine\nseed: 3\n", "utf-8")
    monkeypatch.chdir(tmp_path)

    def invoke(*words: str) -> tuple[int, str, str]:
        return main(["recipes", *words]), *capsys.readouterr()

    return invoke


def test_list_has_names_and_descriptions(run: Run) -> None:
    code, shown, _ = run("list")
    assert code == 0
    assert ["mine", "mine"] in [line.split() for line in shown.splitlines()]
    assert [line.split()[0] for line in shown.splitlines()] == [entry.name for entry in entries("recipe")]


def test_show_is_the_file_under_its_path(run: Run) -> None:
    assert run("show", "kid") == (0, "# recipes/kid.yaml\nextends: mine\nseed: 3\n", "")


def test_show_resolved_has_every_value_with_its_origin(run: Run, tmp_path: Path) -> None:
    code, shown, _ = run("show", "kid", "--resolved", "train.epochs=9")
    assert code == 0
    values = {line.split(":")[0].strip(): line for line in shown.splitlines()}
    assert values["seed"].split() == ["seed:", "3", "#", "recipes/kid.yaml:2"]
    assert values["size"].split("#")[1].strip() == "recipes/mine.yaml:2"
    assert values["epochs"].split() == ["epochs:", "9", "#", "override"]
    assert values["batch_size"].endswith("# default")
    (tmp_path / "shown.yaml").write_text(shown, "utf-8")  # and it is a recipe itself
    assert load_recipe("shown.yaml") == load_recipe("kid", ["train.epochs=9"])


def test_copy_writes_a_recipe_that_is_the_same(run: Run) -> None:
    assert run("copy", "kid")[0] == 0
    assert load_recipe("kid.yaml") == load_recipe("kid")
    assert run("copy", "kid", "--resolved", "deep/er/x.yaml")[0] == 0
    assert load_recipe("deep/er/x.yaml") == load_recipe("kid")
    assert "extends" not in Path("deep/er/x.yaml").read_text("utf-8")


def test_copy_into_a_folder_keeps_the_name(run: Run) -> None:
    Path("folder").mkdir()
    assert run("copy", "kid", "folder")[0] == 0
    assert load_recipe("folder/kid.yaml") == load_recipe("kid")


def test_copy_overwrites_only_when_told(run: Run) -> None:
    Path("x.yaml").write_text("precious", "utf-8")
    code, _, shown = run("copy", "kid", "x.yaml")
    assert (code, Path("x.yaml").read_text("utf-8")) == (2, "precious")
    assert "--force" in shown
    assert run("copy", "kid", "x.yaml", "--force")[0] == 0
    assert load_recipe("x.yaml") == load_recipe("kid")


def test_copy_refuses_an_extends_that_would_not_hold_elsewhere(run: Run) -> None:
    Path("recipes/near.yaml").write_text("extends: mine.yaml\n", "utf-8")
    code, _, shown = run("copy", "near", "x.yaml")
    assert (code, Path("x.yaml").exists()) == (2, False)
    assert "recipes/near.yaml:1" in shown
    assert "--resolved" in shown


def test_check_passes_what_is_right(run: Run) -> None:
    assert run("check", "mine", "kid") == (0, "ok     mine\nok     kid\n", "")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("sed: 1", "recipes/bad.yaml:2: unknown key `sed`"),
        ("targets: [nowhere]", "no target named `nowhere`"),
        ("seed: [", "recipes/bad.yaml:3"),
        ("data: {name: scnes}", "did you mean scenes"),
        ("data: {options: {nois: 1}}", "unknown key `data.options.nois`"),
        ("model: {encoder: {name: resnet81}}", "timm has no model 'resnet81'"),
        ("tasks: {age: {kind: regression}}", "age"),
        ("sparsity: {selective: {latency: {target: nowhere, ms: 1}}}", "no target named `nowhere`"),
        ("sparsity: {selective: {latency: {target: onnxruntime-cpu, ms: 0}}}", "latency.ms"),
        ("sparsity: {selective: {latency: {target: onnxruntime-cpu, ms: -1}}}", "latency.ms"),
    ],
)
def test_check_names_every_fault_and_goes_on(run: Run, line: str, says: str) -> None:
    Path("recipes/bad.yaml").write_text(f"extends: mine\n{line}\n", "utf-8")
    code, shown, faults = run("check", "bad", "mine")
    assert (code, shown) == (2, "fault  bad\nok     mine\n")
    assert says in faults


@pytest.mark.parametrize("words", [("show", "mnie"), ("copy", "mnie"), ("check", "mnie")])
def test_an_unknown_recipe_comes_with_the_nearest(run: Run, words: tuple[str, ...]) -> None:
    code, _, shown = run(*words)
    assert code == 2
    assert "did you mean mine" in shown


@pytest.mark.parametrize("words", [(), ("lst",), ("show",), ("list", "--nope")])
def test_a_wrong_command_line_is_a_user_s_error(run: Run, words: tuple[str, ...]) -> None:
    code, _, shown = run(*words)
    assert code == 2
    assert "--help" in shown
