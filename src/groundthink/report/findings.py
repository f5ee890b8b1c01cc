"""Findings as a table: by gate, one row for a quantity of many layers, what passed folded away."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from groundthink.records import Record
from groundthink.report import interval
from groundthink.report.plot import COMPONENTS
from groundthink.report.summary import VERDICTS
from groundthink.report.tables import row
from groundthink.report.text import NONE, count, esc, prose, short, sig
from groundthink.report.thresholds import ranges

SYMBOLS = {"PASS": "✓", "WARN": "!", "FAIL": "✕", "INCONCLUSIVE": "?"}
GATES = {
    "G0": "kernels agree with their references",
    "G1": "forward pass",
    "G2": "entropy at initialisation",
    "G3": "training",
    "G3.5": "state health",
    "G4": "gradient balance",
    "S0": "state shapes",
    "S1": "state size",
    "S2": "state variation",
    "S3": "determinism",
    "S3b": "gradient through the state",
    "S4": "contribution of the states",
    "S4b": "persistence",
    "D1": "state divergence",
    "D2": "state collapse",
    "D3": "component interaction",
    "D4a": "length",
    "D4b": "influence",
}
NAMES = {key: name for key, name, _ in COMPONENTS}
PASSES_SHOWN = 4
"""Most passed quantities of a gate that are not folded away."""
_HEAD = ("Measured", "Verdict", "Value", "Interval", "Passes", "Note")


def gates(records: Sequence[Record]) -> str:
    """Findings by gate, urgent ones first in each; more than a few that passed are folded away."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(record["id"], []).append(record)
    order = [*(gate for gate in GATES if gate in groups), *(g for g in groups if g not in GATES)]
    names = "".join(f'<th scope="col">{esc(name)}</th>' for name in _HEAD)
    bodies = "".join(_gate(gate, groups[gate]) for gate in order)
    return f'<table class="findings"><thead><tr>{names}</tr></thead>{bodies}</table>'


def chip(verdict: str) -> str:
    """A verdict as a coloured label with its sign."""
    return (
        f'<span class="chip {esc(verdict.lower())}">'
        f'<span aria-hidden="true">{SYMBOLS.get(verdict, "?")}</span> {esc(verdict)}</span>'
    )


def _gate(gate: str, findings: list[Record]) -> str:
    families: dict[tuple[str, str], list[Record]] = {}
    for i, finding in enumerate(findings):
        quantity, branch, layer = parted(finding["name"])
        key = (quantity, branch) if layer else (finding["name"], str(i))
        families.setdefault(key, []).append(finding)
    for family in families.values():
        family.sort(key=_gravity)
    ordered = sorted(families.values(), key=lambda family: _urgency(family[0]))
    passed = [family for family in ordered if family[0]["verdict"] == "PASS"]
    folded = passed if sum(map(len, passed)) > PASSES_SHOWN else []
    shown = "".join(_family(family) for family in ordered if family not in folded)
    rest = [finding for family in folded for finding in family]
    return (
        f'<tbody><tr class="gate"><th colspan="{len(_HEAD)}" scope="rowgroup">{esc(gate)} '
        f"<span>{esc(GATES.get(gate, ''))}</span> <small>{tally(findings)}</small></th></tr>"
        f"{shown}{_folded(f'{len(rest)} that passed', rest)}</tbody>"
    )


def parted(name: str) -> tuple[str, str, str]:
    """Quantity, branch and layer of a finding's name; empty where it has none."""
    quantity, _, where = name.partition(", ")
    parts = where.split(".")
    if parts[0] != "blocks" or len(parts) > 3:
        return name, "", ""
    return quantity, parts[2] if len(parts) == 3 else "", parts[1]


def tally(findings: Sequence[Record]) -> str:
    """How many got each verdict: 1 fail, 3 pass."""
    counts = Counter(finding["verdict"] for finding in findings)
    return ", ".join(f"{counts[name]} {name.lower()}" for name in VERDICTS if counts[name])


def _urgency(finding: Record) -> int:
    return VERDICTS.index(finding["verdict"])


def _gravity(finding: Record) -> tuple[int, float]:
    """Smallest for the gravest verdict, and for the value farthest beyond the range that passes."""
    value = finding["value"]
    if value is None or not finding.get("threshold"):
        return _urgency(finding), 0.0
    low, high = ranges(finding["threshold"])[0]
    return _urgency(finding), -max(low - value, value - high)


def _family(family: list[Record]) -> str:
    """One quantity of all layers of a branch: the gravest of them, the others below."""
    worst, *others = family
    if not others:
        return row(_HEAD, _cells(worst))
    quantity, branch, layer = parted(worst["name"])
    cells = _cells(worst)
    cells[0] = prose(f"{quantity}, {NAMES.get(branch, branch)}" if branch else quantity)
    cells[0] += f' <span class="aside">worst of {len(family)}: layer {esc(layer)}</span>'
    cells[1] += f' <span class="aside">{tally(family)}</span>'
    return row(_HEAD, cells) + _folded(f"all {len(family)} layers", sorted(family, key=_layer))


def _layer(finding: Record) -> int:
    return int(parted(finding["name"])[2] or 0)


def _folded(title: str, findings: Sequence[Record]) -> str:
    if not findings:
        return ""
    rows = "".join(row(_HEAD, _cells(finding)) for finding in findings)
    return (
        f'<tr class="folded"><td colspan="{len(_HEAD)}"><details><summary>{esc(title)}</summary>'
        f'<table class="findings"><tbody>{rows}</tbody></table></details></td></tr>'
    )


def _cells(finding: Record) -> list[str]:
    low, high = finding.get("low"), finding.get("high")
    value = f"{sig(finding['value'])} {esc(finding.get('unit') or '')}"
    if low != high:
        value += f' <span class="aside">{_bound(low, "−∞")} to {_bound(high, "∞")}</span>'
    threshold = finding.get("threshold") or ""
    sample = f' <span class="aside">n = {count(finding["n"])}</span>' if finding.get("n") else ""
    quantity, _, where = finding["name"].partition(", ")
    return [
        prose(f"{quantity}, {NAMES[where]}" if where in NAMES else finding["name"]),
        chip(finding["verdict"]),
        value,
        interval.bar(finding["value"], low, high, threshold),
        _threshold(threshold),
        esc(finding.get("note") or "") + sample,
    ]


def _threshold(text: str) -> str:
    if not text:
        return NONE
    passes, warns = ranges(text)
    aside = f' <span class="aside">warn {_words(warns)}</span>' if warns != passes else ""
    return _words(passes) + aside


def _words(edges: tuple[float, float]) -> str:
    low, high = edges
    if low == high:
        return short(low)
    if math.isinf(low):
        return "any" if math.isinf(high) else f"≤ {short(high)}"
    return f"≥ {short(low)}" if math.isinf(high) else f"{short(low)} to {short(high)}"


def _bound(value: float | None, infinite: str) -> str:
    return infinite if value is None else sig(value)
