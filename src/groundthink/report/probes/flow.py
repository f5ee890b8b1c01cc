"""Flow: what the states know alone and together, and how the coming losses depend on them."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from groundthink.records import Record
from groundthink.report.plot import (
    ACCENT,
    COMPONENTS,
    INK,
    MUTED,
    OTHER,
    Figure,
    Json,
    axis,
    level,
    line,
    log_axis,
)
from groundthink.report.run import Kinds
from groundthink.report.shell import Section
from groundthink.report.text import percent, sig

LOOKS = {key: (name, color) for key, name, color in COMPONENTS[:2]}
ASKED = {"next": "next token", "current": "current token", "back": "token 8 back"}
PARTS = (
    ("unique_rwkv6", "RWKV-6 alone", LOOKS["rwkv6"][1]),
    ("unique_mamba2", "Mamba-2 alone", LOOKS["mamba2"][1]),
    ("redundant", "either of them", OTHER),
    ("synergistic", "only both together", ACCENT),
)
EDGES = ("value", "low", "high")


def section(rows: Kinds) -> Section:
    """The part of the page that draws the records of `probe flow`."""
    about = {row["variable"]: row for row in rows.get("flow_variable", [])}
    layers = rows.get("flow", [])
    figures = [
        _known(about[name], [row for row in layers if row["variable"] == name])
        for name in ASKED
        if name in about
    ]
    sites = rows.get("coupling", [])
    branches = {name: [row for row in sites if row["branch"] == name] for name in LOOKS}
    branches = {name: found for name, found in branches.items() if found}
    if branches:
        figures += [_credit(branches), _worth(branches), _wanted(branches)]
    return Section("flow", "Flow", figures)


def _known(about: Record, rows: list[Record]) -> Figure:
    """What the states of every layer know of one variable, in parts, with the controls."""
    x = [row["layer"] for row in rows]
    both = [row for row in rows if "both" in row]
    shown = PARTS if both else [(name, *LOOKS[name]) for name in LOOKS]
    traces = []
    for key, name, color in shown:
        values = [row[key]["value"] if key in row else None for row in rows]
        if any(value is not None for value in values):
            traces.append(
                {
                    "type": "bar",
                    "x": x,
                    "y": values,
                    "name": name,
                    "marker": {"color": color},
                    "hovertemplate": "%{y:.3f} bits",
                }
            )
    for key, name, symbol in (
        ("untrained", "untrained model", "diamond-open"),
        ("shuffled", "shuffled labels", "x-thin-open"),
    ):
        values = [row[key]["value"] for row in rows]
        marker = {"symbol": symbol, "size": 9, "color": INK}
        traces.append(line(x, values, name, INK, mode="markers", marker=marker))
    control = max(0.0, about["embedding"]["value"])
    shape, note = level(control, f"embedding {sig(control, 2)}")
    layout = {
        "barmode": "relative",
        "xaxis": axis("layer", dtick=1, range=[x[0] - 0.6, x[-1] + 0.6]),
        "yaxis": axis("bits"),
        "margin": {"r": 110},
        "shapes": [shape],
        "annotations": [note],
    }
    name = ASKED[about["variable"]]
    caption = (
        f"Held-out information of linear probes about the {name} among the 16 most frequent, "
        f"{about['rows']} rows of {about['texts']} texts, {about['dims']} dimensions. Signs are "
        "controls: the same probes on the untrained model and on shuffled labels; the dotted "
        "line, on the embedding of the current token."
    )
    return Figure(f"flow-{about['variable']}", _said(about, rows), caption, traces, layout, 340)


def _said(about: Record, rows: list[Record]) -> str:
    def whole(row: Record) -> float:
        return next(row[name]["value"] for name in ("both", *LOOKS) if name in row)

    best = max(rows, key=whole)
    known = f"{sig(max(0.0, whole(best)), 2)} of {sig(about['entropy'], 3)} bits"
    title = f"Of the {ASKED[about['variable']]} the states of layer {best['layer']} know {known}"
    if "both" not in best or whole(best) <= 0:
        return title
    key, name, _ = max(PARTS, key=lambda part: best[part[0]]["value"])
    return f"{title}, {percent(min(1.0, best[key]['value'] / whole(best)))} of it {name}"


def _credit(branches: dict[str, list[Record]]) -> Figure:
    traces: list[Json] = []
    said = []
    for branch, rows in branches.items():
        name, color = LOOKS[branch]
        half = [row["half_life"]["value"] for row in rows if row["half_life"]]
        longest = max((row["half_life"]["longest"] for row in rows if row["half_life"]), default=0)
        if half:
            middle = statistics.median(half)
            beyond = "more than " if middle >= longest else ""
            said.append(f"{beyond}{sig(middle, 2)} tokens in {name}")
        for i, row in enumerate(rows):
            values = row["credit"]["value"]
            if not values[0]:
                continue
            traces.append(
                line(
                    row["taus"],
                    [value / values[0] for value in values],
                    name,
                    color,
                    width=1.75,
                    legendgroup=branch,
                    showlegend=i == len(rows) - 1,
                    opacity=0.35 + 0.65 * (i + 1) / len(rows),
                    hovertemplate=f"{name}, layer {row['layer']}: %{{y:.3~g}} after %{{x}} tokens"
                    "<extra></extra>",
                )
            )
    title = (
        f"Half of the credit is left after {' and '.join(said)}" if said else "No state gets credit"
    )
    caption = (
        "Size of the gradient of one token's loss by the state so many tokens before, over that "
        "one token before; a line a layer, deeper is stronger. The title gives the median layer."
    )
    layout = {
        "hovermode": "closest",
        "xaxis": axis("tokens after the state", type="log", tickvals=[1, 2, 4, 8, 16, 32, 64]),
        "yaxis": log_axis("relative credit", traces),
        "legend": {"itemclick": False, "itemdoubleclick": False},
    }
    return Figure("flow-credit", title, caption, traces, layout, height=340)


def _worth(branches: dict[str, list[Record]]) -> Figure:
    """True and first-order cost of losing each state, and the share of each branch."""
    traces = _bars(branches, "zeroed")
    for branch, rows in branches.items():
        name, _ = LOOKS[branch]
        marker = {
            "symbol": "diamond",
            "size": 8,
            "color": INK,
            "line": {"width": 1, "color": MUTED},
        }
        values = [row["value"]["value"] for row in rows]
        label = "to first order"
        point = line(_layers(rows), values, label, INK, mode="markers", marker=marker)
        group = {"offsetgroup": branch, "legendgroup": label}
        traces.append({**point, **group, "showlegend": branch == next(iter(branches))})
    every = [(row, branch) for branch, rows in branches.items() for row in rows]
    row, branch = max(every, key=lambda pair: pair[0]["zeroed"]["value"])
    title = (
        f"The dearest state to lose is layer {row['layer']} of {LOOKS[branch][0]}: "
        f"{sig(row['zeroed']['value'], 2)} nats"
    )
    caption = (
        "Loss of the next 16 tokens that is added by zeroing the state of one branch in one layer, "
        "with 95 % intervals over documents; diamonds are the same by the gradient. "
        f"{_shares(branches)}"
    )
    layout = {
        "barmode": "group",
        "scattermode": "group",
        "xaxis": axis("layer", dtick=1),
        "yaxis": axis("added loss (nats)"),
    }
    return Figure("flow-worth", title, caption, traces, layout)


def _shares(branches: dict[str, list[Record]]) -> str:
    """How the sum of |gradient x state| parts between the branches."""
    if len(branches) < 2:
        return ""
    shares = (
        f"{percent(sum(row['share']['value'] for row in rows))} to {LOOKS[branch][0]}"
        for branch, rows in branches.items()
    )
    return f"Of all gradient times state, {' and '.join(shares)}."


def _wanted(branches: dict[str, list[Record]]) -> Figure:
    means = [
        f"{_signed(statistics.fmean(_values(rows, 'write')))} in {LOOKS[branch][0]}"
        for branch, rows in branches.items()
    ]
    title = f"Writes follow what losses ask for with a rank correlation of {' and '.join(means)}"
    caption = (
        "Spearman correlation, over the tokens of a text, of how far the state moves and how "
        "strongly the later losses depend on it; bars are 95 % intervals over documents. At zero "
        "the size of a write says nothing about its use."
    )
    layout = {"barmode": "group", "xaxis": axis("layer", dtick=1), "yaxis": axis("correlation")}
    return Figure("flow-wanted", title, caption, _bars(branches, "write"), layout)


def _signed(value: float) -> str:
    """A correlation in two decimals."""
    return f"{value:.2f}".replace("-", "−")


def _bars(branches: dict[str, list[Record]], field: str) -> list[Json]:
    """Grouped bars by layer with their intervals."""
    traces = []
    for branch, rows in branches.items():
        name, color = LOOKS[branch]
        value, low, high = (_values(rows, field, edge) for edge in EDGES)
        error = {
            "type": "data",
            "symmetric": False,
            "array": _sides(high, value),
            "arrayminus": _sides(value, low),
            "color": INK,
            "thickness": 1,
            "width": 3,
        }
        trace = {"type": "bar", "x": _layers(rows), "y": value, "name": name, "error_y": error}
        more = {"marker": {"color": color}, "offsetgroup": branch, "hovertemplate": "%{y:.3~g}"}
        traces.append({**trace, **more})
    return traces


def _layers(rows: Iterable[Record]) -> list[Any]:
    return [row["layer"] for row in rows]


def _values(rows: Iterable[Record], field: str, edge: str = "value") -> list[Any]:
    return [row[field][edge] for row in rows]


def _sides(a: Sequence[Any], b: Sequence[Any]) -> list[float | None]:
    """Length of one side of each interval; an endless one has none."""
    pairs = zip(a, b, strict=True)
    return [None if i is None or j is None else i - j for i, j in pairs]
