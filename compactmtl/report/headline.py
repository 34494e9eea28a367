"""Which target's figures stand for a run, and why, in words."""

from __future__ import annotations

from compactmtl.report.model import ExportView, RunView, shown_target
from compactmtl.verify.speed import is_lowered


def headline_reason(run: RunView) -> str:
    """One or two sentences by the rule of `shown_target`; empty where the run has no export."""
    if not run.exports:
        return ""
    target = shown_target([run])
    sound = [export for export in run.current_exports if export.holds]
    passed_over = _passed_over(run, sound)
    if target is None:
        return f"No target is the headline. {passed_over}".strip()
    if len(sound) == 1:
        one_of_several = len(run.exports) > 1
        why = "the only target whose gates all held" if one_of_several else "the only target exported"
    else:
        why = f"of {len(sound)} targets whose gates all held, {_why(run, target, sound)}"
    return f"Headline: {target}, {why}. {passed_over}".strip()


def _why(run: RunView, target: str, sound: list[ExportView]) -> str:
    """What decided among several sound targets."""
    rivals = [one for one in sound if not is_lowered(one.verification.latency)]
    if any(one.target == target for one in rivals):
        reason = "in float32, where dense and compact differ by surgery alone"
    else:
        rivals, reason = sound, "(none runs in float32)"
    if len(rivals) == 1:
        return f"the one {reason}"
    decided = "first in the recipe's targets" if target in run.targets else "first by name"
    return f"the {decided} {'of those ' if rivals is not sound else ''}{reason}"


def _passed_over(run: RunView, sound: list[ExportView]) -> str:
    current = {export.target for export in run.current_exports}
    reasons = []
    for export in run.exports:
        if export.target not in current:
            reasons.append(f"{export.target} is of an earlier model of this run")
        elif export not in sound:
            failed = sum(not gate.passed for gate in export.verification.gates)
            reasons.append(f"{export.target} failed {failed} gate{'s' * (failed != 1)}")
    return f"Passed over: {'; '.join(reasons)}." if reasons else ""
