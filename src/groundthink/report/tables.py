"""Tables of a page as HTML: benches, samples, budget, configuration, provenance."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from groundthink.records import Record
from groundthink.report.memory import parameter_parts
from groundthink.report.series import every
from groundthink.report.text import NONE, count, esc, percent, sig, size

SAMPLES = 8
"""Most samples that a page shows."""


def table(head: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "") -> str:
    """A table from cells that are HTML already."""
    names = "".join(f'<th scope="col">{esc(name)}</th>' for name in head)
    body = "".join(row(head, cells) for cells in rows)
    return f'<table class="{kind}"><thead><tr>{names}</tr></thead><tbody>{body}</tbody></table>'


def row(head: Sequence[str], cells: Sequence[str]) -> str:
    """One row; each cell carries its column's name, which phones show in place of the head."""
    pairs = zip(head, cells, strict=True)
    body = "".join(f'<td data-label="{esc(name)}">{cell}</td>' for name, cell in pairs)
    return f"<tr>{body}</tr>"


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
