"""Context: passages coloured by the effect of each token, and how far back every layer mixes."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from itertools import accumulate

from groundthink.records import Record
from groundthink.report.plot import ACCENT, COMPONENTS, FAINT, Figure, Json, axis, panel_label
from groundthink.report.run import Kinds
from groundthink.report.series import every
from groundthink.report.shell import Section
from groundthink.report.text import esc, percent, prose, sig

LOOKS = {key: (name, color) for key, name, color in COMPONENTS}
STRONGEST = 55
"""Per cent of the colour behind the token with the largest effect; more would drown the letters."""
FAR = 16
"""Tokens back that the title of the distance curves speaks of."""
PANELS = 4
"""Layers whose maps are drawn."""
FULL = 0.15
"""Share that has the full colour of a map."""


def section(rows: Kinds) -> Section:
    """The part of the page that draws the records of `probe context`."""
    reaches, found = rows.get("reach", []), rows.get("passage", [])
    branches = [name for name in LOOKS if any(row["branch"] == name for row in reaches)]
    chosen = {name: [row for row in reaches if row["branch"] == name] for name in branches}
    figures = [_distance(chosen), _beyond(chosen), _maps(chosen)] if reaches else []
    return Section("context", "Context", figures, html=_passages(found))


def _distance(branches: dict[str, list[Record]]) -> Figure:
    traces, means = [], []
    for branch, rows in branches.items():
        name, color = LOOKS[branch]
        value = [row["distance"] for row in rows]
        means.append(f"{sig(statistics.mean(value), 2)} tokens back in {name}")
        bars = {
            "type": "data",
            "symmetric": False,
            "array": [_reach(row["high"], row["distance"]) for row in rows],
            "arrayminus": [_reach(row["distance"], row["low"]) for row in rows],
            "color": color,
            "thickness": 1,
            "width": 4,
        }
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "x": [row["layer"] for row in rows],
                "y": value,
                "name": name,
                "line": {"color": color, "width": 2},
                "error_y": bars,
                "hovertemplate": "%{y:.1f} tokens",
            }
        )
    title = f"What the layers add comes on average from {' and '.join(means)}"
    first = next(iter(branches.values()))[0]
    texts, length = first["texts"], len(first["map"])
    caption = (
        "Distance from a token to the tokens whose summands make up its mixing, weighted by size; "
        f"bars are 95 % intervals over {texts} texts of {length} tokens, which bound it. It counts "
        "what is added, not what matters."
    )
    layout = {"xaxis": axis("layer", dtick=1), "yaxis": axis("tokens", rangemode="tozero")}
    return Figure("context-distance", title, caption, traces, layout)


def _reach(high: float | None, low: float | None) -> float | None:
    """Length of one side of an interval; an endless one has none."""
    return None if high is None or low is None else high - low


def _beyond(branches: dict[str, list[Record]]) -> Figure:
    traces: list[Json] = []
    far = []
    for branch, rows in branches.items():
        name, color = LOOKS[branch]
        at = rows[0]["distances"].index(FAR)
        share = statistics.mean(row["beyond"][at] for row in rows)
        far.append(f"{percent(share)} of what {name} adds")
        for i, row in enumerate(rows):
            traces.append(
                {
                    "type": "scatter",
                    "mode": "lines",
                    "x": row["distances"][1:],
                    "y": row["beyond"][1:],
                    "name": name,
                    "legendgroup": branch,
                    "showlegend": i == len(rows) - 1,
                    "line": {"color": color, "width": 1.75},
                    "opacity": 0.35 + 0.65 * (i + 1) / len(rows),
                    "hovertemplate": f"{name}, layer {row['layer']}: %{{y:.1%}} from beyond "
                    "%{x} tokens<extra></extra>",
                }
            )
    title = f"{' and '.join(far)} comes from more than {FAR} tokens back"
    caption = (
        "Share of the mixing that comes from further back, a line a layer, deeper is stronger."
    )
    ticks = {"tickvals": [1, 2, 4, 8, 16, 32], "type": "log"}
    layout = {
        "hovermode": "closest",
        "xaxis": axis("tokens back", **ticks),
        "yaxis": axis("share from beyond", tickformat=".0%", range=[0, 1.02]),
        "legend": {"itemclick": False, "itemdoubleclick": False},
    }
    return Figure("context-beyond", title, caption, traces, layout)


def _maps(branches: dict[str, list[Record]]) -> Figure:
    traces: list[Json] = []
    layout: Json = {"hovermode": "closest", "annotations": [], "margin": {"t": 28}}
    newest = []
    for row, (branch, rows) in enumerate(branches.items()):
        name, color = LOOKS[branch]
        newest.append(f"{percent(statistics.mean(map(_own, rows)))} in {name}")
        shown = every(rows, PANELS)
        for column, record in enumerate(shown):
            number = row * PANELS + column + 1
            x, y = (f"{letter}{number if number > 1 else ''}" for letter in "xy")
            traces.append(
                {
                    "type": "heatmap",
                    "z": record["map"],
                    "xaxis": x,
                    "yaxis": y,
                    "zmin": 0,
                    "zmax": FULL,
                    "colorscale": [(0, "var(--surface)"), (1, color)],
                    "showscale": False,
                    "showlegend": False,
                    "hoverongaps": False,
                    "hovertemplate": f"{name}, layer {record['layer']}: token %{{y}} takes "
                    "%{z:.1%} from token %{x}<extra></extra>",
                }
            )
            _place(layout, number, (row, len(branches)), (column, len(shown)))
            layout["annotations"].append(panel_label(f"{name} {record['layer']}", x, y, color))
    title = f"A token takes of itself {' and '.join(newest)}"
    caption = (
        "One text: a row for each token, a column for each token that it can see; the colour is "
        f"the share it takes from there, full at {percent(FULL)}. Branch and layer stand above. "
        "The summands behind the shares are exact: with the biases they are the layer's output."
    )
    height = 90 + 210 * len(branches)
    return Figure("context-maps", title, caption, traces, layout, height=height, wide=True)


def _own(record: Record) -> float:
    """Share that a token adds to itself, mean over the later half of the text."""
    late = record["map"][len(record["map"]) // 2 :]
    return statistics.mean(row[-1] for row in late)


def _place(layout: Json, number: int, row: tuple[int, int], column: tuple[int, int]) -> None:
    """The axes of a panel in a grid; (index, count) of its row and column."""
    suffix = number if number > 1 else ""
    height, width = 1 / row[1], 1 / column[1]
    top, left = 1 - row[0] * height, column[0] * width
    last = row[0] == row[1] - 1
    layout[f"xaxis{suffix}"] = {
        "domain": [left, left + 0.9 * width],
        "anchor": f"y{suffix}",
        "showticklabels": last,
        "nticks": 4,
        "title": {"text": "source" if last else ""},
    }
    layout[f"yaxis{suffix}"] = {
        "domain": [top - 0.84 * height, top],
        "anchor": f"x{suffix}",
        "autorange": "reversed",
        "showticklabels": not column[0],
        "nticks": 4,
        "showgrid": False,
        "title": {"text": "" if column[0] else "target"},
    }


def _passages(rows: Sequence[Record]) -> str:
    if not rows:
        return ""
    introduction = (
        f"Every token of a passage was replaced by {rows[0]['draws']} other tokens of the text in "
        "turn. The stronger its colour, the more the prediction of the last, underlined token "
        "moved (square root of the divergence). Shown are the answers that their context helps "
        "most."
    )
    return f"<p>{prose(introduction)}</p>{''.join(map(_passage, rows))}"


def _passage(row: Record) -> str:
    tokens, kl = row["tokens"], row["kl"]
    statement = (
        f"{_quoted(tokens[-1])}: half of the effect lies in {_holding(kl, 0.5)}, nine tenths in "
        f"{_holding(kl, 0.9)} of {len(kl)}"
    )
    return (
        f'<article class="passage"><h3>{prose(statement)}</h3>'
        f"{_heat(tokens, kl, max(kl), ACCENT)}<p>{_aside(row)}</p>{_slopes(row)}</article>"
    )


def _aside(row: Record) -> str:
    return prose(
        f"The model gives it {percent(math.exp(row['log_p']))}; context beyond 8 tokens adds "
        f"{sig(row['gain'], 2)} nats. The strongest effect is {sig(max(row['kl']), 2)} nats."
    )


def _slopes(row: Record) -> str:
    """The same passage by the gradient, once for each branch."""
    slopes = {k: v for k, v in row["first_order"].items() if k != "all"}
    if not slopes:
        return ""
    most = max(abs(x) for slope in slopes.values() for x in slope)
    parts = "".join(
        f"<p>{prose('through ' + LOOKS[branch][0])}</p>"
        f"{_heat(row['tokens'], slope, most, LOOKS[branch][1])}"
        for branch, slope in slopes.items()
    )
    agreement = row["agreement"]
    words = (
        "To first order, by gradient: the paths through one branch, the other's being cut. Grey "
        "speaks against the answer. Over both, the sizes of gradient and replacement have a rank "
        f"correlation of {sig(agreement, 2)}."
    )
    return f"<details><summary>By branch</summary><p>{prose(words)}</p>{parts}</details>"


def _heat(tokens: Sequence[str], values: Sequence[float], most: float, color: str) -> str:
    """The tokens of a context on their colours, and the answer after them."""
    marks = [
        f'<span style="background:color-mix(in oklab, {color if value >= 0 else FAINT} '
        f'{round(STRONGEST * (abs(value) / most) ** 0.5) if most else 0}%, transparent)" '
        f'title="{sig(value, 2)} nats">{_shown(token)}</span>'
        for token, value in zip(tokens, values, strict=False)
    ]
    answer = f'<b style="border-bottom:2px solid {color}">{_shown(tokens[-1])}</b>'
    return f"<pre>{''.join(marks)}{answer}</pre>"


def _shown(token: str) -> str:
    return esc(token).replace("\n", "⏎\n")


def _quoted(token: str) -> str:
    names = {" ": "A space", "\n": "A line break"}
    return names.get(token, f"“{token.strip() or token}”".replace("\n", "⏎"))


def _holding(values: Sequence[float], share: float) -> str:
    """The fewest last tokens that hold a share of the sum of all."""
    sums = list(accumulate(reversed(values)))
    fewest = next(i for i, total in enumerate(sums, 1) if total >= share * sums[-1])
    return "the last token" if fewest == 1 else f"the last {fewest} tokens"
