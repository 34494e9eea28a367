"""Rules by operator family: how channel coordinates, constants and uses pass through each operator."""

from __future__ import annotations

from compactmtl.graph.analysis import Rule
from compactmtl.graph.rules import (
    attention,
    contraction,
    norm,
    padding,
    parts,
    pointwise,
    product,
    recurrent,
    reduce,
    shape,
)
from compactmtl.graph.rules.fallback import Fallback

RULES: dict[str, Rule] = {
    **attention.RULES,
    **contraction.RULES,
    **norm.RULES,
    **padding.RULES,
    **parts.RULES,
    **pointwise.RULES,
    **product.RULES,
    **recurrent.RULES,
    **reduce.RULES,
    **shape.RULES,
}
FALLBACK: Rule = Fallback()
