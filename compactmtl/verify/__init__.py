"""Verification of an exported model: parity, accuracy by the tasks' own metrics, latency, gates."""

from __future__ import annotations

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
