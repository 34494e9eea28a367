"""Precision as passes on the ONNX graph, before a backend sees it: fp16, bf16, int8 as Q/DQ."""

from __future__ import annotations

from compactmtl.export.precision.apply import apply_precision
from compactmtl.export.precision.record import KeptNode, PrecisionRecord, SearchStep

__all__ = ["KeptNode", "PrecisionRecord", "SearchStep", "apply_precision"]
