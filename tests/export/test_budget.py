"""A recipe's latency budget becomes a gate of the export to its target, and of no other."""

from __future__ import annotations

from pathlib import Path

import pytest

from compactmtl.backends import load_target
from compactmtl.export.run import with_budget
from compactmtl.runs import Run
from tests.support.real_runs import SCENES, write_run

TARGET = load_target("onnxruntime-cpu")


def run_with(tmp_path: Path, budget: str) -> Run:
    return write_run(tmp_path / "run", f"{SCENES}sparsity: {{selective: {{latency: {budget}}}}}\n")


@pytest.mark.parametrize(
    ("budget", "bounds"),
    [
        ("{target: mine, ms: 5}", (5.0, None)),
        ("{target: mine, speedup: 3}", (None, 3.0)),
        ("{target: mine, reduction: 0.75}", (None, 4.0)),
        ("{target: other, ms: 5}", (None, None)),
        ("{table: some.json, reduction: 0.5}", (None, None)),
    ],
)
def test_the_gate_is_of_the_budget_s_target(
    budget: str, bounds: tuple[float | None, float | None], tmp_path: Path
) -> None:
    latency = with_budget(run_with(tmp_path, budget), "mine", TARGET).latency
    assert (latency.max_ms, latency.min_speedup) == bounds


def test_a_target_by_path_is_named_as_its_export(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("backend: onnxruntime\n")
    run = run_with(tmp_path, "{target: mine.yaml, ms: 5}")
    assert with_budget(run, "mine", TARGET).latency.max_ms == 5.0


def test_the_stricter_bound_holds(tmp_path: Path) -> None:
    bounded = TARGET.model_copy(update={"latency": TARGET.latency.model_copy(update={"max_ms": 2.0})})
    assert with_budget(run_with(tmp_path, "{target: mine, ms: 5}"), "mine", bounded).latency.max_ms == 2.0


def test_a_speedup_is_not_held_against_another_network(tmp_path: Path) -> None:
    """It is of the run's own network before surgery, which a dense run of the same network is as fast as."""
    run = run_with(tmp_path, "{target: mine, speedup: 3}")
    dense = write_run(tmp_path / "dense", SCENES)
    narrow = write_run(tmp_path / "narrow", SCENES.replace("width: 4", "width: 3"))
    assert SCENES.count("width: 4")
    assert with_budget(run, "mine", TARGET, baseline=dense).latency.min_speedup == 3
    assert with_budget(run, "mine", TARGET, baseline=narrow).latency.min_speedup is None
