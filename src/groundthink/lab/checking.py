"""`groundthink check`: gates on a run, in words, as records and as an exit code."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from groundthink.diagnose.config import Check
from groundthink.lab.generation import require

if TYPE_CHECKING:
    from groundthink.verdicts.verdict import Finding


def run(config: Check) -> int:
    """Run the gates, write RUN/results/gates.jsonl and print them; 1 if a gate failed.

    A check of some gates adds to the file; in it, the last finding of a name counts.
    """
    import groundthink.lab.graduation  # noqa: F401  enters its gates
    from groundthink.diagnose.gates import GATES, run_gates
    from groundthink.diagnose.subject import subject_of
    from groundthink.records import Records, environment

    config = replace(config, run=require(config.run, "runs/NAME"))
    subject = subject_of(config.run, config.device)
    findings = run_gates(subject, config.only, allow_untrained=config.allow_untrained)
    path = Path(config.run) / "results" / "gates.jsonl"
    if not config.only:
        path.unlink(missing_ok=True)
    records = Records(path, {**environment(), "step": subject.steps, "seed": subject.seed})
    for finding in findings:
        records.append("gate", **finding.record())
    return show(findings, {id: entry.title for id, entry in GATES.items()}, path)


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
