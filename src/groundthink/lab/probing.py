"""`groundthink probe`: probes on a run, as records, as a page and in words."""

from __future__ import annotations

import time
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from groundthink.diagnose.config import ProbeRun
from groundthink.diagnose.probes import PROBES
from groundthink.errors import UserError, unknown
from groundthink.lab.checking import show
from groundthink.lab.generation import require

if TYPE_CHECKING:
    from groundthink.diagnose.probes.registry import Row
    from groundthink.diagnose.subject import Subject


def run(config: ProbeRun) -> int:
    """Run the probes, write RUN/results/NAME.jsonl for each and RUN/probe.html, and print the
    findings; 1 if one failed.

    Raises:
        UserError: no such probe or run, an untrained model, or too little text.
    """
    from groundthink.diagnose.gates import GATES
    from groundthink.diagnose.probes.prepare import prepare
    from groundthink.diagnose.subject import subject_of
    from groundthink.report.probes.page import write
    from groundthink.verdicts.verdict import finding_of

    for name in config.probes:
        if name not in PROBES:
            raise unknown("probe", name, PROBES)
    folder = Path(require(config.run, "runs/NAME"))
    subject = subject_of(
        folder, config.device, data=config.data, samples=config.samples, lengths=config.lengths
    )
    if subject.steps < 1 and not config.allow_untrained:
        raise UserError(
            "the model is untrained, so there is nothing to find in it; "
            "train it, or give --allow-untrained"
        )
    names = config.probes or PROBES
    if len(names) > 1:
        prepare(subject.model)
    findings, titles = [], {id: gate.title for id, gate in GATES.items()}
    for name in names:
        probe = getattr(import_module(f"groundthink.diagnose.probes.{name}"), name)
        start = time.perf_counter()
        rows = with_caution(probe(subject), subject)
        path = save(subject, name, rows)
        print(f"{name}: {probe.title}, {time.perf_counter() - start:.0f} s -> {path}", flush=True)
        findings += [finding_of(row) for kind, row in rows if kind == "finding"]
        titles[name] = probe.title
    return show(findings, titles, write(folder))


def with_caution(rows: Iterable[Row], subject: Subject) -> list[Row]:
    """The rows; the findings of an untrained model say that it is one."""
    from groundthink.verdicts.verdict import join

    if subject.steps:
        return list(rows)
    return [
        (kind, {**row, "note": join("untrained model", row["note"])} if kind == "finding" else row)
        for kind, row in rows
    ]


def save(subject: Subject, name: str, rows: Iterable[Row]) -> Path:
    """Write RUN/results/NAME.jsonl in place of an earlier one, whole or not at all."""
    from groundthink.records import Records, environment

    assert subject.folder is not None
    path = subject.folder / "results" / f"{name}.jsonl"
    unfinished = path.with_suffix(".tmp")
    unfinished.unlink(missing_ok=True)
    about = {"step": subject.steps, "seed": subject.seed, "samples": subject.samples}
    records = Records(unfinished, {**environment(), **about})
    for kind, row in rows:
        records.append(kind, **row)
    return unfinished.replace(path)
