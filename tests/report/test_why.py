"""The report's section on what a smaller network's time is made of."""

from __future__ import annotations

from compactmtl.report.why import why_not_faster
from compactmtl.verify.latency import latency_result
from compactmtl.verify.result import AccuracyResult, Measured, ParityResult, Verification
from tests.verify.test_explain import model, stats, total


def verification(measured: dict[str, Measured]) -> Verification:
    latency = latency_result(
        {name: stats(name, total(one) if one.layers else 1.0) for name, one in measured.items()},
        "dense" if "dense" in measured else next(iter(measured)),
        warmup=0,
        settle=0,
        load_average=None,
    )
    return Verification(
        target="cpu",
        bundle_sha256="0",
        parity=ParityResult(outputs=(), samples=1, passed=True),
        accuracy=AccuracyResult(samples=1, torch={}, artifact={}),
        latency=latency,
        measured=measured,
        megabytes=1.0,
        gates=(),
        passed=True,
        versions={},
        created="2026-11-29",
    )


def test_the_rows_are_the_parts_and_their_sum() -> None:
    dense, compact = (
        model({"stem": (16, 3, 1.0), "a": (64, 16, 4.0)}),
        model({"stem": (16, 3, 1.0), "a": (16, 16, 2.0)}),
    )
    why = why_not_faster(verification({"dense": dense, "compact": compact}))
    assert why is not None
    labels = [row.label for row in why.table.rows]
    assert labels[-2:] == ["in no step of the profiles", "in all"]
    assert any(label.startswith("layers that were not touched") for label in labels)
    shares = [float(row.cells[1].text.removesuffix(" %")) for row in why.table.rows[:-1]]
    assert abs(sum(shares) - 100) <= len(shares)  # each is rounded
    assert "fewer MACs than dense" in why.sentence and why.doubt == ""


def test_without_a_dense_model_or_its_layers_there_is_no_section() -> None:
    compact = model({"a": (16, 16, 2.0)})
    assert why_not_faster(verification({"compact": compact})) is None
    bare = Measured(megabytes=1.0, throughput={})
    assert why_not_faster(verification({"dense": bare, "compact": compact})) is None
