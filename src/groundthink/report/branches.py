"""Figures of the two branches: gradient balance, fusion gates, shares and norms."""

from __future__ import annotations

import statistics

from groundthink.records import Record
from groundthink.report.plot import (
    ACCENT,
    COMPONENTS,
    INK,
    Figure,
    Json,
    axis,
    band,
    level,
    line,
    log_axis,
    noisy,
    ramp,
    share_map,
    smoothing,
    span,
    steps,
)
from groundthink.report.run import Run
from groundthink.report.series import column, every, known
from groundthink.report.text import percent, short, sig
from groundthink.report.thresholds import ranges

BRANCHES = ("rwkv6", "mamba2")
MAP_COLUMNS = 600
"""Most columns of a heat map; more would be thinner than a pixel."""


def balance(run: Run) -> list[Figure]:
    """Gradient and update sizes by component, and the R:M ratio against its pass band."""
    rows = run.of("balance")
    return [
        *_gradient_ratio(run),
        *_by_component(
            rows,
            "grad_rms",
            "gradient RMS",
            "gradient RMS per parameter",
            "Root mean square of the gradient over the parameters of each component, unclipped.",
        ),
        *_by_component(
            rows,
            "update_ratio",
            "relative update",
            "update / weight",
            "Size of one optimizer step over the size of the weights it changes.",
        ),
    ]


def fusion(run: Run) -> list[Figure]:
    """Gates and effective shares by layer over time, and the size of both branch outputs."""
    rows = run.of("balance")
    return [*_gates(rows), *_shares(rows), *_profile(rows), *_branch_rms(rows)]


def _gradient_ratio(run: Run) -> list[Figure]:
    rows = run.of("balance")
    traces = noisy(rows, "grad_ratio", "R:M", INK)
    if not traces:
        return []
    ratios = known(column(rows, "grad_ratio")[1])
    late = statistics.median(ratios[len(ratios) // 2 :])
    title = f"The median R:M gradient ratio of the later half is {sig(late)}"
    caption = "RWKV-6 over Mamba-2, gradient RMS per parameter; at one both learn alike. "
    caption += smoothing(rows, "record")
    shape, note = level(1, "equal", log=True)
    shapes, edges = [shape], [1.0]
    gate = next((g for g in run.gates if g["id"] == "G4" and g.get("threshold")), None)
    if gate:
        low, high = ranges(gate["threshold"])[0]
        shapes.append(band(low, high))
        edges += [low, high]
        title += f", {'inside' if low <= late <= high else 'outside'} the pass band"
        caption += f" The shaded band, {short(low)} to {short(high)}, passes gate G4."
    layout = {
        "xaxis": steps(),
        "yaxis": log_axis("R:M gradient ratio", traces, *edges),
        "margin": {"r": 56},
        "shapes": shapes,
        "annotations": [note],
    }
    return [Figure("grad-ratio", title, caption, traces, layout)]


def _by_component(rows: list[Record], key: str, what: str, unit: str, caption: str) -> list[Figure]:
    traces, ends = [], []
    for component, name, color in COMPONENTS:
        drawn = noisy(rows, (key, component), name, color)
        traces += drawn
        if drawn and component in BRANCHES:
            median = statistics.median(known(column(rows, key, component)[1]))
            ends.append(f"{sig(median, 2)} in {name}")
    if not ends:
        return []
    title = f"Median {what}: {' and '.join(ends)}"
    layout = {"xaxis": steps(), "yaxis": log_axis(unit, traces)}
    caption += f" {smoothing(rows, 'record')}"
    return [Figure(key.replace("_", "-"), title, caption, traces, layout)]


def _with_layers(rows: list[Record], key: str) -> list[Record]:
    return [row for row in rows if known(row.get(key) or [])]


def _gates(rows: list[Record]) -> list[Figure]:
    rows = _with_layers(rows, "gate")
    if not rows or _ungated(rows[-1]):
        return []
    first, last = known(rows[0]["gate"]), known(rows[-1]["gate"])
    title = (
        f"Gates began at {_reach(first)} and are now at {_reach(last)}"
        if len(rows) > 1
        else f"Gates are at {_reach(last)}"
    )
    caption = (
        "Mean gate of each layer: 0 takes the block's output from Mamba-2 alone, 1 from RWKV-6."
    )
    layers = max(len(row["gate"]) for row in rows)
    lines = [
        line(
            [row["step"] for row in rows],
            [row["gate"][i] if i < len(row["gate"]) else None for row in rows],
            f"layer {i}",
            ramp(i, layers),
            width=1.75,
        )
        for i in range(layers)
    ]
    drawn = [_map(rows, "gate", title, caption)]
    if len(rows) > 1:
        caption = "The same gates on their own scale, from the first layer (pale) to the last."
        layout = {"xaxis": steps(), "yaxis": axis("gate (RWKV-6 share)"), "showlegend": False}
        drawn.append(Figure("gate-lines", _widest(rows), caption, lines, layout))
    return drawn


def _ungated(row: Record) -> bool:
    """Without a gate module a record repeats the share in its place."""
    return row["gate"] == row.get("share")


def _reach(values: list[float]) -> str:
    low, high = sig(min(values), 2), sig(max(values), 2)
    return low if low == high else f"{low}–{high}"


def _widest(rows: list[Record]) -> str:
    """Which layer's gate moved most since the first record."""
    pairs = zip(rows[0]["gate"], rows[-1]["gate"], strict=False)
    moves = {i: b - a for i, (a, b) in enumerate(pairs) if a is not None and b is not None}
    layer = max(moves, key=lambda i: abs(moves[i]))
    if not moves[layer]:
        return "No gate moved since the first record"
    towards = "RWKV-6" if moves[layer] > 0 else "Mamba-2"
    return f"Layer {layer} moved most, {sig(abs(moves[layer]), 2)} towards {towards}"


def _map(rows: list[Record], key: str, title: str, caption: str) -> Figure:
    layout = {
        "xaxis": steps(),
        "yaxis": axis("layer", dtick=1 if len(rows[-1][key]) <= 16 else None, showgrid=False),
        "hovermode": "closest",
        "legend": {"itemclick": False, "itemdoubleclick": False},
    }
    traces = share_map(every(rows, MAP_COLUMNS), key)
    return Figure(f"{key}-map", title, caption, traces, layout)


def _shares(rows: list[Record]) -> list[Figure]:
    rows = _with_layers(rows, "share")
    if not rows:
        return []
    mean = statistics.fmean(known(rows[-1]["share"]))
    heavier, part = ("RWKV-6", mean) if mean >= 0.5 else ("Mamba-2", 1 - mean)
    title = f"{heavier} makes {percent(part)} of the fused output by norm, averaged over layers"
    caption = (
        "Effective share: norm of the RWKV-6 part over the sum of both norms, after the fusion."
    )
    return [_map(rows, "share", title, caption)]


def _profile(rows: list[Record]) -> list[Figure]:
    """Gate and share of each layer, at the first and the last record."""
    rows = _with_layers(rows, "share")
    if not rows:
        return []
    gated = known(rows[-1].get("gate") or []) and not _ungated(rows[-1])
    series = [
        ("share", "share, first", "circle-open", INK),
        ("share", "share, last", "circle", INK),
    ]
    if gated:
        series += [
            ("gate", "gate, first", "diamond-open", ACCENT),
            ("gate", "gate, last", "diamond", ACCENT),
        ]
    traces = []
    for key, name, symbol, color in series:
        values = rows[0 if name.endswith("first") else -1].get(key) or []
        marker = {"symbol": symbol, "size": 9, "color": color}
        layers = list(range(len(values)))
        traces.append(line(layers, values, name, color, mode="markers", marker=marker))
    last = rows[-1]["share"]
    low, high = span(last) or (0, 0)
    least, most = last.index(low), last.index(high)
    title = f"The RWKV-6 share is lowest in layer {least}, highest in layer {most}"
    caption = "One column per layer; above one half RWKV-6 outweighs Mamba-2."
    if gated:
        caption += " A share below its gate means that the RWKV-6 branch is the quieter one."
    layout = {
        "xaxis": axis("layer", dtick=1 if len(last) <= 16 else None),
        "yaxis": axis("RWKV-6 share", range=[0, 1]),
    }
    return [Figure("layers", title, caption, traces, layout)]


def _branch_rms(rows: list[Record]) -> list[Figure]:
    traces: list[Json] = []
    ends = []
    for component, name, color in COMPONENTS[:2]:
        layered = [row for row in rows if known((row.get("branch_rms") or {}).get(component) or [])]
        if not layered:
            continue
        x = [row["step"] for row in layered]
        layers = [known(row["branch_rms"][component]) for row in layered]
        mean = [statistics.fmean(values) for values in layers]
        soft = f"color-mix(in srgb, {color} 16%, transparent)"
        edge = {"mode": "lines", "width": 0, "showlegend": False, "hoverinfo": "skip"}
        traces += [
            line(x, [max(values) for values in layers], name, color, **edge),
            line(x, list(map(min, layers)), name, color, fill="tonexty", fillcolor=soft, **edge),
            line(x, mean, name, color),
        ]
        ends.append(f"{sig(mean[-1], 2)} from {name}")
    if not traces:
        return []
    title = f"Branch outputs end at an RMS of {' and '.join(ends)}"
    caption = "Root mean square of each branch's output: mean over layers, all layers shaded."
    layout = {"xaxis": steps(), "yaxis": log_axis("branch output RMS", traces)}
    return [Figure("branch-rms", title, caption, traces, layout)]
