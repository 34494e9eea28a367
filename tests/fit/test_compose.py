"""The recipes of a fit: what the subject, the words and the budget come to."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from compactmtl.cli.main import main
from compactmtl.config import trusting
from compactmtl.config.trust import UntrustedError, naming
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
