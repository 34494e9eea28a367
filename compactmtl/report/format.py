"""Numbers as a reader wants them: units, thousands, and which way is better."""

from __future__ import annotations

import math

from compactmtl.report.model import MetricView

NOT_RUN = "not run"
NO_NUMBER = "not a number"
_PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_NAMES = {"miou": "mIoU", "mae": "MAE", "rmse": "RMSE", "mse": "MSE", "auc": "AUC"}


def count(value: float) -> str:
    """1 234 567 as "1.23 M"."""
    if not math.isfinite(value):
        return NO_NUMBER
    for scale, prefix in _PREFIXES:
        if abs(value) >= scale * 0.9995:
            return f"{_significant(value / scale)} {prefix}"
    return f"{value:.0f}"


def metric_name(name: str) -> str:
    """`abs_err` as "abs err", `within_11_25` as "within 11.25", `miou` as "mIoU"."""
    words: list[str] = []
    for word in name.split("_"):
        if word.isdigit() and words and words[-1].isdigit():
            words[-1] += f".{word}"
        else:
            words.append(_NAMES.get(word, word))
    return " ".join(words)


def metric(value: float, info: MetricView) -> str:
    """A metric's value with its unit; shares as percentages."""
    if not math.isfinite(value):
        return NO_NUMBER
    if info.share:
        return f"{100 * value:.1f} %"
    separator = "" if info.unit in ("°", "") else " "
    return f"{_significant(value)}{separator}{info.unit}"


def milliseconds(value: float) -> str:
    """A latency."""
    if not math.isfinite(value):
        return NO_NUMBER
    return f"{_significant(value)} ms"


def duration(seconds: float) -> str:
    """Wall time in the two largest units."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def signed_percent(share: float, digits: int = 1) -> str:
    """-0.123 as "−12.3 %", with a true minus sign and no "−0.0"."""
    if not math.isfinite(share):
        return NO_NUMBER
    rounded = round(100 * share, digits)
    if rounded == 0:
        return f"{0:.{digits}f} %"
    return f"{'+' if rounded > 0 else '−'}{abs(rounded):.{digits}f} %"


def ratio(value: float) -> str:
    """How many times, such as "2.61×"."""
    if not math.isfinite(value):
        return NO_NUMBER
    return f"{_significant(value)}×"


def small(value: float) -> str:
    """An error or tolerance, such as "3.1e-07"; zero as "0"."""
    if not math.isfinite(value):
        return NO_NUMBER
    return "0" if value == 0 else f"{value:.1e}"


def _significant(value: float, digits: int = 3) -> str:
    """Three significant digits, never in exponent form; whole numbers above 1000."""
    if value == 0:
        return "0"
    # the magnitude after rounding, so that 9.996 is 10.0 and not 10.00
    magnitude = math.floor(math.log10(abs(float(f"{value:.{digits - 1}e}"))))
    return f"{value:.{max(0, digits - 1 - magnitude)}f}".replace("-", "−")
