"""Why an artifact is not as much faster than the dense model as it has fewer MACs, as a table."""

from __future__ import annotations

from dataclasses import dataclass

from compactmtl.errors import CompactError
from compactmtl.report.table import Cell, Row, Table
from compactmtl.verify.explain import doubt, explain, in_words
from compactmtl.verify.result import Verification
from compactmtl.verify.speed import subject_latency

MOST_LAYERS = 4


@dataclass(frozen=True)
class Why:
    """The gap in a sentence, its parts, and what a reader has to know of their sum."""

    sentence: str
    table: Table
    doubt: str


def why_not_faster(verification: Verification) -> Why | None:
    """The artifact against the dense model in the same precision; none without one, or where their layers are not known."""
    latency = verification.latency
    name, _ = subject_latency(latency)
    if name == latency.reference:
        return None
    try:
        found = explain(latency, verification.measured, name, latency.reference)
    except CompactError:  # exported before layers were counted, or on a runtime without a profile
        return None

    def row(label: str, ms: float, layers: dict[str, float], advice: str = "") -> Row:
        timed = [(layer, part) for layer, part in layers.items() if part]
        shown, more = timed[:MOST_LAYERS], max(len(timed) - MOST_LAYERS, 0)
        text = ", ".join(f"{layer} {part:+.3f}" for layer, part in shown) + (f", {more} more" if more else "")
        share = f"{100 * ms / found.gap:.0f} %" if found.gap else "—"
        return Row(label, (Cell(f"{ms:+.3f} ms"), Cell(share), Cell(text or "—"), Cell(advice or "—")))

    rows = [row(part.what, part.milliseconds, part.layers, part.advice) for part in found.parts]
    rows += [
        row("in no step of the profiles", found.remainder, {}),
        row("in all", found.gap, {}),
    ]
    caption = (
        "milliseconds beyond what the artifact would take if time fell as MACs, by the runtime's own profiles of both models;"
        " below 0 it takes less than that"
    )
    columns = ("time", "of the gap", "layers, ms", "what helps")
    return Why(in_words(found), Table(columns, tuple(rows), caption), doubt(found))
