"""Curves over token distance: means with intervals, and the distance at which half is left."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from groundthink.verdicts.statistics import Interval, Paired


def half_life(distances: Sequence[int], curve: Any) -> Any:
    """Tokens from the start until half of the highest value of a curve is left; infinite if more is
    left at the last distance. Between distances the curve falls exponentially, to zero in a line.

    Args:
        curve: [D] or [D, resamples].
    """
    x = np.asarray(curve, dtype=np.float64)
    at = np.asarray(distances, dtype=np.float64)
    half = x.max(0) / 2
    index = np.arange(len(x)).reshape(-1, *(1,) * (x.ndim - 1))
    past = (x <= half) & (index > x.argmax(0))
    first = np.maximum(past.argmax(0), 1)
    before, after = (np.take_along_axis(x, np.asarray(i)[None], 0)[0] for i in (first - 1, first))
    with np.errstate(all="ignore"):
        curved = np.log(before / half) / np.log(before / after)
        fall = np.where(after > 0, curved, (before - half) / (before - after))
    tokens = at[first - 1] + fall * (at[first] - at[first - 1])
    return np.where(past.any(0), tokens, np.inf)


def half_life_of(curve: Paired, distances: list[int]) -> dict[str, Any] | None:
    """Half-life of a curve with its interval, cut at the longest distance; None if the curve is
    nowhere above zero."""
    highest = max(curve.means, key=lambda name: curve.means[name])
    if not curve.interval(lambda m: m[highest]).low > 0:
        return None
    longest = distances[-1]
    found = curve.interval(lambda m: np.minimum(half_life(distances, list(m.values())), longest))
    return {**numbers(found), "longest": longest}


def over_distance(x: Tensor, clusters: list[int]) -> Paired:
    """The columns of x [N, D], in order."""
    return Paired({str(i): column.cpu() for i, column in enumerate(x.T)}, clusters)


def bounds_of(paired: Paired) -> dict[str, list[float | None]]:
    """The mean at every distance, with its interval."""
    return bounds([paired.interval(lambda m, name=name: m[name]) for name in paired.means])


def bounds(intervals: Sequence[Interval | None]) -> dict[str, list[float | None]]:
    """Intervals as three lists, with None where there is none."""
    return {
        name: [getattr(interval, name, None) for interval in intervals]
        for name in ("value", "low", "high")
    }


def numbers(interval: Interval) -> dict[str, float]:
    """An interval as fields of a record."""
    return {name: getattr(interval, name) for name in ("value", "low", "high")}
