"""Estimates with their uncertainty: what every verdict is made from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

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
    # p lies inside by algebra; rounding would push it out at 0 and at n successes.
    return Interval(p, min(p, centre - half), max(p, centre + half), n)


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


def bootstrap_mean(
    values: ArrayLike,
    clusters: Sequence[int] | np.ndarray | None = None,
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap interval of a mean (Efron 1979).

    Args:
        values: samples [n].
        clusters: label of the document or sequence of each sample [n]; whole clusters are then
            resampled, because samples of one text are not independent.

    Returns:
        The mean over all samples; n counts the units that were resampled.
    """
    x = np.asarray(values, dtype=np.float64)
    labels = np.arange(len(x)) if clusters is None else np.unique(clusters, return_inverse=True)[1]
    sums, sizes = np.bincount(labels, x), np.bincount(labels)
    k = len(sums)
    if k < 2:
        return unknown(float(x.mean()) if len(x) else math.nan, k)
    draws = np.random.default_rng(seed).multinomial(k, np.full(k, 1 / k), size=resamples)
    low, high = np.quantile(
        (draws @ sums) / (draws @ sizes), [(1 - confidence) / 2, (1 + confidence) / 2]
    )
    return Interval(float(x.mean()), float(low), float(high), k)


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
