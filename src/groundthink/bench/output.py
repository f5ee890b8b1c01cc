"""Where measurements go: records in a file, tables on the screen."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from groundthink import config as configs
from groundthink import records
from groundthink.bench.measure import within
from groundthink.records import Record, Records

Say = Callable[[str], None]
"""Takes one line on what is being measured."""

WIDTH = 130  # columns, where there is no terminal to ask
NAME = 18  # characters of a name that is not broken


def provenance(config: Any, device: torch.device) -> Record:
    """Where the records of a bench come from."""
    found = records.environment()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else found["device"]
    return found | {
        "device": name,
        "on": str(device),
        "config_hash": configs.digest(config),
        "config": {key: value for key, value in configs.to_dict(config).items() if key != "out"},
        "seed": config.seed,
    }


class Results:
    """Bench records: kept, and appended to a file as they come, if it has a name.

    Args:
        out: JSONL file, or empty.
        provenance: what the records come from.
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

    @contextmanager
    def attempt(self, name: str, fields: Mapping[str, Any], seconds: float) -> Iterator[None]:
        """A block whose failure, or more than so many seconds, is a record that says why.

        A contestant may want memory or a compiler that is not there, or be of another project.
        """
        try:
            with within(seconds):
                yield
        except Exception as error:
            nothing = {**fields, "value": None, "n": 0}
            self.add(name, "", nothing, f"cannot run: {first_line(error)}")


class Screen:
    """What a bench shows: lines, a spinner while it measures, tables."""

    def __init__(self) -> None:
        self.console = Console(highlight=False)
        if not self.console.is_terminal:
            self.console = Console(highlight=False, width=WIDTH)

    def title(self, what: str, device: torch.device) -> None:
        """One line: what runs where."""
        if device.type == "cuda":
            self.lines([f"{what} {torch.cuda.get_device_name(device)}"])
        else:
            self.lines([f"{what} {device}, {torch.get_num_threads()} threads"])

    def lines(self, lines: Iterable[str]) -> None:
        """Plain lines."""
        for line in lines:
            self.console.print(Text(line))

    @contextmanager
    def busy(self, what: str) -> Iterator[Say]:
        """A spinner whose text the block can change."""
        with self.console.status(what) as status:
            yield status.update

    def table(
        self, title: str, headings: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1
    ) -> None:
        """A table whose first `left` columns and last one are words, the others numbers.

        Columns without any entry are left out.
        """
        rows = list(rows)
        filled = [i for i, _ in enumerate(headings) if any(row[i] for row in rows)]
        table = Table(
            box=SIMPLE_HEAD,
            title=Text(title),
            title_justify="left",
            pad_edge=False,
            collapse_padding=True,
        )
        for i in filled:
            words = i < left or i == len(headings) - 1
            short = not words or max(len(row[i]) for row in rows) <= NAME
            table.add_column(headings[i], justify="left" if words else "right", no_wrap=short)
        for row in rows:
            table.add_row(*(Text(row[i]) for i in filled))
        self.console.print(table)

    def results(self, title: str, rows: Sequence[Record]) -> None:
        """Records, one a line."""
        headings = ("benchmark", "value", "95 % interval", "middle half", "n", "note")
        self.table(title, headings, map(_cells, rows))

    def records(self, out: str) -> None:
        """Where the records are."""
        if out:
            self.lines([f"records: {out}"])


def _cells(row: Record) -> tuple[str, ...]:
    value = f"{number(row['value'])} {row['unit']}" if row["value"] is not None else "-"
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
    return f"{number(low)} to {number(high)}"


def with_spread(row: Record, key: str) -> str:
    """The median of a nested record and half the width of its middle half; empty without it."""
    if key not in row:
        return ""
    found = row[key]
    half = (found["q3"] - found["q1"]) / 2
    return f"{number(found['value'], 3)} ±{number(half, 1)}"


def number(value: float, digits: int = 4) -> str:
    """So many significant digits, with commas."""
    if not math.isfinite(value) or not value:
        return f"{value:g}"
    places = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{min(places, 6)}f}" if abs(value) >= 1e-4 else f"{value:.1e}"


def first_line(error: Exception) -> str:
    """First line of an error."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
