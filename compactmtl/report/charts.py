"""Charts as HTML over an SVG that stretches: as wide as the page, text of one size, colors of the page.

Lines and areas are drawn in a square of 100 by 100 that the page stretches, with strokes that do not stretch; ticks and
marks are elements placed by percentages. So a chart is as legible on a phone as on a desk.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

ROUNDING = 1e-9  # differences below it, relative to 1 or the largest value, are not drawn as such
COLORS = 6  # classes c0 to c5 of the style sheet
Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Axis:
    """The range of an axis, its ticks, and what it shows. With `log` equal steps are equal ratios, and 0 is at the foot."""

    low: float
    high: float
    ticks: tuple[float, ...]
    title: str = ""
    log: bool = False

    def at(self, value: float) -> float:
        """Where a value lies, in percent of the axis; values outside are held at its ends."""
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(max(value, self.low))
        return 100 * min(1.0, max(0.0, (value - low) / (high - low)))


@dataclass(frozen=True)
class Line:
    """A named series of points in one of the page's colors; `step` draws it as a staircase."""

    name: str
    points: Points
    color: int
    step: bool = False


@dataclass(frozen=True)
class Mark:
    """A marked point. `shape` is dot, ring, square or diamond; `title` says what it is."""

    x: float
    y: float
    color: int
    shape: str = "dot"
    title: str = ""


def axis(values: Sequence[float], title: str, *, whole: bool = False, margin: float = 0.0) -> Axis:
    """An axis over finite `values` with round ticks; `margin` is a share of their range on both sides."""
    low, high = min(values), max(values)
    largest = max(abs(low), abs(high))
    if high - low <= ROUNDING * max(1.0, largest):  # one value but for rounding
        room = 0.05 * largest if largest > ROUNDING else 0.5
        low, high = low - room, high + room
    spread = (high - low) * margin
    low, high = low - spread, high + spread
    step = _round_step((high - low) / 5)
    if whole:
        step = max(1.0, math.ceil(step))
    first = math.ceil(low / step - 1e-9)
    ticks = tuple(step * number for number in range(first, math.floor(high / step + 1e-9) + 1))
    # A tick that is at an end but for rounding is at the end.
    return Axis(min((low, *ticks)), max((high, *ticks)), ticks, title)


def log_axis(values: Sequence[float], title: str) -> Axis:
    """A logarithmic axis over the positive ones of `values`, a tick a power of ten, below them a foot for 0.

    Raises ValueError where none is positive.
    """
    positive = [value for value in values if value > 0]
    low, high = min(positive) / 2, max(positive) * 1.1
    powers = range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)
    every = max(1, len(powers) // 5)
    return Axis(low, high, tuple(10.0**power for power in powers if not power % every), title, log=True)


def ratio_axis(values: Sequence[float], title: str) -> Axis:
    """A logarithmic axis over positive `values` with ticks at 1, 2 and 5 times powers of ten, at least one."""
    low, high = min(values) / 1.25, max(values) * 1.25
    powers = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    steps = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
    if not any(low <= step <= high for step in steps):
        high = next(step for step in steps if step > high)
    ticks = [step for step in steps if low <= step <= high * (1 + ROUNDING)]
    return Axis(low, high, tuple(ticks), title, log=True)


def plot(
    x: Axis,
    y: Axis,
    *,
    lines: Sequence[Line] = (),
    marks: Sequence[Mark] = (),
    areas: Sequence[tuple[str, int]] = (),
    base: float | None = None,
    rule: float | None = None,
    height: int = 210,
) -> Markup:
    """Lines, marks and areas (path data and color) over two axes, with a rule across at `base` and upright at `rule`."""
    drawn = [f'<path class="grid" d="M0 {100 - y.at(tick):.2f}H100"/>' for tick in y.ticks]
    if base is not None and y.low <= base <= y.high:
        drawn.append(f'<path class="base" d="M0 {100 - y.at(base):.2f}H100"/>')
    drawn += [f'<path class="area c{color % COLORS}" d="{path}"/>' for path, color in areas]
    drawn += [f'<path class="line c{one.color % COLORS}" d="{_path(one, x, y)}"/>' for one in lines]
    if rule is not None:
        drawn.append(f'<path class="rule" d="M{x.at(rule):.2f} 0V100"/>')
    placed = [
        f'<i class="mark {one.shape} c{one.color % COLORS}" style="left:{x.at(one.x):.2f}%;bottom:{y.at(one.y):.2f}%"'
        f' title="{escape(one.title)}"></i>'
        for one in marks
    ]
    placed += [
        f'<span class="ytick" style="bottom:{y.at(tick):.2f}%">{number(tick, y)}</span>' for tick in y.ticks
    ]
    placed += [
        f'<span class="xtick" style="left:{x.at(tick):.2f}%">{number(tick, x)}</span>' for tick in x.ticks
    ]
    above = f'<p class="y-title">{escape(y.title)}</p>' if y.title else ""
    below = f'<p class="x-title">{escape(x.title)}</p>' if x.title else ""
    return Markup(
        f'{above}<div class="plot" style="height:{height}px">'
        '<svg viewBox="0 0 100 100" preserveAspectRatio="none" aria-hidden="true">'
        f"{''.join(drawn)}</svg>{''.join(placed)}</div>{below}"
    )


def legend(names: Sequence[tuple[str, int]], shape: str = "key") -> Markup:
    """Names with their colors; of a single one nothing, the caption says it."""
    if len(names) < 2:
        return Markup("")
    parts = (f'<span><i class="{shape} c{color % COLORS}"></i>{escape(name)}</span>' for name, color in names)
    return Markup(f'<p class="legend">{"".join(parts)}</p>')


def staircase(heights: Sequence[float]) -> str:
    """Path data of an area of columns of equal width; heights are shares of the square."""
    width = 100 / len(heights)
    parts = [f"V{100 * (1 - share):.1f}H{width * (index + 1):.2f}" for index, share in enumerate(heights)]
    return f"M0 100{''.join(parts)}V100Z"


def number(value: float, on: Axis) -> str:
    """A tick's number, with as many decimals as tell the ticks apart and a true minus sign."""
    if on.log:
        return f"{value:g}"
    step = on.ticks[1] - on.ticks[0] if len(on.ticks) > 1 else abs(value) or 1.0
    digits = next((few for few in range(12) if math.isclose(round(step, few), step, rel_tol=1e-9)), 12)
    text = f"{value:.{digits}f}"
    return text.lstrip("-") if float(text) == 0 else text.replace("-", "−")


def _path(line: Line, x: Axis, y: Axis) -> str:
    points = [(x.at(one), 100 - y.at(other)) for one, other in line.points]
    first, *others = points
    if line.step:
        return f"M{first[0]:.2f} {first[1]:.2f}" + "".join(f"H{one:.2f}V{other:.2f}" for one, other in others)
    return f"M{first[0]:.2f} {first[1]:.2f}" + "".join(f"L{one:.2f} {other:.2f}" for one, other in others)


def _round_step(step: float) -> float:
    """The next of 1, 2, 2.5, 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= step * (1 - 1e-9))
