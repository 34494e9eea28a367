"""Verification of an exported model: parity, accuracy by the tasks' own metrics, latency, gates."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compactmtl.verify.accuracy import evaluate
    from compactmtl.verify.gates import check_gates
    from compactmtl.verify.latency import measure_latency
    from compactmtl.verify.parity import check_parity
    from compactmtl.verify.result import (
        AccuracyResult,
        GateResult,
        LatencyResult,
        LatencyStats,
        OutputParity,
        ParityResult,
        TaskMetrics,
        Verification,
    )

# A name is imported when it is asked for: reading a bundle loads no torch.
_HOME = {
    "AccuracyResult": "result",
    "GateResult": "result",
    "LatencyResult": "result",
    "LatencyStats": "result",
    "OutputParity": "result",
    "ParityResult": "result",
    "TaskMetrics": "result",
    "Verification": "result",
    "check_gates": "gates",
    "check_parity": "parity",
    "evaluate": "accuracy",
    "measure_latency": "latency",
}

__all__ = [
    "AccuracyResult",
    "GateResult",
    "LatencyResult",
    "LatencyStats",
    "OutputParity",
    "ParityResult",
    "TaskMetrics",
    "Verification",
    "check_gates",
    "check_parity",
    "evaluate",
    "measure_latency",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
