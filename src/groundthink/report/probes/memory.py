"""Memory: what decays would keep of a planted fact, what a probe finds of it, what is read."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from groundthink.records import Record
from groundthink.report.plot import COMPONENTS, FAINT, INK, Figure, Json, axis, line, panel_label
from groundthink.report.run import Kinds
from groundthink.report.shell import Section
from groundthink.report.tables import table
from groundthink.report.text import NONE, esc, percent, prose, sig

LOOKS = {key: (name, color) for key, name, color in COMPONENTS}
AT = 16
"""Tokens after the fact that the titles speak of."""
EDGES = ("value", "low", "high")


def section(rows: Kinds) -> Section:
    """The part of the page that draws the records of `probe memory`."""
    if not rows.get("recall"):
        return Section("memory", "Memory")
    recall, reads = rows["recall"][0], rows.get("read", [])
    sites = rows.get("memory", [])
    branches = {name: [row for row in sites if row["branch"] == name] for name in LOOKS}
    branches = {name: found for name, found in branches.items() if found}
    figures = [_curves(name, found, recall) for name, found in branches.items()]
    if branches:
        figures = [_map(branches, reads), *figures]
    figures.append(_recall(recall))
    mixers = [row for row in reads if row["layer"] is not None]
    if any(_at(row, "share") is not None for row in mixers):
        figures.append(_read(mixers, reads))
    if branches:
        figures.append(_written(branches))
    return Section("memory", "Memory", figures, html=_introduction(recall) + _half_lives(branches))


def _introduction(recall: Record) -> str:
    def names(texts: Sequence[str]) -> str:
        return ", ".join(f"<code>{esc(text)}</code>" for text in texts)

    told = f"A fact, a cue and then a value, is put into {recall['texts']} held-out texts, and"
    return (
        f"<p>{prose(told)} the cue is given again later. Cues: {names(recall['cues'])}. "
        f"Values: {names(recall['values'])}.</p>"
    )


def _map(branches: dict[str, list[Record]], reads: list[Record]) -> Figure:
    """Layers up, distance across; a column of panels for each branch."""
    traces: list[Json] = []
    layout: Json = {"hovermode": "closest", "annotations": [], "margin": {"t": 30}}
    most = max(row["most_bits"] for rows in branches.values() for row in rows)
    best = []
    for column, (branch, rows) in enumerate(branches.items()):
        name, color = LOOKS[branch]
        layers = [row["layer"] for row in rows]
        read = [row for row in reads if row["part"] == branch and row["layer"] is not None]
        panels = [
            ("decays", rows, [row["predicted"][1] for row in rows], 1.0, ".1%", " left"),
            ("probe", rows, [row["bits"]["value"] for row in rows], most, ".2f", " bits"),
            ("read", read, [row["share"]["value"] for row in read], 1.0, ".1%", " of the answer"),
        ]
        strongest = max(rows, key=lambda row: _at(row, "bits") or 0)
        best.append(f"{sig(_at(strongest, 'bits'), 2)} in layer {strongest['layer']} of {name}")
        for place, (label, records, z, top, form, unit) in enumerate(panels):
            if not records:
                continue
            number = place * len(branches) + column + 1
            x, y = (f"{letter}{number if number > 1 else ''}" for letter in "xy")
            traces.append(
                {
                    "type": "heatmap",
                    "x": list(map(str, records[0]["distances"])),
                    "y": layers,
                    "z": z,
                    "xaxis": x,
                    "yaxis": y,
                    "zmin": 0,
                    "zmax": top,
                    "colorscale": [(0, "var(--surface)"), (1, color)],
                    "showscale": False,
                    "showlegend": False,
                    "xgap": 1,
                    "ygap": 1,
                    "hovertemplate": f"{name}, layer %{{y}}, %{{x}} tokens on: %{{z:{form}}}"
                    f"{unit}<extra></extra>",
                }
            )
            _place(layout, number, (place, len(panels)), (column, len(branches)))
            layout["annotations"].append(panel_label(f"{name}: {label}", x, y, color))
    title = f"{AT} tokens on, of {sig(most, 2)} bits a probe finds {' and '.join(best)}"
    caption = (
        "Top: median share that the decays alone leave. Middle: held-out information about which "
        f"value was told, full colour at {sig(most, 2)} bits. Bottom: share of the answer that "
        "moves when this one state is exchanged with that of a run that was told another value; "
        "empty where nothing is recalled."
    )
    return Figure("memory-map", title, caption, traces, layout, height=580, wide=True)


def _place(layout: Json, number: int, row: tuple[int, int], column: tuple[int, int]) -> None:
    """The axes of a panel in a grid; (index, count) of its row and column."""
    suffix = number if number > 1 else ""
    pitch, width = 1 / (row[1] - 0.26), 1 / column[1]  # without the gap under the last row
    top, left = 1 - row[0] * pitch, column[0] * width
    last = row[0] == row[1] - 1
    layout[f"xaxis{suffix}"] = {
        "type": "category",
        "domain": [left, left + (0.94 if column[1] > 1 else 1) * width],
        "anchor": f"y{suffix}",
        "title": {"text": "tokens on" if last else ""},
    }
    layout[f"yaxis{suffix}"] = {
        "domain": [max(0, top - 0.74 * pitch), top],
        "anchor": f"x{suffix}",
        "nticks": 6,
        "tickformat": "d",
        "showgrid": False,
        "title": {"text": "" if column[0] else "layer"},
    }


def _curves(branch: str, rows: list[Record], recall: Record) -> Figure:
    """The three retentions of one branch on one axis, each over its highest value."""
    name, color = LOOKS[branch]
    x: list[Any] = list(map(str, rows[0]["distances"]))
    low, middle, high = (
        [
            statistics.fmean(values)
            for values in zip(*(row["predicted"][i] for row in rows), strict=True)
        ]
        for i in range(3)
    )
    bits = [statistics.fmean(v) for v in zip(*(row["bits"]["value"] for row in rows), strict=True)]
    soft = f"color-mix(in srgb, {color} 16%, transparent)"
    edge = {"mode": "lines", "width": 0, "showlegend": False, "hoverinfo": "skip"}
    fresh = [statistics.fmean(v) for v in zip(*(row["untrained"] for row in rows), strict=True)]
    traces = [
        line(x, high, "", color, **edge),
        line(x, low, "", color, fill="tonexty", fillcolor=soft, **edge),
        line(x, middle, "by its decays", color, dash="dash"),
        line(x, _relative(bits), "found by a probe", color),
        line(x, _relative(fresh), "found before training", FAINT),
        line(x, _relative(recall["gain"]["value"]), "recalled by the model", INK, dash="dot"),
    ]
    paper = statistics.median(row["predicted_half_life"][1] for row in rows)
    found = [row["half_life"]["value"] for row in rows if row["half_life"]]
    said = (
        f"a probe finds half for {sig(statistics.median(found), 2)}"
        if found
        else "nothing is found"
    )
    title = f"By its decays {name} keeps half for {sig(paper, 2)} tokens; {said}"
    caption = (
        "Mean over layers, each over its highest value. Shaded are the middle half of the "
        "channels or heads. Where the probe falls below the dashed line, later writes have drowned "
        f"what the decays leave. The probe finds {sig(max(bits), 2)} bits at most, and with random "
        f"weights (grey) {sig(max(fresh), 2)}. The dotted line is the behaviour of the whole model."
    )
    layout = {
        "xaxis": axis("tokens after the fact", type="category"),
        "yaxis": axis("share of the highest", range=[0, 1.05], tickformat=".0%"),
    }
    return Figure(f"memory-curves-{branch}", title, caption, traces, layout, height=320)


def _relative(values: Sequence[float]) -> list[float]:
    top = max(values)
    return [max(0.0, value) / top if top > 0 else 0.0 for value in values]


def _recall(recall: Record) -> Figure:
    gain = recall["gain"]
    x: list[Any] = list(map(str, recall["distances"]))
    traces = [
        line(x, recall["untrained"], "before training", FAINT),
        line(x, gain["value"], "gain", INK, mode="lines+markers", error_y=_bars(gain)),
    ]
    at = recall["distances"].index(AT)
    value, low, high = (gain[edge][at] for edge in EDGES)
    unsure = low is None or high is None or low <= 0 <= high
    title = (
        f"{AT} tokens on, the told value {'gains' if value >= 0 else 'loses'} "
        f"{sig(abs(value), 2)} nats at its cue{', which may be nothing' if unsure else ''}"
    )
    caption = (
        "Log-probability of the told value over that in a run where another was told; bars are "
        f"95 % intervals over documents. It is the likeliest of the {round(1 / recall['chance'])} "
        f"values in {percent(recall['choice']['value'][at])} of the texts after {AT} tokens; "
        f"chance is {percent(recall['chance'])}."
    )
    layout = {
        "xaxis": axis("tokens after the fact", type="category"),
        "yaxis": axis("gain (nats)"),
    }
    return Figure("memory-recall", title, caption, traces, layout)


def _read(mixers: list[Record], reads: list[Record]) -> Figure:
    traces = []
    for branch in dict.fromkeys(row["part"] for row in mixers):
        name, color = LOOKS[branch]
        rows = [row for row in mixers if row["part"] == branch]
        share = {edge: [_at(row, "share", edge) for row in rows] for edge in EDGES}
        traces.append(_columns([row["layer"] for row in rows], share, name, color))
    wholes = [row for row in reads if row["layer"] is None and row["part"] in LOOKS]
    said = [f"{_percent(_at(row, 'share'))} from {LOOKS[row['part']][0]}" for row in wholes]
    title = f"{AT} tokens on, the answer comes {' and '.join(said)}"
    caption = (
        "Share of the answer that follows when the state of one mixer is exchanged with that of a "
        "run that was told another value. States of several layers carry the same fact, so the "
        "shares need not add up to one; below zero the state speaks against it."
    )
    layout = {
        "barmode": "group",
        "xaxis": axis("layer", dtick=1),
        "yaxis": axis(
            "share of the answer", tickformat=".0%", zeroline=True, zerolinecolor="var(--axis)"
        ),
    }
    return Figure("memory-read", title, caption, traces, layout)


def _written(branches: dict[str, list[Record]]) -> Figure:
    traces, means = [], []
    for branch, rows in branches.items():
        name, color = LOOKS[branch]
        write = {edge: [row["write"][edge] for row in rows] for edge in EDGES}
        means.append(f"{sig(statistics.fmean(write['value']), 2)} in {name}")
        traces.append(_columns([row["layer"] for row in rows], write, name, color))
    title = f"The value is written at {' and '.join(means)} times the size of other tokens"
    caption = (
        "Change of the state at the value over its mean change at the text's own next two tokens; "
        "at one a fact is written like anything else."
    )
    layout = {
        "barmode": "group",
        "xaxis": axis("layer", dtick=1),
        "yaxis": axis("relative size of the write", rangemode="tozero"),
    }
    return Figure("memory-write", title, caption, traces, layout)


def _columns(x: list[int], y: dict[str, list[Any]], name: str, color: str) -> Json:
    bar = {"type": "bar", "x": x, "y": y["value"], "name": name, "marker": {"color": color}}
    return {**bar, "error_y": _bars(y), "hovertemplate": "%{y:.3~g}"}


def _bars(y: dict[str, list[Any]]) -> Json:
    """Error bars from the bounds of a curve."""

    def sides(a: str, b: str) -> list[float | None]:
        pairs = zip(y[a], y[b], strict=True)
        return [None if i is None or j is None else i - j for i, j in pairs]

    style = {"type": "data", "symmetric": False, "color": INK, "thickness": 1, "width": 3}
    return {**style, "array": sides("high", "value"), "arrayminus": sides("value", "low")}


def _half_lives(branches: dict[str, list[Record]]) -> str:
    """What half of is left after how many tokens, by layer and branch."""
    if not branches:
        return ""
    head = (
        "Branch",
        "Layer",
        "By decays (middle half)",
        "Found by a probe",
        "Difference of states",
    )
    cells = [
        (
            esc(LOOKS[branch][0]),
            str(row["layer"]),
            " – ".join(sig(value, 2) for value in row["predicted_half_life"]),
            _tokens(row["half_life"]),
            _tokens(row["kept_half_life"]),
        )
        for branch, rows in branches.items()
        for row in rows
    ]
    return (
        f"<details><summary>Half-lives in tokens, by layer</summary>{table(head, cells)}</details>"
    )


def _tokens(found: Record | None) -> str:
    """A half-life with its interval; one that ends at the longest distance is open."""
    if not found:
        return NONE
    longest = found["longest"]

    def bound(value: float) -> str:
        return f"&gt; {longest}" if value >= longest else sig(value, 2)

    aside = f"{bound(found['low'])} to {bound(found['high'])}"
    return f'{bound(found["value"])} <span class="aside">{aside}</span>'


def _at(row: Record, field: str, edge: str = "value") -> float | None:
    """The entry of a curve at the distance that titles speak of."""
    return row[field][edge][row["distances"].index(AT)]


def _percent(share: float | None) -> str:
    return NONE if share is None else f"{round(100 * share)}\u00a0%"
