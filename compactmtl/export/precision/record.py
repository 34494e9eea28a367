"""What the precision pass did to a bundle's graph, as data in bundle.json."""

from __future__ import annotations

from compactmtl.config.precision import Precision
from compactmtl.config.schema import Frozen


class KeptNode(Frozen):
    """A node that stays in float32, and why."""

    name: str
    operator: str
    reason: str


class SearchStep(Frozen):
    """One evaluation of the search: which layers were left in float, and which gates that failed."""

    left: tuple[str, ...]
    failed: tuple[str, ...]


class PrecisionRecord(Frozen):
    """How the graph was brought to its precision."""

    precision: Precision
    lowered: int  # nodes that run in it; of int8, layers with weights
    kept: tuple[KeptNode, ...]
    samples: int  # calibration images; 0 where none are needed
    search: tuple[SearchStep, ...] = ()
    held: bool | None = None  # whether the search found a model whose accuracy holds; none: not searched
    reduced_range: bool = False  # int8: whether weights have 7 bits, which no processor's sums overflow on
