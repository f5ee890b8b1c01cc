"""A run folder's records, read once and put in order for pages to draw."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from groundthink import config, records
from groundthink.errors import UserError
from groundthink.records import Record

Kinds = dict[str, list[Record]]


@dataclass(frozen=True)
class Run:
    """What a run folder says about itself; anything that is not recorded is empty."""

    path: Path
    config: dict[str, Any] = field(default_factory=dict)
    env: dict[str, Any] = field(default_factory=dict)
    metrics: Kinds = field(default_factory=dict)
    gates: list[Record] = field(default_factory=list)
    bench: list[Record] = field(default_factory=list)

    def of(self, kind: str) -> list[Record]:
        """Metrics records of one kind, in step order."""
        return self.metrics.get(kind, [])

    def last(self, kind: str) -> Record:
        """The newest metrics record of one kind, or an empty one."""
        return next(reversed(self.of(kind)), {})

    def val(self, split: str = "val") -> list[Record]:
        """Validation records of one split."""
        return [record for record in self.of("val") if record.get("split", "val") == split]

    def baseline(self, split: str = "val") -> dict[str, float]:
        """Nats per token of the n-gram baselines of a split: {"uniform", "unigram", "bigram"}."""
        rows = [record for record in self.of("baseline") if record.get("split", "val") == split]
        names = ("uniform", "unigram", "bigram")
        return {name: rows[-1][name] for name in names if rows and rows[-1].get(name) is not None}

    @property
    def provenance(self) -> Record:
        return self.last("provenance")

    @property
    def counts(self) -> dict[str, Any]:
        """Parameters, FLOPs and state bytes of the model, as counted from the built modules."""
        return self.provenance.get("counts") or {}

    def option(self, section: str, name: str) -> Any:
        """A resolved value of config.yaml, or None."""
        return (self.config.get(section) or {}).get(name)


def load(path: str | Path) -> Run:
    """Read a run folder.

    Raises:
        UserError: there is no such folder, it holds no run, or a record file is damaged.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise UserError(f"{folder} is not a run folder; groundthink train writes one")
    metrics = timeline(_read(folder / "metrics.jsonl"))
    if not metrics and not (folder / "config.yaml").exists():
        raise UserError(f"{folder} holds no run: neither config.yaml nor metrics.jsonl is in it")
    return Run(
        path=folder,
        config=config.read_yaml(folder / "config.yaml")
        if (folder / "config.yaml").exists()
        else {},
        env=_read_json(folder / "env.json"),
        metrics=metrics,
        gates=newest(_read(folder / "results" / "gates.jsonl"), "gate", "id", "name"),
        bench=newest(_read(folder / "results" / "bench.jsonl"), "bench", "name"),
    )


def timeline(lines: Iterable[Record]) -> Kinds:
    """Records by kind with rising steps: what a resumed run repeats or abandons is left out.

    A resume at step s discards everything recorded after s; a record of the same step (and
    split, and prompt) as an earlier one replaces it.
    """
    kinds: Kinds = {}
    for record in lines:
        kind, step = record["kind"], record.get("step")
        if kind == "event" and record.get("what") == "resumed" and step is not None:
            for name in kinds.keys() - {"event"}:
                _rewind(kinds[name], step)
        rows = kinds.setdefault(kind, [])
        if kind != "event" and step is not None:
            _rewind(rows, step)
            _remove_twin(rows, record)
        rows.append(record)
    return kinds


def newest(lines: Iterable[Record], kind: str, *keys: str) -> list[Record]:
    """The last record of each combination of `keys`, in the order of their first appearance."""
    rows = (record for record in lines if record["kind"] == kind)
    return list({tuple(row.get(key) for key in keys): row for row in rows}.values())


def _rewind(rows: list[Record], step: int) -> None:
    while rows and (rows[-1].get("step") or 0) > step:
        rows.pop()


def _remove_twin(rows: list[Record], record: Record) -> None:
    identity = [record.get(key) for key in ("step", "split", "prompt")]
    for index in range(len(rows) - 1, -1, -1):
        if rows[index].get("step") != record["step"]:
            return
        if [rows[index].get(key) for key in ("step", "split", "prompt")] == identity:
            del rows[index]
            return


def _read(path: Path) -> list[Record]:
    try:
        return records.read(path)
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}") from error


def _read_json(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}") from error
