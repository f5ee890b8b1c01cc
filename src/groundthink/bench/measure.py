"""Races that machine noise cannot decide, and the records and the table they end in."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from groundthink.records import Record, Records
from groundthink.verdicts import statistics

Lap = Callable[[], float]
"""Does the work once and returns the seconds it took."""

Say = Callable[[str], None]
"""Takes one line on what is being measured."""

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
    laps: Mapping[str, Lap], rounds: int, *, warmup: int = 2, seconds: float = math.inf
) -> dict[str, list[float]]:
    """Seconds of one lap of each contestant a round, by contestant.

    A slow spell of the machine then hits all alike, and every round starts with another
    contestant, because a lap heats the machine and fills the caches for the next one.

    Args:
        warmup: laps of each that are not counted.
        seconds: no round starts later than this, once LEAST_ROUNDS are run.
    """
    for lap in laps.values():
        for _ in range(warmup):
            lap()
    names, found = list(laps), {name: [] for name in laps}
    start = time.perf_counter()
    for number in range(rounds):
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


class Results:
    """Bench records: appended to a file as they come, if it has a name, and shown as one table.

    Args:
        out: JSONL file, or empty.
        provenance: what the records come from (`groundthink.records.environment` and more).
    """

    def __init__(self, out: str, provenance: Mapping[str, Any]):
        self.rows: list[Record] = []
        self._file = Records(out, provenance) if out else None

    def add(self, name: str, unit: str, fields: Mapping[str, Any], note: str = "") -> None:
        """Keep one record; `fields` holds value and n, and low, high, q1, q3 where there are."""
        record = {"name": name, "unit": unit, **fields, "note": note}
        self.rows.append(record)
        if self._file:
            self._file.append("bench", **record)

    def table(self, title: str) -> Table:
        """All records so far."""
        table = Table(box=SIMPLE_HEAD, title=Text(title), title_justify="left")
        for heading in ("benchmark", "value", "95 % interval", "middle half", "n", "note"):
            table.add_column(heading, justify="right" if heading in ("value", "n") else "left")
        for row in self.rows:
            table.add_row(*map(Text, _cells(row)))
        return table


def _cells(row: Record) -> tuple[str, ...]:
    value = f"{_number(row['value'])} {row['unit']}" if row["value"] is not None else "-"
    return (
        row["name"],
        value.strip(),
        _range(row.get("low"), row.get("high")),
        _range(row.get("q1"), row.get("q3")),
        str(row["n"]),
        row["note"],
    )


def _range(low: float | None, high: float | None) -> str:
    if low is None or high is None or not math.isfinite(low + high):
        return ""
    return f"{_number(low)} to {_number(high)}"


def _number(value: float) -> str:
    """Four significant digits, with commas."""
    if not math.isfinite(value) or not value:
        return str(value)
    digits = max(0, 3 - math.floor(math.log10(abs(value))))
    return f"{value:,.{min(digits, 6)}f}" if abs(value) >= 1e-4 else f"{value:.1e}"
