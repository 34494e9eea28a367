"""Precision as passes on the ONNX graph, before a backend sees it: fp16, bf16, int8 as Q/DQ."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compactmtl.export.precision.apply import apply_precision
    from compactmtl.export.precision.record import KeptNode, PrecisionRecord, SearchStep

__all__ = ["KeptNode", "PrecisionRecord", "SearchStep", "apply_precision"]

# Reading a bundle's record takes none of the passes.
_HOME = {
    "KeptNode": "record",
    "PrecisionRecord": "record",
    "SearchStep": "record",
    "apply_precision": "apply",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
