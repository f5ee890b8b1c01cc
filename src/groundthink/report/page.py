"""The report of a training run: RUN/report.html from the run's records and nothing else."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from groundthink.report import branches, figures, findings, memory, summary, tables
from groundthink.report.run import Run, load
from groundthink.report.shell import Section, document
from groundthink.report.text import compact, count, esc, prose

_SOURCES = "config.yaml, env.json, metrics.jsonl, results/gates.jsonl and results/bench.jsonl"


def write(path: str | Path) -> Path:
    """Write RUN/report.html, replacing an earlier one only when the new one is complete.

    Raises:
        UserError: the folder is missing, holds no run, or one of its record files is damaged.
    """
    run = load(path)
    target = run.path / "report.html"
    unfinished = target.with_suffix(".html.tmp")
    unfinished.write_text(render(run), encoding="utf-8")
    os.replace(unfinished, target)
    return target


def render(run: Run) -> str:
    """The page of a run as HTML."""
    written = _moment(datetime.now(UTC).timestamp())
    footer = f"<p>Written {written} by groundthink from {_SOURCES}.</p>"
    return document(f"{summary.name(run)} · groundthink", _header(run), sections(run), footer)


def sections(run: Run) -> list[Section]:
    """The parts of the page in reading order."""
    return [
        Section("learning", "Learning", figures.learning(run), notes=_learning_notes(run)),
        _checks(run),
        _fusion(run),
        _gradients(run),
        _states(run),
        _samples(run),
        Section("speed", "Speed", figures.speed(run), notes=_speed_notes(run)),
        Section("bench", "Benchmarks", html=tables.bench(run.bench) if run.bench else ""),
        _size(run),
        _configuration(run),
        _origin(run),
    ]


def _header(run: Run) -> str:
    cells = "".join(
        f"<div><dt>{esc(tile.label)}</dt><dd><strong>{esc(tile.value)}</strong> {esc(tile.unit)}"
        f"<small>{esc(tile.detail)}</small></dd></div>"
        for tile in summary.tiles(run)
    )
    status = summary.status(run)
    started = next((_moment(r["time"]) for r in run.of("provenance") if r.get("time")), "")
    words = [run.path.resolve().name, f"started {started}" if started else ""]
    meta = " · ".join(esc(word) for word in words if word)
    return (
        f'<p class="meta"><span class="status {status}">{status}</span> {meta}</p>'
        f"<h1>{esc(summary.name(run))}</h1><p class='outcome'>{prose(summary.outcome(run))}</p>"
        + (f'<dl class="tiles">{cells}</dl>' if cells else "")
    )


def _moment(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%d %b %Y, %H:%M UTC}".lstrip("0")


def _learning_notes(run: Run) -> list[str]:
    notes = []
    if summary.status(run) == "diverged" and run.last("event").get("note"):
        notes.append(f"The run stopped because: {run.last('event')['note']}.")
    if not run.of("train"):
        notes.append("No training step is recorded.")
    if not run.val():
        every = run.option("train", "eval_every")
        first = f"; it runs every {count(every)} steps" if every else ""
        notes.append(f"No validation is recorded{first}.")
    elif not run.baseline():
        notes.append("No n-gram baseline is recorded, so the loss has nothing to be held against.")
    return notes


def _checks(run: Run) -> Section:
    if run.gates:
        return Section("checks", "Checks", html=findings.gates(run.gates))
    note = "No gate was measured; groundthink check does it, and the next report shows it."
    return Section("checks", "Checks", notes=[note])


def _fusion(run: Run) -> Section:
    drawn = branches.fusion(run)
    if drawn:
        return Section("fusion", "Fusion", drawn)
    note = "No balance record was written yet, so gates and shares are not known."
    if run.counts and not run.counts.get("fusion"):
        note = "No block of this model runs RWKV-6 and Mamba-2 side by side: nothing is fused."
    return Section("fusion", "Fusion", notes=[note])


def _gradients(run: Run) -> Section:
    drawn = [*figures.stability(run), *branches.balance(run)]
    notes = [] if drawn else ["No gradient norm is recorded."]
    return Section("gradients", "Gradients", drawn, notes=notes)


def _states(run: Run) -> Section:
    drawn = memory.states(run)
    if drawn or run.counts and not (run.counts.get("rwkv6") or run.counts.get("mamba2")):
        return Section("states", "State", drawn)
    note = "State columns were not logged; --train.log_states true adds them."
    return Section("states", "State", notes=[note])


def _samples(run: Run) -> Section:
    rows = run.of("sample")
    if not rows:
        return Section("samples", "Samples", notes=["No text was sampled yet."])
    shown = min(len(rows), tables.SAMPLES)
    note = [f"{shown} of {count(len(rows))} samples are shown."] if shown < len(rows) else []
    return Section("samples", "Samples", html=tables.samples(rows), notes=note)


def _speed_notes(run: Run) -> list[str]:
    return [] if run.of("train") else ["No training step is recorded."]


def _size(run: Run) -> Section:
    if not run.counts:
        return Section("size", "Size", notes=["The parameter counts are not recorded."])
    body = f'<div class="pair">{tables.budget(run.counts)}{tables.costs(run.counts)}</div>'
    return Section("size", "Size", memory.budget(run), html=body)


def _configuration(run: Run) -> Section:
    if not run.config:
        return Section("config", "Configuration", notes=["config.yaml is missing."])
    groups = {name: value for name, value in run.config.items() if isinstance(value, Mapping)}
    single = {name: value for name, value in run.config.items() if name not in groups}
    blocks = [_folded(name, values) for name, values in groups.items()]
    return Section("config", "Configuration", html="".join(blocks) + _folded("run", single))


def _origin(run: Run) -> Section:
    hidden = {"kind", "time", "counts", "data", "argv"}
    origin = {k: v for k, v in {**run.env, **run.provenance}.items() if k not in hidden}
    data: Any = run.provenance.get("data")
    command = run.provenance.get("argv")
    line = " ".join([Path(command[0]).name, *command[1:]]) if command else ""
    html = f"<pre><code>{esc(line)}</code></pre>" if line else ""
    html += tables.settings(origin) if origin else ""
    if isinstance(data, Mapping):
        html += _folded(f"data, {compact(data.get('tokens'))} tokens", data)
    notes = [] if html else ["Neither env.json nor a provenance record is there."]
    return Section("origin", "Provenance", html=html, notes=notes)


def _folded(name: str, values: Mapping[str, Any]) -> str:
    if not values:
        return ""
    title = f"<summary><strong>{esc(name)}</strong></summary>"
    return f"<details>{title}{tables.settings(values)}</details>"
