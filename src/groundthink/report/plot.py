"""Figures as plain Plotly JSON: one dataclass, a few marks, one look.

Colours are CSS: a value that holds `var(--name)` is resolved by page.js against the page's theme,
so one specification serves the light theme, the dark theme and print.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from groundthink.records import Record
from groundthink.report.series import Number, column, known, running_mean, thin

Json = dict[str, Any]

INK, MUTED, FAINT = "var(--ink)", "var(--muted)", "var(--faint)"
RWKV6, MAMBA2, OTHER, ACCENT = "var(--rwkv6)", "var(--mamba2)", "var(--other)", "var(--accent)"
COMPONENTS = (
    ("rwkv6", "RWKV-6", RWKV6),
    ("mamba2", "Mamba-2", MAMBA2),
    ("attention", "attention", "var(--attention)"),
    ("fusion", "fusion", ACCENT),
    ("ffn", "channel mixing", OTHER),
    ("other", "rest", FAINT),
)
"""(record key, name, colour) of the parts of a model; the first two are the branches."""
SHARE_SCALE = [(0, MAMBA2), (0.5, "var(--even)"), (1, RWKV6)]
"""Colours of an RWKV-6 share: 0 is all Mamba-2, 1 is all RWKV-6."""

_AXIS = {
    "gridcolor": "var(--grid)",
    "linecolor": "var(--axis)",
    "tickcolor": "var(--axis)",
    "zeroline": False,
    "ticks": "outside",
    "ticklen": 4,
    "title": {"standoff": 8},
    "exponentformat": "none",
}
TEMPLATE: Json = {
    "layout": {
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, sans-serif", "size": 12, "color": MUTED},
        "margin": {"l": 56, "r": 24, "t": 12, "b": 44},
        "hovermode": "x unified",
        "hoverlabel": {
            "bgcolor": "var(--surface)",
            "bordercolor": "var(--axis)",
            "font": {"color": INK},
        },
        "legend": {
            "orientation": "h",
            "x": 0,
            "y": 1.02,
            "yanchor": "bottom",
            "traceorder": "normal",
        },
        "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": FAINT, "activecolor": INK},
        "xaxis": {**_AXIS, "showgrid": False, "showline": True},
        "yaxis": {**_AXIS, "ticks": "", "automargin": True},
    }
}


@dataclass(frozen=True)
class Figure:
    """One drawing with the sentence that states it and the sentence that explains it."""

    id: str
    title: str
    """What the figure shows, as a statement."""
    caption: str
    """What is drawn and how to read it."""
    traces: list[Json]
    layout: Json = field(default_factory=dict)
    height: int = 300
    wide: bool = False

    def spec(self) -> Json:
        """The Plotly figure: {"data", "layout"}."""
        named = sum(trace.get("showlegend", True) for trace in self.traces)
        margin = {"t": 36 if named > 1 else 12, **self.layout.get("margin", {})}
        layout = {"showlegend": named > 1, **self.layout, "height": self.height, "margin": margin}
        return {"data": self.traces, "layout": layout}


def axis(title: str, **more: Any) -> Json:
    """An axis with its title (and unit)."""
    return {"title": {"text": title}, **more}


def log_axis(title: str, traces: Sequence[Json], *more: float) -> Json:
    """A logarithmic axis for the values of `traces` and `more`, ticked so that labels have room."""
    values = [y for trace in traces for y in trace["y"] if y is not None and y > 0]
    ratio = max([*values, *more]) / min([*values, *more]) if values else 1
    ticks: Json = {"nticks": 5}
    if ratio > 1e3:
        ticks = {"dtick": math.ceil(math.log10(ratio) / 5)}
    elif ratio > 3:
        ticks = {"dtick": "D2"}
    return {**axis(title), "type": "log", "tickformat": "~g", **ticks}


def steps(**more: Any) -> Json:
    """The training-step axis that nearly every figure has."""
    return axis("step", tickformat=",~f", **more)


def line(x: Sequence[Number], y: Sequence[Number], name: str, color: str, **more: Any) -> Json:
    """A line through points; `width`, `dash` and any further Plotly field may be given."""
    style = {"color": color, "width": more.pop("width", 2)}
    if "dash" in more:
        style["dash"] = more.pop("dash")
    x, y = thin(x, y)
    mode = "lines" if len(x) > 1 else "markers"
    trace = {"type": "scatter", "mode": mode, "x": x, "y": y, "name": name, "line": style}
    return {**trace, "hovertemplate": "%{y:.4~g}", **more}


def noisy(rows: Sequence[Record], keys: str | tuple[str, ...], name: str, color: str) -> list[Json]:
    """A jumpy series: every value drawn faintly under the mean of the `window` around it."""
    x, y = column(rows, *([keys] if isinstance(keys, str) else keys))
    if not x:
        return []
    raw = line(x, y, name, color, width=1, opacity=0.28, showlegend=False, legendgroup=name)
    raw = {**raw, "hovertemplate": None, "hoverinfo": "skip"}
    return [raw, line(*running_mean(x, y, window(rows)), name, color, legendgroup=name)]


def window(rows: Sequence[Record]) -> int:
    """Values that the smoothed lines average over: 31 of 2,000, 50 of 5,000; 1 of a few."""
    values = math.isqrt(len(rows) // 2)
    return values if values >= 5 else 1


def smoothing(rows: Sequence[Record], every: str = "step") -> str:
    """A sentence that says what the two strengths of a `noisy` line mean."""
    n = window(rows)
    return f"Faint is each {every}; the strong line is the mean of {n} around it." if n > 1 else ""


def level(y: float, text: str, *, log: bool = False) -> tuple[Json, Json]:
    """A dotted line over the whole width and its label in the right margin."""
    shape = {
        "type": "line",
        "xref": "paper",
        "x0": 0,
        "x1": 1,
        "y0": y,
        "y1": y,
        "line": {"color": MUTED, "width": 1.25, "dash": "dot"},
    }
    note = {
        "xref": "paper",
        "x": 1,
        "y": math.log10(y) if log else y,
        "xanchor": "left",
        "xshift": 6,
        "text": text,
        "showarrow": False,
        "font": {"color": MUTED, "size": 11},
    }
    return shape, note


def band(low: float, high: float) -> Json:
    """A shaded range of good values over the whole width."""
    return {
        "type": "rect",
        "xref": "paper",
        "x0": 0,
        "x1": 1,
        "y0": low,
        "y1": high,
        "fillcolor": "var(--pass-soft)",
        "line": {"width": 0},
        "layer": "below",
    }


@dataclass(frozen=True)
class Panel:
    """One row of a stacked figure."""

    title: str
    """Axis title with its unit."""
    fields: list[tuple[str, str, str]]
    """(record field, name, colour) of each line."""
    log: bool = False


def stacked(rows: Sequence[Record], panels: Sequence[Panel]) -> tuple[list[Json], Json]:
    """Traces and layout of panels over one step axis, the first on top."""
    names = ["y" if i == 0 else f"y{i + 1}" for i in range(len(panels))]
    traces: list[Json] = []
    layout: Json = {"xaxis": steps(anchor=names[-1]), "annotations": []}
    for i, panel in enumerate(panels):
        low = 1 - (i + 1) / len(panels)
        top = low + 0.78 / len(panels)
        shown = {trace["name"] for trace in traces}
        lines = []
        for key, name, color in panel.fields:
            entry = {"showlegend": len(panel.fields) > 1 and name not in shown, "legendgroup": name}
            lines.append(line(*column(rows, key), name, color, width=1.5, yaxis=names[i], **entry))
        scale = log_axis("", lines) if panel.log else axis("", nticks=4)
        layout[f"yaxis{names[i][1:]}"] = {**scale, "domain": [low, top]}
        layout["annotations"].append(_heading(panel.title, top))
        traces += lines
    return traces, layout


def _heading(text: str, y: float) -> Json:
    place = {
        "xref": "paper",
        "yref": "paper",
        "x": 0,
        "y": y,
        "xanchor": "left",
        "yanchor": "bottom",
    }
    return {**place, "text": text, "showarrow": False, "font": {"size": 11}}


def panel_label(text: str, x: str, y: str, color: str) -> Json:
    """A name above the upper left corner of the panel with the axes `x` and `y`."""
    place = {"xref": f"{x} domain", "yref": f"{y} domain", "x": 0, "y": 1}
    anchor = {"xanchor": "left", "yanchor": "bottom", "showarrow": False}
    return {**place, **anchor, "text": text, "font": {"size": 11, "color": color}}


def share_map(rows: Sequence[Record], key: str) -> list[Json]:
    """A map of the per-layer share `key` in [0, 1], steps across and layers up, and its legend.

    The legend is made of empty traces: Plotly places axis titles wrongly under a colour bar.
    """
    layers = max(len(row[key]) for row in rows)
    cells = {
        "type": "heatmap",
        "x": [row["step"] for row in rows],
        "y": list(range(layers)),
        "z": [[row[key][i] if i < len(row[key]) else None for row in rows] for i in range(layers)],
        "zmin": 0,
        "zmax": 1,
        "colorscale": SHARE_SCALE,
        "showscale": False,
        "showlegend": False,
        "hovertemplate": f"step %{{x:,d}}, layer %{{y}}: {key} %{{z:.3f}}<extra></extra>",
    }
    names = ("all Mamba-2", "half and half", "all RWKV-6")
    return [cells, *(_swatch(*pair) for pair in zip(names, SHARE_SCALE, strict=True))]


def _swatch(name: str, stop: tuple[float, str]) -> Json:
    marker = {"symbol": "square", "size": 10, "color": stop[1]}
    marker["line"] = {"width": 1, "color": "var(--axis)"}
    empty = {"type": "scatter", "mode": "markers", "x": [None], "y": [None]}
    return {**empty, "name": name, "marker": marker}


def ramp(i: int, n: int) -> str:
    """Colour of layer `i` of `n`: pale at the first, strong at the last."""
    part = round(100 * i / (n - 1)) if n > 1 else 100
    return f"color-mix(in oklab, var(--ramp-low), var(--ramp-high) {part}%)"


def span(values: Sequence[Number]) -> tuple[float, float] | None:
    """Lowest and highest number, or None where there is none."""
    numbers = known(values)
    return (min(numbers), max(numbers)) if numbers else None
