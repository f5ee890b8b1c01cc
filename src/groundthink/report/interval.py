"""A measured interval drawn against its threshold, as a small inline SVG."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from groundthink.report.text import NONE, esc, sig
from groundthink.report.thresholds import ranges

WIDTH, HEIGHT = 180, 22
_PAD = 10


def bar(value: float | None, low: float | None, high: float | None, threshold: str) -> str:
    """The passing range shaded, the warning range outlined, the interval a line, the value a dot.

    A missing bound is unbounded and runs off the edge. The scale is logarithmic where all that is
    drawn is positive and spans more than a factor of twenty.
    """
    if value is None or not threshold:
        return NONE
    passes, warns = ranges(threshold)
    place = _scale(v for v in (value, low, high, *passes, *warns) if v is not None)
    left, right = place(low, 0), place(high, WIDTH)
    words = esc(f"{sig(value)}, interval {_words(low, high)}, passes {threshold}")
    return (
        f'<svg class="interval" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{words}">'
        f'<line class="rail" x1="0" x2="{WIDTH}" y1="11" y2="11"/>'
        f"{_range(place, warns, 'warns', 7)}{_range(place, passes, 'passes', 4)}"
        f'<line class="reach" x1="{left:.1f}" x2="{right:.1f}" y1="11" y2="11"/>'
        f'<circle class="value" cx="{place(value, 0):.1f}" cy="11" r="4"/></svg>'
    )


def _words(low: float | None, high: float | None) -> str:
    return f"{'−∞' if low is None else sig(low)} to {'∞' if high is None else sig(high)}"


def _range(place: Callable, edges: tuple[float, float], kind: str, top: int) -> str:
    left, right = place(edges[0], 0), place(edges[1], WIDTH)
    width = max(2.0, right - left)
    return (
        f'<rect class="{kind}" x="{min(left, WIDTH - 2):.1f}" y="{top}" width="{width:.1f}" '
        f'height="{HEIGHT - 2 * top}" rx="2"/>'
    )


def _scale(points: Iterable[float]) -> Callable[[float | None, float], float]:
    """Number -> x; what is missing or infinite goes to the edge given."""
    finite = [point for point in points if math.isfinite(point)]
    log = min(finite) > 0 and max(finite) / min(finite) > 20
    at = math.log10 if log else float
    first, last = at(min(finite)), at(max(finite))
    middle, half = (first + last) / 2, (last - first) / 2 or abs(first) or 1.0

    def place(value: float | None, edge: float) -> float:
        if value is None or not math.isfinite(value):
            return edge
        return WIDTH / 2 + (at(value) - middle) / half * (WIDTH / 2 - _PAD)

    return place
