"""A verdict is an interval against a two-sided threshold; it may be that the data do not say."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from groundthink.verdicts.statistics import Interval, samples_to_clear
from groundthink.verdicts.thresholds import THRESHOLDS, Range, Threshold

HOPELESS = 100
"""Times as many samples as there are that nobody would go and get."""


class Verdict(StrEnum):
    """Outcome of one test."""

    PASS = "PASS"
    WARN = "WARN"
    FAIL = "FAIL"
    INCONCLUSIVE = "INCONCLUSIVE"


@dataclass(frozen=True)
class Finding:
    """One measured quantity with its verdict.

    `name` is the quantity, then ", " and the module it was measured on if there are several.
    """

    id: str
    name: str
    verdict: Verdict
    value: float
    low: float
    high: float
    threshold: str
    unit: str
    n: int
    note: str = ""

    def record(self) -> dict[str, Any]:
        """Fields of its record."""
        return {**dataclasses.asdict(self), "verdict": self.verdict.value}


def finding_of(record: Mapping[str, Any]) -> Finding:
    """The finding that a record was made from."""
    return Finding(**{**record, "verdict": Verdict(record["verdict"])})


def decide(interval: Interval, threshold: Threshold) -> Verdict:
    """PASS if the whole interval passes, FAIL if all of it lies beyond the warning range, WARN if
    all of it lies between, INCONCLUSIVE if it straddles an edge. A NaN fails.

    With a 95 % interval a verdict on one edge errs with 2.5 %; inside a range around zero it is
    the two one-sided tests of equivalence (Schuirmann 1987).
    """
    if math.isnan(interval.low) or math.isnan(interval.high):
        return Verdict.FAIL
    if _inside(interval, threshold.passes):
        return Verdict.PASS
    if _outside(interval, threshold.warns):
        return Verdict.FAIL
    if _outside(interval, threshold.passes) and _inside(interval, threshold.warns):
        return Verdict.WARN
    return Verdict.INCONCLUSIVE


def _inside(interval: Interval, edges: Range) -> bool:
    return edges[0] <= interval.low and interval.high <= edges[1]


def _outside(interval: Interval, edges: Range) -> bool:
    return interval.high < edges[0] or edges[1] < interval.low


def samples_needed(interval: Interval, threshold: Threshold) -> int | None:
    """About how many samples would move the interval off every edge it straddles, with a
    probability of 80 %; None if the value sits on an edge or the width is unknown."""
    needed = interval.n
    for edge in {*threshold.passes, *threshold.warns}:
        if interval.low <= edge <= interval.high:
            cleared = samples_to_clear(interval, edge)
            if cleared is None:
                return None
            needed = max(needed, cleared)
    return needed


def missing(interval: Interval, threshold: Threshold, samples: str) -> str:
    """What an interval that straddles an edge lacks, in words."""
    if not (math.isfinite(interval.low) and math.isfinite(interval.high)):
        return f"{interval.n} {samples} give no interval"
    needed = samples_needed(interval, threshold)
    if needed is None or needed > HOPELESS * interval.n:
        return f"too near an edge for any number of {samples} to settle"
    return f"needs about {float(f'{needed - interval.n:.2g}'):,.0f} more {samples}"


def judge(
    gate: str,
    quantity: str,
    interval: Interval,
    note: str = "",
    where: str = "",
    samples: str = "samples",
) -> Finding:
    """The finding for a measured interval, against the threshold of that gate and quantity; n of
    the interval counts `samples`."""
    threshold = THRESHOLDS[gate, quantity]
    verdict = decide(interval, threshold)
    if verdict is Verdict.INCONCLUSIVE:
        note = join(missing(interval, threshold, samples), note)
    return Finding(
        id=gate,
        name=join(quantity, where, ", "),
        verdict=verdict,
        value=interval.value,
        low=interval.low,
        high=interval.high,
        threshold=threshold.text,
        unit=threshold.unit,
        n=interval.n,
        note=note,
    )


def skipped(gate: str, name: str, reason: str) -> Finding:
    """The finding of a test that does not apply or has nothing to measure; never a PASS."""
    nan = math.nan
    return Finding(gate, name, Verdict.INCONCLUSIVE, nan, nan, nan, "", "", 0, f"skipped: {reason}")


def join(first: str, second: str, between: str = "; ") -> str:
    """Both texts with `between` between them, or the one that is not empty."""
    return between.join(part for part in (first, second) if part)
