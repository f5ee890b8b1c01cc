"""Races that machine noise cannot decide."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from groundthink.errors import UserError
from groundthink.verdicts import statistics

Lap = Callable[[], float]
"""Does the work once and returns the seconds it took."""

RAISED = 1.0  # seconds of work after which the clocks of a GPU are up
LEAST = 3  # laps of the slowest contestant; from six on a median has a 95 % interval


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
    contestant, because a lap heats the machine and fills the caches for the next one. A slow
    contestant leaves early: two are compared by the rounds that both ran (`ratio`).

    Args:
        device: where the work is done; a GPU is kept busy for a second first, because it takes
            that long to raise its clocks.
        warmup: laps of each that are not counted, fewer where they take a tenth of `seconds`.
        seconds: a contestant whose laps have taken this long leaves, once it has run LEAST.
    """
    start = time.perf_counter()
    for lap in laps.values():
        spent = 0.0
        for _ in range(warmup):
            if spent <= seconds / 10:
                spent += lap()
    while laps and device and device.type == "cuda" and time.perf_counter() - start < RAISED:
        for lap in laps.values():
            lap()
    found: dict[str, list[float]] = {name: [] for name in laps}
    for number in range(rounds):
        names = [name for name, own in found.items() if len(own) < LEAST or sum(own) < seconds]
        first = number % max(1, len(names))
        for name in names[first:] + names[:first]:
            found[name].append(laps[name]())
    return found


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Break the block off once it has taken so long.

    Only what runs in Python in the main thread can be: gradients are therefore computed in the
    calling thread meanwhile. Elsewhere, and on a system without alarms, the block takes its time.

    Raises:
        UserError: the time is over.
    """

    def ring(*_: object) -> None:
        raise UserError(f"not ready after {seconds:g} s (option patience)")

    here = threading.current_thread() is threading.main_thread() and hasattr(signal, "SIGALRM")
    if not here or math.isinf(seconds):
        yield
        return
    handler = signal.signal(signal.SIGALRM, ring)
    timer = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        with torch.autograd.set_multithreading_enabled(False):
            yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, *timer)
        signal.signal(signal.SIGALRM, handler)


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
    """`spread` of how many times faster than `other` each round was that both ran."""
    return spread([theirs / own for own, theirs in zip(seconds, other, strict=False)])
