"""A sweep's search is checked when it is read."""

from __future__ import annotations

from pathlib import Path

import pytest

from compactmtl.config import resolve_sweep
from compactmtl.errors import ConfigError

PARAMETERS = "  parameters:\n    train.optimizer.lr: {kind: float, low: 1e-4, high: 1e-2, log: true}\n"
OBJECTIVES = "  objectives: [{name: delta_m}, {name: macs}]\n"
ENTRIES = "recipe: demo\nbaseline: plain\nentries:\n  plain: {}\n"


def parameters(text: str) -> str:
    return f"{ENTRIES}search:\n  parameters:\n    train.clip: {text}\n{OBJECTIVES}"


def objectives(text: str) -> str:
    return f"{ENTRIES}search:\n{PARAMETERS}  objectives: {text}\n"


def test_a_whole_one(tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(f"{ENTRIES}search:\n{PARAMETERS}{OBJECTIVES}", "utf-8")
    search = resolve_sweep(path).sweep.search
    assert search is not None
    assert [one.label for one in search.objectives] == ["delta_m", "macs"]
    assert search.sampler.name == "tpe" and search.pruning is None
    assert search.parameters["train.optimizer.lr"].log


def test_a_search_needs_no_entries_where_nothing_is_compared(tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(f"recipe: demo\nsearch:\n{PARAMETERS}  objectives: [{{name: macs}}]\n", "utf-8")
    assert resolve_sweep(path).sweep.entries == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (parameters("{kind: choice, values: []}"), "a choice needs values, and has none"),
        (parameters("{kind: choice, values: [1, 1]}"), "values has 1 twice"),
        (parameters("{kind: choice, values: [1], low: 0}"), "neither low, high, step nor log"),
        (parameters("{kind: float, low: 2, high: 1}"), "low must be less than high, found 2 and 1"),
        (parameters("{kind: float, low: 1, high: 1}"), "low must be less than high"),
        (parameters("{kind: float, low: 1}"), "needs low and high"),
        (parameters("{kind: float, values: [1], low: 1, high: 2}"), "belongs to a choice"),
        (parameters("{kind: float, low: 0, high: 1, log: true}"), "log needs low > 0"),
        (parameters("{kind: float, low: 1, high: 2, log: true, step: 0.1}"), "exclude each other"),
        (parameters("{kind: float, low: 0, high: 1, step: 0.3}"), "whole number of steps"),
        (parameters("{kind: float, low: 0, high: 1, step: 3}"), "whole number of steps"),
        (parameters("{kind: int, low: 0.5, high: 2}"), "whole numbers"),
        (parameters("{kind: real, low: 0, high: 2}"), "choice, float, int"),
        (objectives("[]"), "at least 1"),
        (objectives("[{name: latency}]"), "needs the target"),
        (objectives("[{name: macs, target: onnxruntime-cpu}]"), "target belongs to latency"),
        (objectives("[{name: macs}, {name: macs}]"), "macs twice"),
        (objectives("[{name: flops}]"), "flops"),
        ("recipe: demo\nentries: {}\n", "entries needs at least one"),
        (f"recipe: demo\nsearch:\n{PARAMETERS}{OBJECTIVES}", "delta_m needs the sweep's baseline"),
        (f"search:\n{PARAMETERS}  objectives: [{{name: macs}}]\n", "search: no recipe"),
        (
            f"recipe: demo\nentries:\n  best: {{}}\nsearch:\n{PARAMETERS}  objectives: [{{name: macs}}]\n",
            "entries.best",
        ),
        (
            "recipe: demo\nsearch:\n  parameters:\n    seed: {kind: int, low: 0, high: 3}\n  objectives: [{name: macs}]\n",
            "seed is no parameter",
        ),
    ],
)
def test_a_wrong_one_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(text, "utf-8")
    with pytest.raises(ConfigError, match=message):
        resolve_sweep(path)


def test_paths_in_it_begin_at_its_folder(tmp_path: Path) -> None:
    (tmp_path / "weights.pt").touch()
    path = tmp_path / "space.yaml"
    path.write_text(
        f"{ENTRIES}search:\n  recipe: mine.yaml\n  overrides: [model.weights=weights.pt]\n{PARAMETERS}{OBJECTIVES}",
        "utf-8",
    )
    search = resolve_sweep(path).sweep.search
    assert search is not None and search.recipe == str(tmp_path / "mine.yaml")
    assert search.overrides == (f"model.weights={tmp_path / 'weights.pt'}",)
