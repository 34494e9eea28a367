"""How much faster one model is than another, of latencies that were measured in the same rounds, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from compactmtl.verify.result import SINGLE, LatencyResult, LatencyStats, Speed, Verdict

BAND = (10, 90)  # percentiles of the ratio over rounds
# Fewer have no 10th percentile. Of ten rounds of equal models nine lie on one side in one of fifty cases; of three rounds
# all do in one of four.
LEAST_ROUNDS = 10


def speed_of(latency: LatencyResult, name: str, against: str | None = None) -> Speed:
    """The latency of `against`, by default the reference's, over that of `name`, round by round.

    Raises KeyError for a name that was not measured.
    """
    against = latency.reference if against is None else against
    return compare(latency.stats[name], latency.stats[against])


def compare(one: LatencyStats, other: LatencyStats) -> Speed:
    """The latency of `other` over that of `one`.

    The median over rounds of the ratio in the same round, with its 10th and 90th percentile. Where both ends are on
    one side of 1 the difference is told, else it is noise. Fewer than ten rounds have no band and no verdict. Latencies
    that were not taken in the same rounds give the ratio of their medians, which has no band and no verdict either.
    """
    mine, theirs = np.asarray(one.samples_ms, np.float64), np.asarray(other.samples_ms, np.float64)
    if len(mine) != len(theirs) or not len(mine):
        ratio = _ratio(other.median_ms, one.median_ms)
        return Speed(name=one.name, against=other.name, ratio=ratio, rounds=0, verdict="unknown")
    if not (_are_times(mine) and _are_times(theirs)):
        return Speed(name=one.name, against=other.name, ratio=math.nan, rounds=len(mine), verdict="unknown")
    ratios = theirs / mine
    ratio = float(np.median(ratios))
    if len(ratios) < LEAST_ROUNDS:
        return Speed(name=one.name, against=other.name, ratio=ratio, rounds=len(ratios), verdict="unknown")
    low, high = (float(value) for value in np.percentile(ratios, BAND))
    verdict: Verdict = "faster" if low > 1 else "slower" if high < 1 else "same"
    return Speed(
        name=one.name,
        against=other.name,
        ratio=ratio,
        low=low,
        high=high,
        rounds=len(ratios),
        verdict=verdict,
    )


def speeds(latency: LatencyResult) -> tuple[Speed, ...]:
    """Every model against the reference and, of one in lower precision, against the float32 forms beside it."""
    ratios = []
    for name in latency.stats:
        ratios += [speed_of(latency, name, other) for other in (latency.reference, *_singles(latency, name))]
    return tuple(one for one in ratios if one.name != one.against)


def subject_latency(result: LatencyResult) -> tuple[str, LatencyStats]:
    """The artifact: the measured model that is not the reference, or the reference where no dense model was measured.

    The float32 forms that are measured beside an artifact of lower precision are not it.
    """
    others = [name for name in result.stats if name != result.reference and not name.endswith(SINGLE)]
    name = others[0] if others else result.reference
    return name, result.stats[name]


def dense_form(latency: LatencyResult) -> str:
    """The reference's name; that of its float32 form where the artifact is of lower precision and it was measured."""
    single = latency.reference + SINGLE
    return single if single in latency.stats else latency.reference


def is_lowered(latency: LatencyResult) -> bool:
    """Whether the artifact is of a lower precision than float32."""
    _, stats = subject_latency(latency)
    return stats.precision not in ("fp32", "float32", "unknown") or any(
        name.endswith(SINGLE) for name in latency.stats
    )


def artifact_speed(latency: LatencyResult) -> Speed | None:
    """What the artifact is held against: the dense model in float32, as it is before anything is done to it.

    Where that was not measured beside an artifact of lower precision, the artifact's own float32 form; where neither
    was, the reference. None where nothing was measured beside the artifact.
    """
    name, _ = subject_latency(latency)
    for other in (*_singles(latency, name), latency.reference):
        if other != name:
            return speed_of(latency, name, other)
    return None


def slowdowns(latency: LatencyResult) -> tuple[Speed, ...]:
    """The float32 forms that the artifact is slower than: what its precision lost."""
    name, _ = subject_latency(latency)
    ratios = (speed_of(latency, name, other) for other in _singles(latency, name))
    return tuple(one for one in ratios if one.verdict == "slower")


def _singles(latency: LatencyResult, name: str) -> list[str]:
    """The float32 forms to hold a model in lower precision against: the dense one's, then its own."""
    if name.endswith(SINGLE):
        return []
    forms = (latency.reference + SINGLE, name + SINGLE)
    return [form for form in dict.fromkeys(forms) if form in latency.stats]


def in_words(speed: Speed) -> str:
    """Such as "1.55× faster", "1.09× slower", "no difference beyond noise"."""
    if speed.verdict == "same":
        return "no difference beyond noise"
    if not (math.isfinite(speed.ratio) and speed.ratio > 0):
        return "not a number"
    times = f"{_digits(max(speed.ratio, 1 / speed.ratio))}× {'faster' if speed.ratio >= 1 else 'slower'}"
    if speed.verdict != "unknown":
        return times
    why = "not paired" if speed.rounds == 0 else f"{speed.rounds} round{'s' * (speed.rounds > 1)}: no band"
    return f"{times} ({why})"


def told(speed: Speed) -> str:
    """Such as "1.55× faster than dense"."""
    return f"{in_words(speed)} {'from' if speed.verdict == 'same' else 'than'} {speed.against}"


def band_in_words(speed: Speed) -> str:
    """The ratio and its 10–90 % band, such as "1.55× (1.48 to 1.60)"; empty where there is none."""
    if speed.low is None or speed.high is None:
        return ""
    return f"{_digits(speed.ratio)}× ({_digits(speed.low)} to {_digits(speed.high)})"


def variation(samples_ms: Sequence[float]) -> float:
    """How much latencies vary: the distance of their quartiles over their median.

    An outlier, such as one run that was interrupted, does not move it; a machine that others use does. 0 of no
    samples, infinite where the median is no time.
    """
    if not len(samples_ms):
        return 0.0
    first, median, third = (float(value) for value in np.percentile(samples_ms, (25, 50, 75)))
    return (third - first) / median if median > 0 else math.inf


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator > 0 and numerator > 0 else math.nan


def _are_times(samples: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> bool:
    return bool(np.isfinite(samples).all() and (samples > 0).all())


def _digits(value: float) -> str:
    """Three significant digits, whole numbers above 1000."""
    magnitude = math.floor(math.log10(float(f"{value:.2e}")))
    return f"{value:.{max(0, 2 - magnitude)}f}"
