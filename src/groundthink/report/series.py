"""Series of numbers made ready for a figure: smoothing and thinning, without third parties."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from groundthink.records import Record

Number = float | int | None
Points = tuple[list[Number], list[Number]]

MAX_POINTS = 2000
"""Most points that one trace draws."""


def column(rows: Sequence[Record], *keys: str) -> Points:
    """Steps and the (nested) field `keys` of the rows that hold it; a null is a gap."""
    x: list[Number] = []
    y: list[Number] = []
    for row in rows:
        value: Any = row
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        if keys[0] in row:
            x.append(row.get("step"))
            y.append(value)
    return (x, y) if any(value is not None for value in y) else ([], [])


def running_mean(
    x: Sequence[Number], y: Sequence[Number], window: int, most: int = MAX_POINTS
) -> Points:
    """Mean of the `window` values around each of at most `most` evenly spaced points.

    The window is cut at the ends of the series; gaps in it are left out.
    """
    at = every(range(len(x)), most)
    means: list[Number] = []
    for i in at:
        first = max(0, i - window // 2)
        values = known(y[first : i - window // 2 + window])
        means.append(math.fsum(values) / len(values) if values else None)
    return [x[i] for i in at], means


def thin(x: Sequence[Number], y: Sequence[Number], most: int = MAX_POINTS) -> Points:
    """At most `most` of the points, unchanged: the first, the last, and the lowest and highest of
    each of equal runs, so that no spike is lost."""
    if len(x) <= most:
        return list(x), list(y)
    runs = max(1, (most - 2) // 2)
    keep = {0, len(x) - 1}
    for run in range(runs):
        indices = range(run * len(x) // runs, (run + 1) * len(x) // runs)
        measured = [(value, i) for i in indices if (value := y[i]) is not None]
        if measured:
            keep |= {min(measured)[1], max(measured)[1]}
        else:
            keep.add(indices[0])
    order = sorted(keep)
    return [x[i] for i in order], [y[i] for i in order]


def every(rows: Sequence[Any], most: int) -> list[Any]:
    """At most `most` rows at even distances, the first and the last among them."""
    if len(rows) <= most:
        return list(rows)
    return [rows[i * (len(rows) - 1) // (most - 1)] for i in range(most)]


def known(values: Sequence[Number]) -> list[float]:
    """The values that are numbers."""
    return [value for value in values if value is not None]
