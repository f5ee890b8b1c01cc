"""Detectors of change: in a series, between two samples, between two representations."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor

LEVEL, SCALE = 0.05, 0.02
"""Weights of the newest value in the running level and error size of a series."""
WIDE = 101
"""Values whose median is taken as the course of a series when its noise is looked for."""
SHIFTS = (1, 2, 4, 8, 16, 32)
"""Injected shifts in standard deviations of the noise."""
SLACK = 0.5
"""Standardised error that the Page-Hinkley sum forgives at each step."""
CALM = 50
"""First values of a series, which set level and scale and raise no alarm."""


def detrended(series: np.ndarray) -> np.ndarray:
    """A series [T] without the smooth course of training: what least squares on 1, t, ln t,
    t^-1/2 and t^-1 leaves over."""
    t = np.arange(len(series)) + 10.0
    basis = np.stack((np.ones_like(t), t / len(t), np.log(t), t**-0.5, 1 / t), 1)
    return series - basis @ np.linalg.lstsq(basis, series, rcond=None)[0]


def surprise(series: np.ndarray) -> np.ndarray:
    """How far each value of a series [..., T] lies from the running level of those before it, in
    running error sizes; 0 for the first values."""
    x = np.asarray(series, dtype=np.float64)
    level = x[..., :CALM].mean(-1)
    size = np.abs(x[..., :CALM] - level[..., None]).mean(-1) + 1e-12
    out = np.zeros_like(x)
    for t in range(CALM, x.shape[-1]):
        error = x[..., t] - level
        out[..., t] = error / size
        level = level + LEVEL * error
        # A value far out counts as one at four sizes: the change must not hide itself.
        size = size + SCALE * (np.minimum(np.abs(error), 4 * size) - size)
    return out


def page_hinkley(series: np.ndarray, *, both: bool = False) -> np.ndarray:
    """The Page-Hinkley statistic of a series at every step (Page 1954): the sum of surprises above
    the slack, restarted at zero.

    Args:
        series: [..., T].
        both: look for a fall too, not only for a rise.
    """
    errors = surprise(series)
    sums = np.zeros((2, *errors.shape))
    for t in range(1, errors.shape[-1]):
        up = sums[0, ..., t - 1] + errors[..., t] - SLACK
        down = sums[1, ..., t - 1] - errors[..., t] - SLACK
        sums[0, ..., t], sums[1, ..., t] = np.maximum(up, 0), np.maximum(down, 0)
    return sums.max(0) if both else sums[0]


@dataclass(frozen=True)
class Detector:
    """A Page-Hinkley test set to a false-alarm rate of 5 % a series, and what it can do."""

    statistic: np.ndarray
    """Of the observed series, [T]."""
    threshold: float
    reached: int
    """Stationary series whose statistic anywhere reaches the highest observed one."""
    stationary: int
    """Stationary series that were made."""
    false_alarms: int
    """Of as many new ones, how many raised an alarm."""
    seen: float | None
    """Smallest injected shift that raises an alarm in 80 % of cases, in units of the series; None
    if not one of `SHIFTS` does."""
    delay: float | None
    """Median of the values read from that shift to the alarm."""

    @property
    def alarm(self) -> int | None:
        """First step at which the statistic passes the threshold."""
        above = np.flatnonzero(self.statistic > self.threshold)
        return int(above[0]) if len(above) else None


def detector(
    series: np.ndarray, *, both: bool = False, draws: int = 400, seed: int = 0
) -> Detector:
    """Test a series [T] for change against stationary series of its own noise.

    Those are moving-block resamples (Kunsch 1989) of its distance from a wide running median, which
    keep the correlation from step to step but no lasting shift; they set the threshold, and new
    ones measure false alarms and delay.
    """
    x = detrended(np.asarray(series, dtype=np.float64))
    rng = np.random.default_rng(seed)
    noise = x - np.median(sliding_window_view(np.pad(x, WIDE // 2, "edge"), WIDE), axis=-1)
    noise = np.clip(noise, *(np.array((-4, 4)) * noise.std()))
    observed = page_hinkley(x, both=both)

    def stationary(count: int) -> np.ndarray:
        return _blocks(noise, count, len(x), rng)

    highest = page_hinkley(stationary(draws), both=both).max(-1)
    threshold = float(np.quantile(highest, 0.95))
    fresh = page_hinkley(stationary(draws), both=both).max(-1)
    seen, delay = _power(stationary(draws // 4), noise.std(), threshold, both)
    return Detector(
        statistic=observed,
        threshold=threshold,
        reached=int((highest >= observed.max()).sum()),
        stationary=draws,
        false_alarms=int((fresh > threshold).sum()),
        seen=seen,
        delay=delay,
    )


def _power(
    quiet: np.ndarray, deviation: float, threshold: float, both: bool
) -> tuple[float | None, float | None]:
    """The smallest shift of half of the series [n, T] that is mostly seen, and its delay."""
    at = quiet.shape[1] // 2
    for size in SHIFTS:
        shifted = quiet.copy()
        shifted[:, at:] += size * deviation
        alarms = page_hinkley(shifted, both=both)[:, at:] > threshold
        if alarms.any(1).mean() >= 0.8:
            return float(size * deviation), float(np.median(alarms[alarms.any(1)].argmax(1)))
    return None, None


def _blocks(noise: np.ndarray, count: int, length: int, rng: np.random.Generator) -> np.ndarray:
    """`count` series of `length` from random runs of the noise, [count, length]."""
    size = math.isqrt(len(noise))
    starts = rng.integers(len(noise) - size + 1, size=(count, -(-length // size)))
    return noise[starts[..., None] + np.arange(size)].reshape(count, -1)[:, :length]


def energy_test(x: Tensor, y: Tensor, permutations: int = 1999, seed: int = 0) -> tuple[float, int]:
    """Whether two samples taken in pairs come from one distribution (Szekely and Rizzo 2004).

    Args:
        x, y: [n, d]; row i of both belongs to one text, so that permutations swap within pairs.

    Returns:
        The energy distance over its largest possible value, in [0, 1], and how many permutations
        reach it.
    """
    pooled = torch.cat((x, y)).double()
    distances = torch.cdist(pooled, pooled)
    generator = torch.Generator().manual_seed(seed)
    flips = torch.randint(2, (permutations, len(x)), generator=generator) * 2.0 - 1
    signs = torch.cat((torch.ones(1, len(x)), flips)).double()
    sides = torch.cat((signs, -signs), 1)
    energy = -((sides @ distances) * sides).sum(1) / len(x) ** 2
    most = 2 * distances[: len(x), len(x) :].mean()
    reached = int((energy[1:] >= energy[0] * (1 - 1e-9)).sum())
    return float((energy[0] / most).nan_to_num(0)), reached


def debiased_cka(x: Tensor, y: Tensor) -> float:
    """Linear centred kernel alignment of two representations of the same n samples, with the
    unbiased HSIC (Song et al. 2012; Nguyen et al. 2021): 0 for independent ones whatever n is.

    Args:
        x, y: [n, d] and [n, e], n > 3.
    """
    k, l = (_open(z.double() @ z.double().T) for z in (x, y))
    return float(_hsic(k, l) / (_hsic(k, k) * _hsic(l, l)).sqrt())


def _open(gram: Tensor) -> Tensor:
    return gram - torch.diag(gram.diagonal())


def _hsic(k: Tensor, l: Tensor) -> Tensor:
    n = len(k)
    cross = (k * l).sum() + k.sum() * l.sum() / ((n - 1) * (n - 2))
    return (cross - 2 / (n - 2) * (k.sum(0) @ l.sum(0))) / (n * (n - 3))
