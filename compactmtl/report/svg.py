"""Figures as SVG files of their own, for pages that are not the report."""

from __future__ import annotations

from markupsafe import escape

from compactmtl.report.charts import Axis, number
from compactmtl.report.deployed import Plane

WIDTH, HEIGHT = 680, 420
LEFT, RIGHT, TOP, BOTTOM = 64, 14, 30, 46  # around the plot
# As in the style sheet, then further ones. Color-blind readers tell the first six apart.
COLORS = ("#0072b2", "#d98c00", "#009e73", "#c2608f", "#d55e00", "#3d9bd1", "#5b5b5b", "#8a6d3b")


def drawn(plane: Plane) -> str:
    """A plane as an SVG file: a line a method, a dot an entry with its name, bars of one deviation over seeds."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}"'
        ' font-family="sans-serif" font-size="12">',
        f"<title>{escape(plane.title)}</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        *_grid(plane.x, plane.y),
    ]
    for index, (name, curve) in enumerate(plane.curves.items()):
        color = COLORS[index % len(COLORS)]
        places = [(_x(plane.x, one.x), _y(plane.y, one.y), one) for one in curve]
        if len(places) > 1 and name not in plane.loose:
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in places)
            parts.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="1.8"/>')
        for x, y, one in places:
            if one.y_std:
                ends = _y(plane.y, one.y - one.y_std), _y(plane.y, one.y + one.y_std)
                parts.append(
                    f'<path d="M{x:.1f} {ends[0]:.1f}V{ends[1]:.1f}" stroke="{color}" stroke-width="1"/>'
                )
            parts.append(
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{color}"><title>{escape(one.words)}</title></circle>'
            )
            if one.label != name:
                parts.append(
                    f'<text x="{x + 6:.1f}" y="{y - 6:.1f}" fill="{color}" font-size="10">{escape(one.label)}</text>'
                )
        parts.append(_key(index, name, color))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _grid(x: Axis, y: Axis) -> list[str]:
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    parts = []
    for tick in y.ticks:
        at = _y(y, tick)
        parts.append(f'<path d="M{LEFT} {at:.1f}H{right}" stroke="{"#888888" if tick == 0 else "#dddddd"}"/>')
        parts.append(
            f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end" fill="#444444">{number(tick, y)}</text>'
        )
    for tick in x.ticks:
        at = _x(x, tick)
        parts.append(f'<path d="M{at:.1f} {TOP}V{bottom}" stroke="#eeeeee"/>')
        parts.append(
            f'<text x="{at:.1f}" y="{bottom + 16}" text-anchor="middle" fill="#444444">{number(tick, x)}</text>'
        )
    middle = (LEFT + right) / 2
    parts.append(
        f'<text x="{middle}" y="{HEIGHT - 10}" text-anchor="middle" fill="#222222">{escape(x.title)}</text>'
    )
    parts.append(
        f'<text transform="translate(16 {(TOP + bottom) / 2}) rotate(-90)" text-anchor="middle" fill="#222222">'
        f"{escape(y.title)}</text>"
    )
    return parts


def _key(index: int, name: str, color: str) -> str:
    """A line of the legend, in the lower right corner, where slow and bad models would be."""
    y = HEIGHT - BOTTOM - 12 - 16 * index
    right = WIDTH - RIGHT - 10
    return (
        f'<text x="{right - 12}" y="{y}" text-anchor="end" fill="{color}">{escape(name)}</text>'
        f'<circle cx="{right - 2}" cy="{y - 4}" r="4" fill="{color}"/>'
    )


def _x(axis: Axis, value: float) -> float:
    return LEFT + axis.at(value) / 100 * (WIDTH - LEFT - RIGHT)


def _y(axis: Axis, value: float) -> float:
    return HEIGHT - BOTTOM - axis.at(value) / 100 * (HEIGHT - TOP - BOTTOM)
