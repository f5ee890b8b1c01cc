"""Maps of states, layers up and tokens across: what decays leave of a write, and rank."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from groundthink.records import Record
from groundthink.report.plot import COMPONENTS, Figure, Json, axis
from groundthink.report.series import known
from groundthink.report.text import compact, count, percent

LOOKS = {key: (name, color) for key, name, color in COMPONENTS[:2]}
DISTANCES = (1, 4, 16, 64, 256, 1024, 4096)
"""Tokens after which the retention map shows what is left."""
FAR = 256
"""Tokens that its title speaks of."""
Branches = dict[str, list[Record]]
"""Branch -> its records, one a layer."""
Cells = dict[str, list[list[float | None]]]
"""Branch -> layer -> a share for each column."""


def said(values: dict[str, str]) -> str:
    """What holds for each branch, in words: 0.9 in RWKV-6 and 0.7 in Mamba-2."""
    return " and ".join(f"{value} in {LOOKS[branch][0]}" for branch, value in values.items())


def mean(values: Sequence[float | None]) -> float | None:
    """Mean of what is known."""
    return statistics.fmean(known(values)) if known(values) else None


def _maps(rows: Branches, cells: Cells, x: list[str], hover: str) -> tuple[list[Json], Json]:
    """A map for each branch side by side, layers up, in the colour of the branch; 0 to 1."""
    traces: list[Json] = []
    layout: Json = {"hovermode": "closest", "annotations": [], "margin": {"t": 34}}
    width = 1 / len(rows)
    for i, (branch, layers) in enumerate(rows.items()):
        name, color = LOOKS[branch]
        suffix = str(i + 1) if i else ""
        numbers = [row["layer"] for row in layers]
        traces.append(
            {
                "type": "heatmap",
                "x": x,
                "y": numbers,
                "z": cells[branch],
                "zmin": 0,
                "zmax": 1,
                "xaxis": f"x{suffix}",
                "yaxis": f"y{suffix}",
                "colorscale": [(0, "var(--even)"), (1, color)],
                "showscale": False,
                "showlegend": False,
                "text": [[_percent(value) for value in row] for row in cells[branch]],
                "texttemplate": "%{text}" if len(x) * len(numbers) <= 140 else "",
                "hovertemplate": f"layer %{{y}} of {name}, {hover}<extra></extra>",
            }
        )
        domain = [i * width + (0.04 if i else 0), (i + 1) * width]
        ticks = {"dtick": 1 if len(numbers) <= 16 else None, "showgrid": False}
        layout[f"xaxis{suffix}"] = axis(
            "tokens", type="category", domain=domain, tickangle=0, dtick=2
        )
        anchored = {"anchor": f"x{suffix}", "domain": [0, 1]}
        layout[f"yaxis{suffix}"] = axis("" if i else "layer", **ticks, **anchored)
        note = {"text": name, "showarrow": False, "font": {"color": color, "size": 13}}
        place = {"xref": "paper", "yref": "paper", "xanchor": "left", "yanchor": "bottom"}
        layout["annotations"].append({**note, **place, "x": domain[0], "y": 1})
    return traces, layout


def _percent(share: float | None) -> str:
    return "0" if share is not None and share < 0.001 else percent(share)


def retention(rows: Branches) -> Figure:
    """What is left of a write after each distance, mean over channels, by layer and branch."""
    cells: Cells = {
        branch: [[left(row, distance) for distance in DISTANCES] for row in layers]
        for branch, layers in rows.items()
    }
    best = {branch: max(layers, key=lambda row: left(row, FAR)) for branch, layers in rows.items()}
    most = {b: f"{percent(left(row, FAR))} (layer {row['layer']})" for b, row in best.items()}
    title = f"Of a write, at most {said(most)} is left after {FAR} tokens"
    caption = "What decays leave of a write after as many tokens, mean over channels or heads."
    x = [compact(d) if d >= 1000 else count(d) for d in DISTANCES]
    traces, layout = _maps(rows, cells, x, "after %{x}: %{text} left")
    return Figure("states-retention", title, caption, traces, layout, height=360, wide=True)


def left(row: Record, distance: int) -> float:
    """Share of a write that decays leave after `distance` tokens, mean over channels."""
    return statistics.fmean(math.exp(-distance / tau) for tau in row["tokens"])


def ranks(rows: Branches) -> Figure:
    """Effective rank over the rank there can be, along the text, by layer and branch."""
    cells: Cells = {branch: [row["rank"] for row in layers] for branch, layers in rows.items()}
    tokens = [count(t) for t in next(iter(rows.values()))[0]["tokens"]]
    last = {b: percent(mean([row[-1] for row in layers])) for b, layers in cells.items()}
    title = f"States use {said(last)} of the rank they have"
    caption = (
        "Effective rank, the exponential of the entropy of the singular values, over the full "
        "rank; near 0 the state has collapsed to one direction, near 1 it looks like noise."
    )
    traces, layout = _maps(rows, cells, tokens, "%{x} tokens: %{text} of the rank")
    return Figure("states-rank", title, caption, traces, layout, height=360, wide=True)
