"""Races that machine noise cannot decide."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from groundthink.verdicts import statistics

Lap = Callable[[], float]
"""Does the work once and returns the seconds it took."""

RAISED = 1.0  # seconds of work after which the clocks of a GPU are up
LEAST_ROUNDS = 6  # below, the median has no 95 % interval


def stopwatch(action: Callable[[], object], device: torch.device) -> float:
    """Seconds from the start of an action until the device has finished it."""
    _finish(device)
    start = time.perf_counter()
    action()
    _finish(device)
    return time.perf_counter() - start


def _finish(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def race(
    laps: Mapping[str, Lap],
    rounds: int,
    device: torch.device | None = None,
    *,
    warmup: int = 2,
    seconds: float = math.inf,
) -> dict[str, list[float]]:
    """Seconds of one lap of each contestant a round, by contestant.

    A slow spell of the machine then hits all alike, and every round starts with another
    contestant, because a lap heats the machine and fills the caches for the next one.

    Args:
        device: where the work is done; a GPU is kept busy for a second first, because it takes
            that long to raise its clocks.
        warmup: laps of each that are not counted.
        seconds: no round starts later than this, once LEAST_ROUNDS are run.
    """
    start = time.perf_counter()
    for lap in laps.values():
        for _ in range(warmup):
            lap()
    while laps and device and device.type == "cuda" and time.perf_counter() - start < RAISED:
        for lap in laps.values():
            lap()
    names, found = list(laps), {name: [] for name in laps}
    start = time.perf_counter()
    for number in range(rounds if names else 0):
        if number >= LEAST_ROUNDS and time.perf_counter() - start > seconds:
            break
        first = number % len(names)
        for name in names[first:] + names[:first]:
            found[name].append(laps[name]())
    return found


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Fields of a record: the median with its 95 % interval, quartiles, and how many values."""
    middle = statistics.median(values)
    q1, q3 = np.quantile(values, (0.25, 0.75)).tolist()
    return {"value": middle.value, "low": middle.low, "high": middle.high, "q1": q1, "q3": q3} | {
        "n": len(values)
    }


def speed(seconds: Sequence[float], work: float) -> dict[str, Any]:
    """`spread` of the work a second of laps that each do `work`."""
    return spread([work / lap for lap in seconds])


def ratio(seconds: Sequence[float], other: Sequence[float]) -> dict[str, Any]:
    """`spread` of how many times faster than `other` each round was; above 1 is faster."""
    return spread([theirs / own for own, theirs in zip(seconds, other, strict=True)])
