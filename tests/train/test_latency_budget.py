"""Training to a latency budget, on a made-up runtime whose kernels take channels in blocks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from compactmtl.config import Resolved
from compactmtl.errors import ConfigError
from compactmtl.latency import PairedClock
from compactmtl.runs import compact_run
from compactmtl.runs.checkpoint import load_state
from compactmtl.train import begin, dry_run, train
from compactmtl.train.build import build_session
from compactmtl.train.dry_run import check_recipe
from compactmtl.train.session import Session
from compactmtl.train.sparse import table_of
from tests.support import made_up_runtime
from tests.support.interrupting import trained_in_two_parts
from tests.support.made_up_runtime import cost

Make = Callable[..., Resolved]
BUDGET = """
sparsity:
  scope: model
  shrink_every: 1
  selective:
    latency: {target: onnxruntime-cpu, LIMIT}
    start: 0.1
    end: 0.6
    every: 1
    threshold: 0.5
    min_channels: 2
surgery: {align: 4}
"""


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[int]:
    """The made-up runtime in place of the target's; one number a network that was timed."""
    return made_up_runtime.install(monkeypatch, tmp_path / "cache")


def recipe(tiny: Make, limit: str, *overrides: str) -> Resolved:
    return tiny("tasks.segmentation.head.dropout=0", *overrides, more=BUDGET.replace("LIMIT", limit))


@pytest.mark.slow
def test_the_network_that_is_left_is_within_the_budget(
    tiny: Make, calls: list[int], tmp_path: Path, quiet: Callable[[], Console]
) -> None:
    resolved = recipe(tiny, "reduction: 0.4")
    foreseen = dry_run(resolved.recipe).remaining
    assert (
        foreseen is not None and foreseen.milliseconds is not None and foreseen.whole_milliseconds is not None
    )
    run = train(resolved, tmp_path / "run", console=quiet())
    whole, small = cost(run.load_plain()), cost(compact_run(run).model)
    budget = 0.6 * whole
    assert 0.85 * budget <= small <= budget
    assert foreseen.milliseconds == pytest.approx(small, rel=0.15)


@pytest.mark.slow
@pytest.mark.parametrize(("error", "warned"), [(0.04, False), (0.46, True)])
def test_a_table_far_off_its_own_networks_is_warned_of(
    error: float, warned: bool, tiny: Make, calls: list[int]
) -> None:
    sparsifier = build_session(recipe(tiny, "speedup: 1.5").recipe).sparsifier
    assert sparsifier is not None and sparsifier.steering.table is not None
    sparsifier.steering.table = sparsifier.steering.table.model_copy(update={"error": error})
    lines = [line for line in sparsifier.steering.notes() if line.startswith("warning: ")]
    assert bool(lines) is warned
    assert all("46% off" in line and "latency RECIPE" in line and "--again" in line for line in lines)


@pytest.mark.slow
def test_what_is_measured_moves_no_random_number_and_a_resumed_run_is_bit_equal(
    tiny: Make,
    calls: list[int],
    tmp_path: Path,
    quiet: Callable[[], Console],
) -> None:
    resolved = recipe(tiny, "speedup: 1.5")
    run = train(resolved, tmp_path / "measured", console=quiet())
    assert calls
    calls.clear()
    known = train(resolved, tmp_path / "known", console=quiet())
    assert not calls  # another run of the recipe reads the cache
    resumed = trained_in_two_parts(resolved, tmp_path / "parts", quiet(), 6)
    expected = run.load_model("last").state_dict()
    for other in (known, resumed):
        for name, value in other.load_model("last").state_dict().items():
            assert torch.equal(value, expected[name]), name


@pytest.mark.slow
@pytest.mark.parametrize("align", ["4", "auto"])
def test_a_run_that_goes_on_elsewhere_chooses_by_the_table_of_its_start(
    align: str,
    tiny: Make,
    calls: list[int],
    tmp_path: Path,
    quiet: Callable[[], Console],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """There its cache is empty, and networks take twice as long; a share is of the dense network in the same rounds."""
    resolved = recipe(tiny, "speedup: 1.5", f"surgery.align={align}")
    run = train(resolved, tmp_path / "whole", console=quiet())
    built: list[Session] = []

    def build(*given: Any, **named: Any) -> Session:
        built.append(build_session(*given, **named))
        return built[-1]

    def elsewhere() -> None:
        capsys.readouterr()
        made_up_runtime.install(monkeypatch, tmp_path / "elsewhere", factor=2.0)
        monkeypatch.setattr(begin, "build_session", build)

    resumed = trained_in_two_parts(resolved, tmp_path / "parts", quiet(), 2, elsewhere)
    assert "timing the whole network" not in capsys.readouterr().err
    began = table_of(load_state(run.path / "checkpoints" / "last")["session"])  # type: ignore[index]
    assert began is not None and built[0].sparsifier is not None
    assert built[0].sparsifier.steering.table == began
    expected = run.load_model("last").state_dict()
    for name, value in resumed.load_model("last").state_dict().items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        ("ms: 1000", r"latency\.ms 1000: the original model takes .* nothing to remove"),
        ("ms: 0.001", r"latency\.ms 0\.001 cannot be reached: .* ms is the least"),
        ("speedup: 1000", r"latency\.speedup 1000 cannot be reached"),
    ],
)
@pytest.mark.slow
def test_a_budget_that_says_nothing_or_cannot_be_met_ends_before_training(
    limit: str, message: str, tiny: Make, calls: list[int], tmp_path: Path, quiet: Callable[[], Console]
) -> None:
    with pytest.raises(ConfigError, match=message):
        train(recipe(tiny, limit), tmp_path / "run", console=quiet())
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_table_that_is_wrong_near_the_budget_is_put_right(
    tiny: Make,
    calls: list[int],
    tmp_path: Path,
    quiet: Callable[[], Console],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In training, every network but the dense one takes a quarter more than it did when the table was made."""
    monkeypatch.setattr(
        PairedClock, "_timed", lambda clock, small: (cost(clock._dense), 1.25 * cost(small), 0.0)
    )
    run = train(recipe(tiny, "reduction: 0.4"), tmp_path / "run", console=quiet())
    whole, small = cost(run.load_plain()), 1.25 * cost(compact_run(run).model)
    assert 0.8 * 0.6 * whole <= small <= 0.6 * whole
    last = [line for line in (run.path / "log.jsonl").read_text().splitlines() if '"epoch"' in line][-1]
    assert '"latency": [{"share"' in last


@pytest.mark.slow
def test_a_recipe_is_checked_without_measuring_for_minutes(tiny: Make, calls: list[int]) -> None:
    check_recipe(recipe(tiny, "reduction: 0.4").recipe)
    assert not calls
