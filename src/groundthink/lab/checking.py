"""`groundthink check`: gates on a run, in words, as records and as an exit code."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from groundthink.diagnose.config import Check
from groundthink.lab.generation import require

if TYPE_CHECKING:
    from groundthink.records import Record
    from groundthink.verdicts.verdict import Finding


def run(config: Check) -> int:
    """Run a suite of gates, write RUN/results/gates.jsonl and print them; 1 if a gate failed.

    Findings of other gates stay in the file if they are about the same step.
    """
    import groundthink.lab.graduation  # noqa: F401  enters its gates
    from groundthink.diagnose.gates import GATES, run_gates
    from groundthink.diagnose.subject import subject_of
    from groundthink.records import Records, environment

    config = replace(config, run=require(config.run, "runs/NAME"))
    subject = subject_of(
        config.run,
        config.device,
        data=config.data,
        samples=config.samples,
        lengths=config.lengths,
    )
    findings = run_gates(
        subject, config.only, suite=config.suite, allow_untrained=config.allow_untrained
    )
    path = Path(config.run) / "results" / "gates.jsonl"
    unfinished = path.with_suffix(".tmp")
    unfinished.parent.mkdir(exist_ok=True)
    others = kept(path, {finding.id for finding in findings}, subject.steps)
    unfinished.write_text("".join(f"{json.dumps(record)}\n" for record in others), "utf-8")
    records = Records(unfinished, {**environment(), "step": subject.steps, "seed": subject.seed})
    for finding in findings:
        records.append("gate", **finding.record())
    unfinished.replace(path)
    return show(findings, {id: entry.title for id, entry in GATES.items()}, path)


def kept(path: Path, ids: Collection[str], step: int) -> Iterator[Record]:
    """The records of a file about the model at `step`, without the findings of the gates `ids`."""
    from groundthink.records import read

    current = False
    for record in read(path):
        if record["kind"] == "provenance":
            current = record.get("step") == step
        if current and record.get("id") not in ids:
            yield record


def show(findings: Sequence[Finding], titles: Mapping[str, str], path: Path) -> int:
    """Print findings and where their records are; 1 if one failed."""
    from rich.console import Console

    from groundthink.diagnose.check import lines

    console = Console(highlight=False)
    console.print(f"{'':2}{'verdict':<13}{'measured':<26} {'value [95 % interval]':<22} wanted")
    for line in lines(findings, titles):
        console.print(line, soft_wrap=True)
    counts = Counter(str(finding.verdict) for finding in findings)
    print(", ".join(f"{count} {verdict}" for verdict, count in counts.items()), f"-> {path}")
    return int("FAIL" in counts)
