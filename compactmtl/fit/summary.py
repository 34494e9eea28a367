"""What a fit came to: the budget, the gates, the accuracy beside the dense network, and where everything lies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from compactmtl.artifacts.layout import EXPORT
from compactmtl.errors import GateError
from compactmtl.export.timing import COMPACT, DENSE
from compactmtl.fit.compose import Road
from compactmtl.runs import Run
from compactmtl.train.tracking import format_metric
from compactmtl.verify.result import GateResult, Verification
from compactmtl.verify.speed import band_in_words, in_words, speed_of

SLACK = 0.005  # a budget of shares is met to within half a percent of the network
_SIZES = {"macs": "MACs", "parameters": "parameters"}


@dataclass(frozen=True)
class Outcome:
    """A walked road. `surgery` is surgery.json, `baseline` the dense run, if there is one."""

    road: Road
    run: Run
    baseline: Run | None
    surgery: Mapping[str, Any]
    verification: Verification
    page: Path

    @property
    def bundle(self) -> Path:
        """The folder to deploy."""
        return self.run.path / EXPORT / self.road.target_name

    @property
    def mac_reduction(self) -> float:
        """The share of the network's MACs that surgery removed."""
        return self._gone("macs")

    def _gone(self, measure: str) -> float:
        """The share of the network's MACs or parameters that surgery removed."""
        sizes = self.surgery[measure]
        return 1 - float(sizes["after"]) / float(sizes["before"])

    @property
    def failed(self) -> list[GateResult]:
        """The gates of the target that do not hold."""
        return [gate for gate in self.verification.gates if not gate.passed]

    @property
    def latency_gates(self) -> list[GateResult]:
        """Those of the latency."""
        return [gate for gate in self.verification.gates if gate.gate == "latency"]

    @property
    def reduction_met(self) -> bool:
        """Whether a budget of MACs or parameters is met; one of latency is a gate of the target."""
        section = self.road.reduction
        return section.latency is not None or self._gone(section.measure) >= section.amount - SLACK

    @property
    def passed(self) -> bool:
        """Whether the budget is met and every gate holds."""
        return not self.failed and self.reduction_met

    def lines(self) -> Iterator[str]:
        """For a terminal."""
        rows = [*self._budget(), *self._sizes(), *self._accuracy(), *self._gates()]
        rows += [("bundle", str(self.bundle)), ("report", str(self.page))]
        width = max(len(name) for name, _ in rows)
        yield from (f"{name:<{width}}  {text}" for name, text in rows)

    def _budget(self) -> Iterator[tuple[str, str]]:
        section = self.road.reduction
        if section.latency is None:
            verdict = "met" if self.reduction_met else "missed"
            yield "budget", f"{section.key} {section.amount:g}: {verdict}"
            return
        of_ratio = section.latency.ms is None
        gates = [gate for gate in self.latency_gates if _is_ratio(gate) is of_ratio]
        verdict = "met" if all(gate.passed for gate in gates) else "missed"
        if not gates:
            verdict = "not checked: the baseline is another network than the one that was shrunk"
        yield "budget", f"{section.key} {section.amount:g} on {self.road.target_name}: {verdict}"
        for gate in gates:
            yield "", gate.message

    def _sizes(self) -> Iterator[tuple[str, str]]:
        stats = self.verification.latency.stats
        if DENSE in stats and COMPACT in stats:
            dense, small = stats[DENSE].median_ms, stats[COMPACT].median_ms
            speed = speed_of(self.verification.latency, COMPACT, DENSE)
            band = band_in_words(speed)
            rounds = f", by round {band}" if band else ""
            yield "latency", f"{small:.3f} ms, dense {dense:.3f} ms: {in_words(speed)}{rounds}"
        yield "removed", f"{self._gone('macs'):.1%} of MACs, {self._gone('parameters'):.1%} of parameters"
        yield "size", f"{self.verification.megabytes:.2f} MB"

    def _accuracy(self) -> Iterator[tuple[str, str]]:
        accuracy = self.verification.accuracy
        for name, task in self.run.measured.items():
            value = accuracy.artifact.get(name, {}).get(task.primary)
            if value is None:
                continue
            dense = None if accuracy.baseline is None else accuracy.baseline.get(name, {}).get(task.primary)
            beside = "" if dense is None else f", dense {format_metric(task, task.primary, dense)}"
            yield name, f"{format_metric(task, task.primary, value)}{beside} ({accuracy.samples} val images)"
        if accuracy.baseline is not None and self.road.dense is not None:
            epochs = self.road.dense.recipe.train.epochs
            yield (
                "",
                f"dense was trained for {epochs} epochs; what was shrunk began there and had "
                f"{self.road.shrunk.recipe.train.epochs} more",
            )

    def _gates(self) -> Iterator[tuple[str, str]]:
        gates = self.verification.gates
        held = sum(gate.passed for gate in gates)
        yield "gates", f"{held} of {len(gates)} hold"
        for gate in self.failed:
            yield "", f"failed: {gate.message}"

    def raise_failed(self) -> None:
        """Raise GateError where the budget is missed or a gate does not hold; return if all is met."""
        if self.passed:
            return
        section = self.road.reduction
        what = [gate.message for gate in self.failed]
        if not self.reduction_met:
            what.append(
                f"{section.key}: {self._gone(section.measure):.1%} of {_SIZES[section.measure]} gone, {section.amount:.1%} asked for"
            )
        raise GateError(f"{self.run.path}: {'; '.join(what)}", self._mend())

    def _mend(self) -> str:
        latency = self.road.reduction.latency
        late = [gate for gate in self.latency_gates if not gate.passed]
        kept = "the bundle is kept and marked as failed"
        if late and latency is not None:
            share = min(map(_time_to_keep, late))
            if latency.ms is not None:
                smaller = f"--latency-ms {latency.ms * share:.3g}"
            else:
                smaller = f"--speedup {1 / (latency.milliseconds(1.0) * share):.3g}" if share else ""
            less = f"; else ask the training for less ({smaller})" if share else ""
            return f"{kept}; if the machine was busy, give the same command again to measure again{less}"
        if not self.reduction_met:
            return f"{kept}; train longer (train.epochs), or shrink earlier (sparsity.selective.end)"
        return f"{kept}; train longer, give it more (a larger budget), or change the target's bound knowingly"


def _is_ratio(gate: GateResult) -> bool:
    """Whether a gate of the latency bounds how many times as fast something is as another, and no milliseconds."""
    return bool(gate.against)


def _time_to_keep(gate: GateResult) -> float:
    """The share of its time that an artifact may keep to pass a gate that it fails; 0 where nothing was measured."""
    if not (isfinite(gate.value) and gate.value > 0):
        return 0.0
    return gate.value / gate.bound if _is_ratio(gate) else gate.bound / gate.value
