"""Findings as lines for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from rich.text import Text

from groundthink.verdicts.verdict import Finding, Verdict

GRAVITY = (Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.WARN, Verdict.PASS)
COLOURS = {"PASS": "green", "WARN": "yellow", "FAIL": "bold red", "INCONCLUSIVE": "cyan"}


def lines(findings: Sequence[Finding], titles: Mapping[str, str]) -> Iterator[Text]:
    """One line for each quantity of each gate, of the gravest finding, for 80 columns; what is not
    a PASS says why below it. `titles` says what an id stands for."""
    groups: dict[tuple[str, str], list[Finding]] = {}
    for finding in findings:
        groups.setdefault((finding.id, finding.name.partition(", ")[0]), []).append(finding)
    last = None
    for (id, quantity), group in groups.items():
        if id != last:
            yield Text(f"{id}  {titles[id]}", style="bold")
            last = id
        worst = min(group, key=lambda finding: GRAVITY.index(finding.verdict))
        verdict = Text(f"  {worst.verdict:<13}", style=COLOURS[worst.verdict])
        wanted = f"{worst.threshold.partition(' (')[0]} {worst.unit}"
        yield verdict + f"{quantity:<26} {measured(worst, group):<22} {wanted}".rstrip()
        if worst.verdict is not Verdict.PASS and (why := remark(worst, group)):
            yield Text(" " * 15 + why, style="dim")


def measured(worst: Finding, group: Sequence[Finding]) -> str:
    """The gravest value with its interval; from the lowest to the highest if all verdicts agree."""
    if worst.n == 0:
        return ""
    if len(group) > 1 and all(finding.verdict is worst.verdict for finding in group):
        values = [finding.value for finding in group]
        return f"{min(values):.3g} .. {max(values):.3g}"
    exact = worst.low == worst.high
    interval = "" if exact else f" [{worst.low:.3g}, {worst.high:.3g}]"
    return f"{worst.value:.3g}{interval}"


def remark(worst: Finding, group: Sequence[Finding]) -> str:
    """Where the gravest finding was, how many modules got each verdict, and its note."""
    counts = {verdict: sum(f.verdict is verdict for f in group) for verdict in GRAVITY}
    said = ", ".join(f"{n} {verdict}" for verdict, n in counts.items() if n)
    if len(group) == 1:
        return worst.note
    if len({f.verdict for f in group}) == 1:
        return said
    return "; ".join(filter(None, (worst.name.partition(", ")[2], said, worst.note)))
