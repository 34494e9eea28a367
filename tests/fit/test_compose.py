"""The recipes of a fit: what the subject, the words and the budget come to."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from compactmtl.cli.fit import _as_given, _budget
from compactmtl.cli.main import main, parser_of
from compactmtl.config import trusting
from compactmtl.config.trust import UntrustedError, naming
from compactmtl.config.yaml import flow
from compactmtl.errors import USAGE, ConfigError
from compactmtl.fit import Budget, Road, plan_road

MODULE = """
RECIPE = {
    "data": {"name": "scenes", "size": [32, 48], "root": "pictures"},
    "tasks": {"depth": {"kind": "depth"}},
    "train": {"epochs": 7},
}


def build():
    raise AssertionError("a plan builds nothing")
"""
FILE = """
data: {name: scenes, size: [16, 24]}
tasks:
  segmentation: {kind: segmentation, head: {kind: fcn, width: 4}}
  depth: {kind: depth}
model: {encoder: {name: resnet34}}
sparsity: {controller: {mac_reduction: 0.3}}
overparam: {kind: svd}
targets: [openvino]
"""
HALF = Budget("macs-reduction", 0.5)


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fit_module.py").write_text(MODULE)
    (tmp_path / "base.yaml").write_text(FILE)
    path = list(sys.path)
    yield tmp_path
    sys.path[:] = path
    for name in ("fit_module", "bare_module"):
        sys.modules.pop(name, None)


def road(subject: str, *words: str, budget: Budget | None = HALF, **options: str | bool) -> Road:
    with naming("fit_module:build"):
        return plan_road(subject, words, budget=budget, **options)  # type: ignore[arg-type]


def test_a_module_with_its_recipe(place: Path) -> None:
    planned = road("fit_module:build", "train.epochs=3")
    recipe = planned.shrunk.recipe
    assert recipe.model.factory == "fit_module:build"
    assert recipe.train.epochs == 3
    assert recipe.data.root == str(place / "pictures")  # relative to the module, as in a recipe's file
    assert recipe.sparsity is not None and recipe.sparsity.scope == "model"
    assert recipe.sparsity.selective is not None and recipe.sparsity.selective.mac_reduction == 0.5
    assert recipe.targets == ("onnxruntime-cpu",)
    assert planned.run == Path("runs/fit_module/onnxruntime-cpu-macs-0.5")
    dense = planned.dense
    assert dense is not None and dense.recipe.sparsity is None
    assert recipe.model.weights == str(place / "runs/fit_module/dense/checkpoints/best/weights.safetensors")
    assert planned.plain.recipe.model.weights is None


def test_a_recipe_for_a_module_loses_its_network() -> None:
    recipe = road("fit_module:build", base="base.yaml").shrunk.recipe
    assert recipe.model.encoder.name == "resnet18"  # the default, which nothing reads
    assert all(task.head is None for task in recipe.tasks.values())
    assert list(recipe.tasks) == ["segmentation", "depth"]


@pytest.mark.parametrize(
    ("budget", "key", "amount", "name"),
    [
        (HALF, "mac_reduction", 0.5, "openvino-macs-0.5"),
        (Budget("latency-ms", 5.0), "latency.ms", 5.0, "openvino-5ms"),
        (Budget("speedup", 2.5), "latency.speedup", 2.5, "openvino-2.5x"),
        (None, "mac_reduction", 0.3, "openvino-macs-0.3"),
    ],
)
def test_a_budget_takes_the_place_of_the_recipe_s(
    budget: Budget | None, key: str, amount: float, name: str, place: Path
) -> None:
    planned = road("base.yaml", budget=budget)
    section = planned.reduction
    assert (section.key, section.amount) == (key, amount)
    recipe = planned.shrunk.recipe
    assert recipe.sparsity is not None and recipe.sparsity.controller is not None
    assert planned.name == name
    assert recipe.overparam is not None
    assert planned.dense is not None and planned.dense.recipe.overparam is None
    if section.latency is not None:
        assert section.latency.target == "openvino"
        assert section.latency.table == str(place / f"runs/base/{name}.latency.json")


def test_a_recipe_of_one_strength_gets_a_budget() -> None:
    planned = road("base.yaml", "sparsity={}", "sparsity.strength=1e-4")
    sparsity = planned.shrunk.recipe.sparsity
    assert sparsity is not None and sparsity.strength is None
    assert sparsity.selective is not None and sparsity.selective.mac_reduction == 0.5


def test_a_table_of_the_recipe_is_taken(place: Path) -> None:
    words = ["sparsity={}", "sparsity.selective.latency.ms=3", "sparsity.selective.latency.table=jetson.json"]
    planned = road("base.yaml", *words, budget=None)
    assert planned.own_table
    assert planned.reduction.latency is not None
    assert planned.reduction.latency.table == str(place / "jetson.json")


TABLE = {
    "version": 1, "target": "openvino", "precision": "fp32", "batch": 1, "device": "a CPU", "rest_ms": 0.1,
    "layers": {"stem": {"outputs": [4], "ms": [[1.0]]}},
}  # fmt: skip


@pytest.mark.parametrize("key", ["latency: {target: openvino, speedup: 2, table: t.json}", "latency: {table: t.json, ms: 9}",
                                 "latency_reduction: 0.5, latency_table: t.json"])  # fmt: skip
def test_a_budget_keeps_the_table_that_lies_beside_the_recipe(key: str, place: Path) -> None:
    folder = place / "recipes of mine"
    folder.mkdir()
    (folder / "base.yaml").write_text(FILE.replace("mac_reduction: 0.3", key))
    (folder / "t.json").write_text(json.dumps(TABLE))
    planned = road(str(folder / "base.yaml"), budget=Budget("latency-ms", 5.0))
    latency = planned.reduction.latency
    assert planned.own_table and latency is not None
    assert (latency.target, latency.ms, latency.table) == ("openvino", 5.0, str(folder / "t.json"))
    assert latency.speedup is None and latency.reduction is None
    # The recipe's own budget keeps it too.
    own = road(str(folder / "base.yaml"), budget=None).reduction.latency
    assert own is not None and (own.target, own.table) == ("openvino", str(folder / "t.json"))


def test_a_table_of_another_target_is_measured_anew(place: Path) -> None:
    words = ["sparsity={}", "sparsity.selective.latency={target: openvino, ms: 3, table: jetson.json}"]
    planned = road("base.yaml", *words, budget=Budget("speedup", 2.0), target="onnxruntime-cpu")
    latency = planned.reduction.latency
    assert not planned.own_table and latency is not None
    assert (latency.target, latency.speedup, latency.ms) == ("onnxruntime-cpu", 2.0, None)
    assert latency.table == str(place / "runs/base/onnxruntime-cpu-2x.latency.json")


@pytest.mark.parametrize("name", ["t.yaml", "a target, of {mine}.yaml", 'it\'s #1: "b".yaml', "[x].yaml"])
@pytest.mark.parametrize("where", ["recipe", "budget", "command"])
def test_a_targets_path_begins_at_the_file_that_names_it(name: str, where: str, place: Path) -> None:
    folder = place / "else where"
    folder.mkdir()
    there = place if where == "command" else folder
    (there / name).write_text("backend: onnxruntime\n")
    quoted = flow(name)
    text = FILE
    if where == "recipe":
        text = text.replace("[openvino]", f"[{quoted}]")
    elif where == "budget":
        text = text.replace("mac_reduction: 0.3", f"latency: {{target: {quoted}, ms: 4}}")
    (folder / "base.yaml").write_text(text)
    given = name if where == "command" else None
    with naming("fit_module:build"):
        planned = plan_road(str(folder / "base.yaml"), budget=Budget("latency-ms", 5.0), target=given)
    assert planned.target.backend == "onnxruntime"
    assert planned.plain.recipe.targets == (str(there / name),)
    assert planned.reduction.latency is not None
    assert Path(planned.reduction.latency.target or "").resolve() == there / name


@pytest.mark.parametrize(
    ("word", "key"),
    [("sparsity=1", "`sparsity`"), ("sparsity=[a]", "`sparsity`"), ("sparsity.selective=0.5", "`sparsity.selective`"),
     ("sparsity.controller.latency=5", "`sparsity.controller.latency`")],
)  # fmt: skip
def test_a_section_that_is_none_is_named(word: str, key: str) -> None:
    for budget in (HALF, None):
        with pytest.raises(ConfigError) as caught:
            road("base.yaml", word, budget=budget)
        assert f"{key}: expected a mapping or null" in caught.value.message


def test_a_budget_of_parameters_is_called_so() -> None:
    planned = road("base.yaml", "sparsity.controller.mac_reduction=null",
                   "sparsity.controller.parameter_reduction=0.25", budget=None)  # fmt: skip
    assert planned.name == "openvino-parameters-0.25"


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("x = 1\ny = x / 0\n", r"bare_module fails when imported: .*bare_module\.py:2: ZeroDivisionError"),
        ("def build(:\n", r"bare_module fails when imported: .*bare_module\.py:1: SyntaxError"),
        ("import sys\nsys.exit(0)\n", "bare_module fails when imported: .*SystemExit"),
        ("import a_package_that_is_not_there\n", "bare_module needs the module a_package_that_is_not_there"),
        (
            "def recipe():\n    return {}['data']\n",
            r"bare_module\.recipe\(\) fails: .*bare_module\.py:2: KeyError",
        ),
        (
            "RECIPE = {'data': {'name': 'scenes', 'size': {1, 2}}}\n",
            r"bare_module\.RECIPE\.data\.size is a set",
        ),
        ("RECIPE = {'data': {'mean': [float('nan')]}}\n", r"bare_module\.RECIPE\.data\.mean is nan"),
        ("RECIPE = 3\n", r"bare_module\.RECIPE is a int"),
    ],
)
def test_what_the_users_module_does_wrong_is_no_bug_of_ours(
    code: str, told: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "bare_module.py").write_text(code)
    assert main(["fit", "bare_module:build", "--macs-reduction", "0.5"]) == USAGE
    assert re.search(told, capsys.readouterr().err)


def test_a_recipe_of_a_module_may_hold_paths(place: Path) -> None:
    code = MODULE.replace('"pictures"', 'Path(__file__).parent / "pictures"')
    (place / "fit_module.py").write_text(f"from pathlib import Path\n{code}")
    assert road("fit_module:build").shrunk.recipe.data.root == str(place / "pictures")


NAMED = """
from torch import nn


def rate(step):
    return 0.1


class Net(nn.Module):
    pass


def build():
    return Net()
"""


@pytest.mark.parametrize(
    ("subject", "hint"),
    [
        ("bare_module", "did you mean bare_module:build or bare_module:Net?"),
        ("bare_module.py", "did you mean bare_module:build or bare_module:Net?"),
        ("bare_module.Net", "did you mean bare_module:Net?"),
        ("bare_module.py:build", "name its module: bare_module:build"),
        ("base", "`compactmtl recipes list`"),
    ],
)
@pytest.mark.parametrize("verb", [["fit", "--macs-reduction", "0.5"], ["latency", "--input", "1x3x8x8"]])
def test_a_module_without_its_function_is_asked_for_one(
    verb: list[str], subject: str, hint: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "bare_module.py").write_text(NAMED)
    assert main([*verb, subject]) == USAGE
    assert hint in capsys.readouterr().err
    assert "bare_module" not in sys.modules or ":" in subject  # reading a name runs nothing


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["bare_module:buidl", "--input", "1x3x8x8"], "its networks: Net, build"),
        (["bare_module:rate", "--input", "1x3x8x8"], "bare_module:rate: missing a required argument: 'step'"),
        (["bare_module:build", "--input", "1,3,8,8"], "did you mean --input 1x3x8x8?"),
        (["bare_module:build", "--input", "1x3x8x"], "'' is no size of 1 or more"),
        (["bare_module:build", "--input", "1x3x0x8"], "'0' is no size of 1 or more"),
        (["bare_module:build", "--input", "9" * 5000], "is no size of 1 or more"),
        (["bare_module:build", "--input", "9" * 20], "no machine holds so many numbers"),
        (["bare_module:build", "--input", ""], "it takes 1x3x224x224"),
        (["bare_module:build", "--input", "1x3x8.5x8"], "'8.5' is no size of 1 or more"),
        (["bare_module:fails", "--input", "1x3x8x8"], "bare_module:fails fails: "),
        (["bare_module:number", "--input", "1x3x8x8"], "returned a int"),
    ],
)
def test_a_module_that_latency_cannot_measure(
    words: list[str], told: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = "def fails():\n    raise KeyError('width')\n\n\ndef number():\n    return 3\n"
    (place / "bare_module.py").write_text(f"{NAMED}\n\n{more}")
    assert main(["latency", *words]) == USAGE
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["--latency-ms", "0.01"], {"latency.ms": "--latency-ms"}),
        (["--speedup", "9"], {"latency.speedup": "--speedup"}),
        (["--macs-reduction", "0.9"], {"mac_reduction": "--macs-reduction"}),
        ([], {}),  # the recipe's own budget
    ],
)
def test_a_budget_is_called_by_the_option_that_gave_it(words: list[str], names: dict[str, str]) -> None:
    args = parser_of("fit").parse_args(["base.yaml", *words])
    called = _as_given(args, road("base.yaml", budget=_budget(args)))
    for key in ("latency.ms", "latency.speedup", "mac_reduction", "min_channels"):
        dotted = f"sparsity.controller.{key}"
        assert called(dotted) == names.get(key, dotted)


def test_without_a_dense_network() -> None:
    planned = road("fit_module:build", "model.weights=mine.pth", dense=False)
    assert planned.dense is None
    assert planned.shrunk.recipe.model.weights == str(Path("mine.pth").absolute())


def test_a_path_with_marks_in_it(place: Path) -> None:
    planned = road("fit_module:build", budget=Budget("speedup", 2.0), out="it's: #1")
    assert planned.reduction.latency is not None
    assert planned.reduction.latency.table == str(
        place / "it's: #1/fit_module/onnxruntime-cpu-2x.latency.json"
    )


@pytest.mark.parametrize(
    ("subject", "words", "budget", "message"),
    [
        ("bare_module:build", [], HALF, "nothing says data and tasks"),
        ("fit_module:build", [], None, "no budget"),
        ("fit_module:build", ["train.epoch=3"], HALF, "unknown key `train.epoch`"),
        ("nowhere:build", [], HALF, "no module nowhere"),
        ("nowhere", [], HALF, "no recipe named"),
        ("fit_module:build", ["targets=[nowhere]"], HALF, "no target named"),
    ],
)
def test_what_no_fit_can_be(
    subject: str, words: Sequence[str], budget: Budget | None, message: str, place: Path
) -> None:
    (place / "bare_module.py").write_text("def build():\n    pass\n")
    with trusting(), pytest.raises(ConfigError) as caught:
        plan_road(subject, words, budget=budget)
    assert message in caught.value.message


def test_only_the_module_that_is_named_may_be_imported(place: Path) -> None:
    (place / "bare_module.py").write_text("raise AssertionError('nobody allowed this')\n")
    with pytest.raises(UntrustedError, match="bare_module"):
        road("bare_module:build")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--latency-ms", "0"], "--latency-ms 0: expected a number above 0"),
        (["--speedup", "1"], "--speedup 1: expected a number above 1"),
        (["--macs-reduction", "1"], "above 0 and below 1"),
        (["--macs-reduction", "50"], "above 0 and below 1"),
        (["--speedup", "2", "--latency-ms", "3"], "not allowed with"),
        (["--recipe", "base.yaml", "--speedup", "2"], "is a recipe itself"),
    ],
)
def test_numbers_that_are_no_budget(
    words: Sequence[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", "base.yaml", *words]) == USAGE
    assert message in capsys.readouterr().err
