"""The gates of a model: `GATES` and how they are run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from groundthink.diagnose import (
    branch_gates,
    forward_gates,
    health,
    kernel_gates,
    training_gates,
)
from groundthink.diagnose.registry import Gate
from groundthink.diagnose.subject import Subject
from groundthink.errors import UserError, unknown
from groundthink.verdicts.verdict import Finding, join

MODULES = (kernel_gates, forward_gates, training_gates, health, branch_gates)
GATES: dict[str, Gate] = {
    entry.id: entry
    for module in MODULES
    for entry in vars(module).values()
    if isinstance(entry, Gate)
}
"""Every gate by id, in the order in which they are run."""


def run_gates(
    subject: Subject, only: Sequence[str] = (), *, allow_untrained: bool = False
) -> list[Finding]:
    """Findings of every gate, or of the ids in `only`.

    Raises:
        UserError: an unknown id, or an untrained model where a gate needs a trained one and
            `allow_untrained` is not given; with it every note says so.
    """
    for id in only:
        if id not in GATES:
            raise unknown("gate", id, GATES)
    gates = [entry for id, entry in GATES.items() if not only or id in only]
    needing = [entry.id for entry in gates if entry.trained]
    untrained = subject.steps < 1
    if untrained and needing and not allow_untrained:
        raise UserError(
            f"the model is untrained, and {', '.join(needing)} mean nothing before training; "
            "train it, choose other gates with --only, or give --allow_untrained"
        )
    findings = [finding for entry in gates for finding in entry(subject)]
    if not untrained:
        return findings
    return [replace(f, note=join("untrained model", f.note)) for f in findings]
