"""The gates of a model: `GATES`, their suites, and how they are run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from groundthink.diagnose import (
    audit,
    branch_gates,
    dynamics,
    forward_gates,
    health,
    kernel_gates,
    state_tests,
    training_gates,
)
from groundthink.diagnose.registry import Gate
from groundthink.diagnose.subject import Subject
from groundthink.errors import UserError, unknown
from groundthink.verdicts.verdict import Finding, join

MODULES = (
    kernel_gates,
    forward_gates,
    training_gates,
    health,
    branch_gates,
    state_tests,
    audit,
    dynamics,
)
GATES: dict[str, Gate] = {
    entry.id: entry
    for module in MODULES
    for entry in vars(module).values()
    if isinstance(entry, Gate)
}
"""Every gate by id, in the order in which they are run."""
SUITES = ("gates", "states", "diagnostics", "graduation")
"""What can be run together; the last is made of gates of the others."""
GRADUATION = ("overfit", "baseline", "checkpoint", "G1", "G2", "G3", "G3.5", "G4")
"""What a model must pass to be trained further or larger, beside the tests of its states."""


def ids_of(suite: str) -> list[str]:
    """The gates of a suite, in order.

    Raises:
        UserError: there is no such suite.
    """
    if suite not in SUITES:
        raise unknown("suite", suite, SUITES)
    if suite == "graduation":
        return [id for id, entry in GATES.items() if id in GRADUATION or entry.suite == "states"]
    return [id for id, entry in GATES.items() if entry.suite == suite]


def run_gates(
    subject: Subject,
    only: Sequence[str] = (),
    *,
    suite: str = "gates",
    allow_untrained: bool = False,
) -> list[Finding]:
    """Findings of the gates of a suite, or of the ids in `only`, of whatever suite.

    Raises:
        UserError: an unknown id or suite, or an untrained model where a gate needs a trained one
            and `allow_untrained` is not given; with it every note says so.
    """
    for id in only:
        if id not in GATES:
            raise unknown("gate", id, GATES)
    chosen = only or ids_of(suite)
    gates = [entry for id, entry in GATES.items() if id in chosen]
    needing = [entry.id for entry in gates if entry.trained]
    untrained = subject.steps < 1
    if untrained and needing and not allow_untrained:
        raise UserError(
            f"the model is untrained, and {', '.join(needing)} mean nothing before training; "
            "train it, choose other gates with --only, or give --allow-untrained"
        )
    findings = [finding for entry in gates for finding in entry(subject)]
    if not untrained:
        return findings
    return [replace(f, note=join("untrained model", f.note)) for f in findings]
