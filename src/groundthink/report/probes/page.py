"""The page of a run's probes: RUN/probe.html, a section for each probe that has records."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path

from groundthink import records
from groundthink.errors import UserError
from groundthink.report import summary
from groundthink.report.findings import gates
from groundthink.report.probes.sentences import SAID
from groundthink.report.run import Kinds, Run, load
from groundthink.report.shell import Section, document
from groundthink.report.text import count, esc, prose

PROBES = ("balance", "states", "memory", "context", "flow", "drift")


def write(path: str | Path) -> Path:
    """Write RUN/probe.html, replacing an earlier one only when the new one is complete.

    Raises:
        UserError: the folder holds no run, a damaged file, or nothing was probed yet.
    """
    run = load(path)
    target = run.path / "probe.html"
    unfinished = target.with_suffix(".html.tmp")
    unfinished.write_text(render(run), encoding="utf-8")
    os.replace(unfinished, target)
    return target


def render(run: Run) -> str:
    """The page as HTML."""
    found = {name: read(run, name) for name in PROBES}
    found = {name: rows for name, rows in found.items() if rows}
    if not found:
        raise UserError(f"nothing was probed yet; do it with: groundthink probe {run.path}")
    footer = (
        f"<p>Written {datetime.now(UTC):%d %b %Y, %H:%M UTC} by groundthink from "
        f"{', '.join(f'results/{name}.jsonl' for name in found)}.</p>"
    )
    sections = [_section(name, rows) for name, rows in found.items()]
    title = f"Inside {summary.name(run)}"
    return document(f"{title} · groundthink", _header(run, title, found), sections, footer)


def read(run: Run, name: str) -> Kinds:
    """Records of a probe by kind."""
    path = run.path / "results" / f"{name}.jsonl"
    kinds: Kinds = {}
    try:
        for record in records.read(path):
            kinds.setdefault(record["kind"], []).append(record)
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}") from error
    return kinds


def _section(name: str, rows: Kinds) -> Section:
    section = import_module(f"groundthink.report.probes.{name}").section(rows)
    findings = gates(rows["finding"]) if "finding" in rows else ""
    return replace(section, html=section.html + findings)


def _header(run: Run, title: str, found: dict[str, Kinds]) -> str:
    verdicts = [row["verdict"] for rows in found.values() for row in rows.get("finding", [])]
    steps = {row["step"] for rows in found.values() for row in rows["provenance"]}
    at = " and ".join(count(step) for step in sorted(steps))
    words = [run.path.resolve().name, f"after step {at}" if at else ""]
    return (
        f'<p class="meta">{" · ".join(esc(word) for word in words if word)}</p>'
        f"<h1>{esc(title)}</h1><p class='outcome'>{prose(outcome(verdicts))}</p>"
        f'<dl class="found">{"".join(said(name, rows) for name, rows in found.items())}</dl>'
    )


def said(name: str, rows: Kinds) -> str:
    """What a probe found, in sentences, under a link to its section."""
    sentences = " ".join(SAID[name](rows))
    if not sentences:
        return ""
    link = f'<a href="#{name}">{name.capitalize()}</a>'
    return f"<div><dt>{link}</dt><dd>{prose(sentences)}</dd></div>"


def outcome(verdicts: Iterable[str]) -> str:
    """What all findings come to, in one sentence."""
    verdicts = list(verdicts)
    tally = {name: verdicts.count(name) for name in summary.VERDICTS}
    said = [f"{n} {name.lower()}" for name, n in tally.items() if n]
    return f"{count(len(verdicts))} findings: {', '.join(said)}." if said else "No finding yet."
