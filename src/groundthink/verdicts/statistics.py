"""Estimates with their uncertainty: what every verdict is made from."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike


@dataclass(frozen=True)
class Interval:
    """A value with the confidence interval [low, high] that n samples give it."""

    value: float
    low: float
    high: float
    n: int


def exact(value: float, n: int = 1) -> Interval:
    """A quantity without sampling error: a count, or a difference that must be zero."""
    return Interval(value, value, value, n)


def unknown(value: float, n: int) -> Interval:
    """A value that too few samples leave open: the interval is the whole line."""
    return Interval(value, -math.inf, math.inf, n)


def wilson(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """Wilson score interval of a proportion (Wilson 1927), sound at 0 and at n successes."""
    if n == 0:
        return Interval(math.nan, 0.0, 1.0, 0)
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # By algebra 0 <= low <= p <= high <= 1; rounding would break it at 0 and at n successes.
    return Interval(p, max(0.0, min(p, centre - half)), min(1.0, max(p, centre + half)), n)


def normal(value: float, se: float, n: int, confidence: float = 0.95) -> Interval:
    """Normal interval of an estimate whose standard error is known."""
    half = NormalDist().inv_cdf((1 + confidence) / 2) * se
    return Interval(value, value - half, value + half, n)


def t_mean(values: ArrayLike, confidence: float = 0.95) -> Interval:
    """Student t interval of a mean; give it differences to compare pairs."""
    x = np.asarray(values, dtype=np.float64)
    if len(x) < 2:
        return unknown(float(x.mean()) if len(x) else math.nan, len(x))
    half = t_quantile((1 + confidence) / 2, len(x) - 1) * x.std(ddof=1) / math.sqrt(len(x))
    return Interval(float(x.mean()), float(x.mean() - half), float(x.mean() + half), len(x))


Means = Mapping[Any, Any]
"""Mean of every quantity by name: numbers, or one number for each resample [resamples]."""
Statistic = Callable[[Means], Any]
"""What is asked of the means, in operations that also work element by element."""


class Paired:
    """Means of several quantities that were measured on the same samples.

    One set of resamples serves them all (Efron 1979), so that the interval of any difference, sum
    or ratio of them knows that they move together:
    ``Paired({"cut": cut, "whole": whole}, documents).interval(lambda m: m["cut"] - m["whole"])``.

    Args:
        samples: values [n] of every quantity; sample i of all of them is the same piece of text.
        clusters: label of the document or sequence of each sample [n]; whole clusters are then
            resampled, because samples of one text are not independent.
    """

    def __init__(
        self,
        samples: Mapping[Any, ArrayLike],
        clusters: Sequence[int] | np.ndarray | None = None,
        *,
        resamples: int = 2000,
        seed: int = 0,
    ):
        columns = {name: np.asarray(x, dtype=np.float64) for name, x in samples.items()}
        count = len(next(iter(columns.values())))
        labels = (
            np.arange(count) if clusters is None else np.unique(clusters, return_inverse=True)[1]
        )
        sizes = np.bincount(labels)
        self.n = len(sizes)
        """Units that are resampled."""
        self.means = {name: float(x.mean()) if count else math.nan for name, x in columns.items()}
        self._resampled: dict[Any, np.ndarray] = {}
        if self.n > 1:
            uniform = np.full(self.n, 1 / self.n)
            draws = np.random.default_rng(seed).multinomial(self.n, uniform, size=resamples)
            drawn = draws @ sizes
            # Column by column: equal columns then have equal resamples, to the last bit.
            for name, x in columns.items():
                self._resampled[name] = draws @ np.bincount(labels, x) / drawn

    def interval(self, statistic: Statistic, confidence: float = 0.95) -> Interval:
        """Percentile interval of a function of the means; n counts the resampled units."""
        value = float(statistic(self.means))
        if not self._resampled:
            return unknown(value, self.n)
        edges = [(1 - confidence) / 2, (1 + confidence) / 2]
        low, high = np.quantile(statistic(self._resampled), edges)
        return Interval(value, float(low), float(high), self.n)

    def p_value(self, statistic: Statistic) -> float:
        """Two-sided p of a statistic that is zero: how often resamples reach the other side."""
        if not self._resampled:
            return 1.0
        x = statistic(self._resampled)
        fewer = min(np.count_nonzero(x <= 0), np.count_nonzero(x >= 0))
        return min(1.0, 2 * (int(fewer) + 1) / (len(x) + 1))


def bootstrap_mean(
    values: ArrayLike,
    clusters: Sequence[int] | np.ndarray | None = None,
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """`Paired` of one quantity: percentile bootstrap interval of a mean."""
    paired = Paired({"": values}, clusters, resamples=resamples, seed=seed)
    return paired.interval(lambda means: means[""], confidence)


def holm(p_values: Sequence[float]) -> list[float]:
    """p values adjusted so that calling all below alpha true errs anywhere with probability alpha
    at most (Holm 1979)."""
    adjusted, floor = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        floor = max(floor, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = floor
    return adjusted


def samples_to_clear(interval: Interval, edge: float, power: float = 0.8) -> int | None:
    """About how many samples give a 95 % interval that leaves out `edge` in a share `power` of
    repetitions, if its width falls with the square root of n and the value stays.

    Returns:
        None if the value sits on the edge or the width is unknown.
    """
    below, above = interval.value - interval.low, interval.high - interval.value
    reach, distance = below if edge < interval.value else above, abs(edge - interval.value)
    if not distance or not math.isfinite(reach):
        return None
    z = NormalDist().inv_cdf(0.975)
    reach *= (z + NormalDist().inv_cdf(power)) / z
    return math.ceil(interval.n * (reach / distance) ** 2)


def median(values: ArrayLike, confidence: float = 0.95) -> Interval:
    """Median with the distribution-free interval between two order statistics.

    The interval is the whole line below six samples, where no pair reaches 95 %.
    """
    x = np.sort(np.asarray(values, dtype=np.float64))
    n = len(x)
    centre = float(np.median(x)) if n else math.nan
    tail, k = 0, 0
    while k < n and (tail := tail + math.comb(n, k)) / 2**n <= (1 - confidence) / 2:
        k += 1
    return Interval(centre, float(x[k - 1]), float(x[n - k]), n) if k else unknown(centre, n)


def slope(x: ArrayLike, y: ArrayLike, confidence: float = 0.95) -> tuple[Interval, float]:
    """Least-squares slope of y over x with its t interval, and the two-sided p of no slope."""
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    n = len(x)
    dx = x - x.mean()
    value = float(dx @ (y - y.mean()) / (dx @ dx))
    if n < 3:
        return unknown(value, n), 1.0
    residual = y - y.mean() - value * dx
    se = math.sqrt(float(residual @ residual) / (n - 2) / float(dx @ dx))
    half = t_quantile((1 + confidence) / 2, n - 2) * se
    p = 1 - t_inside(abs(value) / se, n - 2) if se else float(value == 0)
    return Interval(value, value - half, value + half, n), p


def t_inside(t: float, df: int) -> float:
    """P(|T| <= t) of Student's t with integer `df`: the finite sums of
    Abramowitz & Stegun 26.7.3 and 26.7.4."""
    theta = math.atan(t / math.sqrt(df))
    odd = df % 2
    # Term j over term j-1 is cos^2 (2j-1)/(2j) for even df, cos^2 (2j)/(2j+1) for odd df.
    j = np.arange(1, (df - odd) // 2)
    ratios = math.cos(theta) ** 2 * (2 * j - 1 + odd) / (2 * j + odd)
    series = math.sin(theta) * (1 + float(np.cumprod(ratios).sum()))
    if not odd:
        return series
    return 2 / math.pi * (theta + (math.cos(theta) * series if df > 1 else 0.0))


def t_quantile(p: float, df: int) -> float:
    """The t with P(T <= t) = p, for p > 1/2."""
    low, high = 0.0, 1.0
    while t_inside(high, df) < 2 * p - 1:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if t_inside(middle, df) < 2 * p - 1 else (low, middle)
    return high
