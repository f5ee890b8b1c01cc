"""Tables of a page as HTML: verdicts, benches, samples, budget, configuration, provenance."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from groundthink.records import Record
from groundthink.report import interval
from groundthink.report.memory import parameter_parts
from groundthink.report.series import every
from groundthink.report.summary import VERDICTS
from groundthink.report.text import NONE, count, esc, percent, short, sig, size
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
SAMPLES = 8
"""Most samples that a page shows."""
PASSES_SHOWN = 4
"""Most passed findings of a gate that are not folded away."""
_FINDING = ("Measured", "Verdict", "Value", "Interval", "Passes", "Note")


def chip(verdict: str) -> str:
    """A verdict as a coloured label with its sign."""
    return (
        f'<span class="chip {esc(verdict.lower())}">'
        f'<span aria-hidden="true">{SYMBOLS.get(verdict, "?")}</span> {esc(verdict)}</span>'
    )


def table(head: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "") -> str:
    """A table from cells that are HTML already."""
    names = "".join(f'<th scope="col">{esc(name)}</th>' for name in head)
    body = "".join(_row(head, row) for row in rows)
    return f'<table class="{kind}"><thead><tr>{names}</tr></thead><tbody>{body}</tbody></table>'


def _row(head: Sequence[str], cells: Sequence[str]) -> str:
    """One row; each cell carries its column's name, which phones show in place of the head."""
    pairs = zip(head, cells, strict=True)
    body = "".join(f'<td data-label="{esc(name)}">{cell}</td>' for name, cell in pairs)
    return f"<tr>{body}</tr>"


def gates(records: Sequence[Record]) -> str:
    """Findings by gate, urgent ones first in each; more than a few that passed are folded away."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(record["id"], []).append(record)
    names = "".join(f'<th scope="col">{esc(name)}</th>' for name in _FINDING)
    order = [*(gate for gate in GATES if gate in groups), *(g for g in groups if g not in GATES)]
    bodies = "".join(_gate(gate, groups[gate]) for gate in order)
    return f'<table class="findings"><thead><tr>{names}</tr></thead>{bodies}</table>'


def _gate(gate: str, findings: list[Record]) -> str:
    findings = sorted(findings, key=lambda finding: VERDICTS.index(finding["verdict"]))
    tally = Counter(finding["verdict"] for finding in findings)
    words = ", ".join(
        f"{tally[verdict]} {verdict.lower()}" for verdict in VERDICTS if tally[verdict]
    )
    shown = findings
    folded = ""
    if tally["PASS"] > PASSES_SHOWN:
        shown = findings[: -tally["PASS"]]
        rows = "".join(_row(_FINDING, _finding(finding)) for finding in findings[-tally["PASS"] :])
        folded = (
            f'<tr class="folded"><td colspan="{len(_FINDING)}"><details><summary>'
            f"{tally['PASS']} that passed</summary>"
            f'<table class="findings"><tbody>{rows}</tbody></table></details></td></tr>'
        )
    return (
        f'<tbody><tr class="gate"><th colspan="{len(_FINDING)}" scope="rowgroup">{esc(gate)} '
        f"<span>{esc(GATES.get(gate, ''))}</span> <small>{words}</small></th></tr>"
        f"{''.join(_row(_FINDING, _finding(finding)) for finding in shown)}{folded}</tbody>"
    )


def _finding(finding: Record) -> list[str]:
    low, high = finding.get("low"), finding.get("high")
    value = f"{sig(finding['value'])} {esc(finding.get('unit') or '')}"
    if low != high:
        value += f' <span class="aside">{_bound(low, "−∞")} to {_bound(high, "∞")}</span>'
    threshold = finding.get("threshold") or ""
    sample = f' <span class="aside">n = {count(finding["n"])}</span>' if finding.get("n") else ""
    return [
        esc(finding["name"]),
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


def bench(records: Sequence[Record]) -> str:
    """Measured speeds and sizes with their intervals."""
    rows = []
    for record in records:
        low, high = record.get("low"), record.get("high")
        reach = f"{sig(low)} to {sig(high)}" if low is not None and high is not None else NONE
        value = f"{sig(record['value'])} {esc(record.get('unit') or '')}"
        note = esc(record.get("note") or "")
        rows.append([esc(record["name"]), value, reach, count(record.get("n")), note])
    return table(("Benchmark", "Value", "95 % interval", "n", "Note"), rows, "bench")


def samples(records: Sequence[Record]) -> str:
    """What the model wrote, oldest first; the prompt is set apart from the continuation."""
    return "".join(map(_sample, every(records, SAMPLES)))


def _sample(record: Record) -> str:
    prompt, text = esc(record.get("prompt") or ""), esc(record.get("text") or "")
    return (
        f'<article class="sample"><h3>step {count(record.get("step"))}</h3>'
        f'<pre tabindex="0"><b>{prompt}</b>{text}</pre></article>'
    )


def budget(counts: Mapping[str, Any]) -> str:
    """Parameters by part, then what one token costs."""
    parts = parameter_parts(counts)
    if not parts:
        return ""
    total = counts["total"]
    rows = [[esc(label), count(number), percent(number / total)] for label, number, _ in parts]
    rows.append(["<strong>total</strong>", f"<strong>{count(total)}</strong>", percent(1)])
    return table(("Part", "Parameters", "Share"), rows, "numbers")


def costs(counts: Mapping[str, Any]) -> str:
    """What the model takes to run: parameters outside embeddings, work and memory per token."""
    rows = [
        ("Parameters without embeddings", counts.get("non_embedding"), count),
        (
            "Work for one token, forward",
            counts.get("flops_per_token"),
            lambda n: f"{count(n)} FLOP",
        ),
        ("State of one sequence", counts.get("state_bytes"), size),
    ]
    known = [[label, form(value)] for label, value, form in rows if value is not None]
    return table(("Cost", "Value"), known, "numbers") if known else ""


def settings(values: Mapping[str, Any]) -> str:
    """Names and values, as written."""
    rows = [
        [f"<code>{esc(name)}</code>", f"<code>{_plain(value)}</code>"]
        for name, value in values.items()
    ]
    return table(("Name", "Value"), rows, "settings")


def _plain(value: Any) -> str:
    return esc(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
