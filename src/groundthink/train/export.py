"""What else is made of records: metrics.csv, and TensorBoard events where it is installed."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from groundthink import records
from groundthink.records import Record

NOT_METRICS = ("kind", "time", "step", "split", "best")


class Sink(Protocol):
    """Takes every record of a run as it is written."""

    def log(self, record: Record) -> None:
        """Take one record."""

    def close(self) -> None:
        """The run has ended."""


def scalars(record: Record) -> Iterator[tuple[str, float]]:
    """Numbers of a record by name; the items of a list or dict are named ``field/item``."""
    for field, value in record.items():
        if field in NOT_METRICS:
            continue
        if isinstance(value, list | tuple):
            value = dict(enumerate(value))
        if isinstance(value, dict):
            yield from (
                (f"{field}/{key}", x) for key, x in scalars({str(k): v for k, v in value.items()})
            )
        elif isinstance(value, int | float):
            yield field, value


def write_csv(folder: Path) -> None:
    """metrics.csv from metrics.jsonl: a row for each step, columns such as ``val/loss``."""
    rows: dict[int, dict[str, Any]] = {}
    columns: dict[str, None] = {"step": None}
    for record in records.read(folder / "metrics.jsonl", "train", "val", "balance", "states"):
        prefix = "" if record["kind"] == "train" else record["kind"] + "/"
        row = rows.setdefault(record["step"], {"step": record["step"]})
        for name, value in scalars(record):
            row[prefix + name] = value
            columns[prefix + name] = None
    with (folder / "metrics.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows[step] for step in sorted(rows))


class TensorBoard:
    """Writes the numbers and samples of records as TensorBoard events.

    Args:
        step: the step that a resumed run goes on from; later events are dropped.
    """

    def __init__(self, folder: Path, step: int):
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(
            str(folder / "tensorboard"), purge_step=step + 1 if step else None
        )

    def log(self, record: Record) -> None:
        if record["kind"] == "sample":
            self._writer.add_text("sample", record["prompt"] + record["text"], record["step"])
        elif "step" in record:
            for name, value in scalars(record):
                self._writer.add_scalar(f"{record['kind']}/{name}", value, record["step"])

    def close(self) -> None:
        self._writer.close()


def tensorboard(folder: Path, step: int) -> TensorBoard | None:
    """A TensorBoard sink, or None where tensorboard is not installed."""
    try:
        return TensorBoard(folder, step)
    except ImportError:
        return None
