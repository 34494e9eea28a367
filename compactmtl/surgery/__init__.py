"""Surgery: analyse, plan, apply, prove. Function-preserving edits of a trained model."""

from compactmtl.surgery.apply import apply_plan
from compactmtl.surgery.artifact import load_compact, save_compact
from compactmtl.surgery.compact import CompactResult, compact
from compactmtl.surgery.plan import Plan
from compactmtl.surgery.prove import Case, Proof, prove
from compactmtl.surgery.report import LayerChange, SurgeryReport
from compactmtl.surgery.timed import Left, Timing

__all__ = [
    "Case",
    "CompactResult",
    "LayerChange",
    "Left",
    "Plan",
    "Proof",
    "SurgeryReport",
    "Timing",
    "apply_plan",
    "compact",
    "load_compact",
    "prove",
    "save_compact",
]
