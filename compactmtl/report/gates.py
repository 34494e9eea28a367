"""What an export's gates bound: the kinds that were set and held, those that failed, and those that were not set."""

from __future__ import annotations

from dataclasses import dataclass

from compactmtl.report import format as fmt
from compactmtl.report.model import ExportView, Report, is_against_baseline
from compactmtl.report.table import Cell
from compactmtl.verify.result import GateResult

PARITY = "parity"
OWN_ACCURACY = "accuracy vs PyTorch"
BASELINE_ACCURACY = "accuracy vs baseline"
NOT_SLOWER = "not slower"
KINDS = (PARITY, OWN_ACCURACY, BASELINE_ACCURACY, "latency", NOT_SLOWER, "size")


@dataclass(frozen=True)
class GateKind:
    """All gates of one kind of one export."""

    name: str
    gates: tuple[GateResult, ...]

    @property
    def is_set(self) -> bool:
        """Whether the target bounds this at all."""
        return bool(self.gates)

    @property
    def failed(self) -> int:
        """How many of them failed."""
        return sum(not gate.passed for gate in self.gates)

    @property
    def warnings(self) -> int:
        """How many of them hold, but only within noise."""
        return sum(gate.warning for gate in self.gates)


def kind_of(gate: GateResult) -> str:
    """The kind of a gate, one of `KINDS`."""
    if gate.gate == "accuracy":
        return BASELINE_ACCURACY if is_against_baseline(gate) else OWN_ACCURACY
    return NOT_SLOWER if gate.gate == "not_slower" else gate.gate


def gate_kinds(export: ExportView) -> tuple[GateKind, ...]:
    """Every kind with the export's gates of it, also those of which there is none."""
    gates = export.verification.gates
    return tuple(GateKind(name, tuple(gate for gate in gates if kind_of(gate) == name)) for name in KINDS)


def status(export: ExportView) -> Cell:
    """Which gates were set and whether they held. Green only where one of them bounds the tasks' metrics."""
    kinds = [kind for kind in gate_kinds(export) if kind.is_set]
    count = len(export.verification.gates)
    failed = [kind for kind in kinds if kind.failed]
    if failed:
        number = sum(kind.failed for kind in failed)
        return Cell(f"{number} of {count} gates failed: {', '.join(kind.name for kind in failed)}", "bad")
    if not kinds:
        return Cell("no gate was set", "bad")
    if not export.holds:
        return Cell("the verification failed", "bad")
    held = f"held: {', '.join(kind.name for kind in kinds)}"
    doubtful = [kind.name for kind in kinds if kind.warnings]
    if doubtful:
        return Cell(f"{held}; within noise: {', '.join(doubtful)}", "missing")
    return Cell(held, "good" if export.bounds_accuracy else "")


def not_set(export: ExportView) -> Cell:
    """The kinds of gates that the target does not set."""
    names = [kind.name for kind in gate_kinds(export) if not kind.is_set]
    return Cell(", ".join(names), "missing") if names else Cell("none")


def gates_in_words(report: Report) -> list[Cell]:
    """One mark a kind, failures first, and last what no export is bound to.

    Green where every export has gates of the kind and all of them held; parity alone is never green, because a model
    that has become worse in training passes it.
    """
    exports = [export for run in report.subjects for export in run.exports]
    if not exports:
        return [Cell(f"gates {fmt.NOT_RUN}", "missing")]
    accuracy = all(export.bounds_accuracy for export in exports)
    by_kind = {
        name: [
            (export.target, kind) for export in exports for kind in gate_kinds(export) if kind.name == name
        ]
        for name in KINDS
    }
    failed, held, absent = [], [], []
    if not any(export.holds for export in exports):
        failed.append(
            Cell(
                "every export failed its gates" if len(exports) > 1 else "the export failed its gates", "bad"
            )
        )
    for name, kinds in by_kind.items():
        broken = [(target, kind) for target, kind in kinds if kind.failed]
        missing = [target for target, kind in kinds if not kind.is_set]
        if broken:
            number = sum(kind.failed for _, kind in broken)
            failed.append(
                Cell(
                    f"{name}: {number} failed on {', '.join(dict.fromkeys(target for target, _ in broken))}",
                    "bad",
                )
            )
        elif doubtful := [target for target, kind in kinds if kind.warnings]:
            held.append(Cell(f"{name}: within noise on {', '.join(dict.fromkeys(doubtful))}", "missing"))
        elif len(missing) == len(kinds):
            absent.append(name)
        elif missing:
            held.append(Cell(f"{name} held, not set on {', '.join(dict.fromkeys(missing))}"))
        else:
            held.append(Cell(f"{name} held", "good" if accuracy else ""))
    unset = [Cell(f"no gate on: {', '.join(absent)}", "missing")] if absent else []
    return [*failed, *held, *unset]
