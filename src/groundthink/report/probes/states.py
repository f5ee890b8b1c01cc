"""States: how they move along a text, what they keep, and how they grow, follow edits and mix."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

from groundthink.records import Record
from groundthink.report.plot import (
    INK,
    MUTED,
    Figure,
    Json,
    Panel,
    axis,
    line,
    log_axis,
    stacked,
)
from groundthink.report.probes.state_maps import LOOKS, Branches, mean, ranks, retention, said
from groundthink.report.run import Kinds
from groundthink.report.shell import Section
from groundthink.report.text import count, percent, sig


def section(rows: Kinds) -> Section:
    """The part of the page that draws the records of `probe states`."""
    if not rows.get("along"):
        return Section("states", "States", notes=["This model has no recurrent state."])
    figures = [
        _along(branches(rows["along"])),
        _constants(branches(rows["tau"])),
        retention(branches(rows["tau"])),
        ranks(branches(rows["along"])),
        *_growth(branches(rows.get("growth", [])), rows.get("length", [])),
        _writes(branches(rows["state"])),
        _inputs(branches(rows["state"])),
        *_paths(branches(rows["path"]), branches(rows["state"])),
        _superposition(branches(rows["superposition"])),
        _edits(rows["edits"]),
        _mixtures(rows["between"][0]),
    ]
    notes = [] if rows.get("growth") else ["The texts are too short to look for growth in."]
    return Section("states", "States", figures, notes=notes)


def branches(rows: Sequence[Record]) -> Branches:
    """Records by branch, RWKV-6 first, in the order of the layers."""
    found = {key: [row for row in rows if row["branch"] == key] for key in LOOKS}
    return {key: mine for key, mine in found.items() if mine}


def _along(rows: Branches) -> Figure:
    """Size, likeness to the turn before, spectral entropy and shift, mean over layers."""
    fields = ("rms", "turn", "entropy", "shift")
    tokens = next(iter(rows.values()))[0]["tokens"]
    points: list[Record] = [{"step": token} for token in tokens]
    for branch, layers in rows.items():
        for i, point in enumerate(points):
            point |= {f"{key} {branch}": mean([row[key][i] for row in layers]) for key in fields}
    turn = tokens[1] - tokens[0]

    def panel(title: str, key: str, log: bool = False) -> Panel:
        return Panel(title, [(f"{key} {b}", *LOOKS[b]) for b in rows], log)

    traces, layout = stacked(
        points,
        [
            panel("size: RMS of an entry", "rms", True),
            panel(f"likeness: cosine with the state {turn} tokens before", "turn"),
            panel("spectral entropy: 1 uses all directions alike", "entropy"),
            panel(f"shift: change over {turn} tokens relative to the state", "shift"),
        ],
    )
    layout["xaxis"] = {**layout["xaxis"], "title": {"text": "tokens read"}}
    late = {b: sig(mean([row["turn"][-1] for row in layers]), 2) for b, layers in rows.items()}
    title = f"States {turn} tokens apart have a cosine of {said(late)}"
    caption = "Mean over layers and texts; a state that never turns is frozen, one that turns at "
    caption += "once keeps no past."
    return Figure("states-along", title, caption, traces, layout, height=560, wide=True)


def _constants(rows: Branches) -> Figure:
    """Share of channels that keep longer than x, by branch, each layer faint."""
    traces, middle = [], {}
    for branch, layers in rows.items():
        name, color = LOOKS[branch]
        for row in layers:
            faint = {"width": 1, "opacity": 0.3, "showlegend": False, "hoverinfo": "skip"}
            traces.append(_steps(*_survival(row["tokens"]), name, color, **faint))
        every = [tau for row in layers for tau in row["tokens"]]
        hover = f"{name}: %{{y:.0%}} keep longer than %{{x:.3~g}} tokens<extra></extra>"
        traces.append(_steps(*_survival(every), name, color, hovertemplate=hover))
        middle[branch] = f"{sig(statistics.median(every), 2)} tokens"
    title = f"The median time constant is {said(middle)}"
    caption = (
        "Share of RWKV-6 channels and Mamba-2 heads whose memory, by the mean of their decays on "
        "real text, falls to 1/e only after more tokens than shown; a faint line a layer."
    )
    layout = {
        "hovermode": "closest",
        "xaxis": axis("time constant in tokens", type="log", dtick=1, tickformat="~g"),
        "yaxis": axis("share that keeps longer", tickformat=".0%", range=[0, 1.02]),
    }
    return Figure("states-constants", title, caption, traces, layout)


def _steps(x: Sequence[float], y: Sequence[float], name: str, color: str, **more: Any) -> Json:
    trace = line(x, y, name, color, **more)
    return {**trace, "line": {**trace["line"], "shape": "hv"}}


def _survival(taus: Sequence[float]) -> tuple[list[float], list[float]]:
    x = sorted(taus)
    return [x[0], *x], [1.0, *(1 - (i + 1) / len(x) for i in range(len(x)))]


def _growth(rows: Branches, length: list[Record]) -> list[Figure]:
    """Sizes over that at the training length, and losses, by tokens read."""
    if not rows or not length:
        return []
    start, traces = length[0]["start"], []
    tokens = length[0]["tokens"]
    at = tokens.index(start)
    for branch, layers in rows.items():
        name, color = LOOKS[branch]
        for i, row in enumerate(layers):
            hover = f"layer {row['layer']} of {name}: %{{y:.3~g}} times<extra></extra>"
            look = {"showlegend": i == 0, "legendgroup": name, "width": 1.5, "opacity": 0.75}
            grown = [value / row["rms"][at] if value else None for value in row["rms"]]
            traces.append(line(tokens, grown, name, color, hovertemplate=hover, **look))
    most = max((row for layers in rows.values() for row in layers), key=lambda r: r["exponent"])
    mark = {"type": "line", "x0": start, "x1": start, "yref": "paper", "y0": 0, "y1": 1}
    mark["line"] = {"color": MUTED, "width": 1.25, "dash": "dot"}
    doubles = {"tick0": math.log10(start), "dtick": math.log10(2), "tickformat": ",.0f"}
    shared = {"xaxis": axis("tokens read", type="log", **doubles), "shapes": [mark]}
    title = (
        f"{LOOKS[most['branch']][0]} of layer {most['layer']} grows fastest, "
        f"as t to the {sig(most['exponent'], 2)}"
    )
    caption = "RMS of every state over its own at the training length, which is dotted; at 0 the "
    caption += "exponent is that of a state that has filled."
    sizes = {**shared, "hovermode": "closest", "yaxis": log_axis("times its size there", traces)}
    rise, low, high = (length[0][key] for key in ("rise", "rise_low", "rise_high"))
    title_of_loss = "Context beyond the training length neither costs nor saves measurably"
    if low > 0 or high < 0:
        costs = "costs" if rise > 0 else "saves"
        title_of_loss = f"Context beyond the training length {costs} {sig(abs(rise), 2)} nats"
    losses = band(tokens, length[0]["loss"], length[0]["low"], length[0]["high"], "loss", INK)
    return [
        Figure("states-growth", title, caption, traces, sizes),
        Figure(
            "states-length",
            title_of_loss,
            "Loss of the tokens at each place of a text, with intervals over texts. The title is "
            "of the last tokens: after the whole text against after one training length, "
            f"{_signed(rise)} nats, {_signed(low)} to {_signed(high)}.",
            losses,
            {**shared, "yaxis": axis("nats per token"), "showlegend": False},
        ),
    ]


def _signed(value: float) -> str:
    return ("+" if value > 0 else "") + sig(value, 2)


def band(
    x: Sequence[float], y: Sequence[float], low: Sequence, high: Sequence, name: str, color: str
) -> list[Json]:
    """A line through points with its interval shaded."""
    soft = f"color-mix(in srgb, {color} 16%, transparent)"
    edge: dict[str, Any] = {"mode": "lines", "width": 0, "showlegend": False, "hoverinfo": "skip"}
    return [
        line(x, high, name, color, **edge),
        line(x, low, name, color, fill="tonexty", fillcolor=soft, **edge),
        line(x, y, name, color, mode="lines+markers", marker={"size": 6, "color": color}),
    ]


def _layered(rows: Branches, key: str, low: str = "", high: str = "") -> list[Json]:
    """A quantity by layer, with intervals where they are named."""
    traces = []
    for branch, layers in rows.items():
        name, color = LOOKS[branch]
        x, y = [row["layer"] for row in layers], [row[key] for row in layers]
        marker = {"mode": "lines+markers", "marker": {"size": 7, "color": color}}
        trace = line(x, y, name, color, **marker)
        if low:
            above = [row[high] - row[key] for row in layers]
            below = [row[key] - row[low] for row in layers]
            sides = {"type": "data", "symmetric": False, "array": above, "arrayminus": below}
            trace["error_y"] = {**sides, "color": color, "thickness": 1.5, "width": 3}
        traces.append(trace)
    return traces


def _by_layer(rows: Branches) -> Json:
    layers = max(row["layer"] for mine in rows.values() for row in mine)
    return axis("layer", dtick=1 if layers < 16 else None)


def _writes(rows: Branches) -> Figure:
    """What a token writes and what it lets go, relative to the state, by layer."""
    traces = _layered(rows, "written")
    for branch, layers in rows.items():
        name, color = LOOKS[branch]
        x, y = [row["layer"] for row in layers], [row["forgotten"] for row in layers]
        traces.append(line(x, y, f"{name}, forgotten", color, dash="dot"))
    share = {b: percent(mean([row["written"] for row in layers])) for b, layers in rows.items()}
    title = f"One token writes {said(share)} of the state"
    caption = "Size of what a token adds (solid) and of what the decay takes (dotted), over the "
    caption += "size of a filled state."
    layout = {"xaxis": _by_layer(rows), "yaxis": log_axis("share of the state", traces)}
    return Figure("states-writes", title, caption, traces, layout)


def _inputs(rows: Branches) -> Figure:
    """Share of the energy of two states that lies in their difference, by layer."""
    least = min((row for mine in rows.values() for row in mine), key=lambda row: row["apart"])
    title = (
        f"{LOOKS[least['branch']][0]} of layer {least['layer']} depends least on the text: "
        f"{percent(least['apart'])} of its energy"
    )
    caption = "Energy of the difference between the states of two texts over that of both: 0 is a "
    caption += "frozen state, 1 is two states with nothing in common."
    traces = _layered(rows, "apart", "apart_low", "apart_high")
    layout = {"xaxis": _by_layer(rows), "yaxis": axis("share of the energy", rangemode="tozero")}
    return Figure("states-inputs", title, caption, traces, layout)


def _paths(rows: Branches, states: Branches) -> list[Figure]:
    """The way of one text through the plane where a state moves most, one layer a branch."""
    figures = []
    for branch, layers in rows.items():
        name, _ = LOOKS[branch]
        longest = max(states[branch], key=lambda row: row["tau"])["layer"]
        row = next(row for row in layers if row["layer"] == longest)
        marker = {"size": 7, "color": row["tokens"], "line": {"width": 0}}
        marker["colorscale"] = [(0, "var(--ramp-low)"), (1, "var(--ramp-high)")]
        way = line(row["x"], row["y"], name, MUTED, mode="lines+markers", width=1)
        way |= {"marker": marker, "text": [count(token) for token in row["tokens"]]}
        way |= {"hovertemplate": "after %{text} tokens<extra></extra>", "showlegend": False}
        title = f"{percent(row['explained'])} of how {name} of layer {longest} moves is in a plane"
        caption = (
            "The state along the longest text on its two principal axes, pale at the first token "
            "and strong at the last; of all layers the one with the longest memory."
        )
        layout = {
            "hovermode": "closest",
            "xaxis": axis("first axis", zeroline=False, nticks=6),
            "yaxis": axis("second axis", zeroline=False, nticks=6),
        }
        figures.append(Figure(f"states-path-{branch}", title, caption, [way], layout, height=340))
    return figures


def _superposition(rows: Branches) -> Figure:
    """How far the state after two texts is from the sum of what each made, by layer."""
    last = {b: percent(layers[-1]["residual"]) for b, layers in rows.items()}
    first = max(layers[0]["residual"] for layers in rows.values())
    exactly = "exactly" if first < 1e-5 else f"but for {sig(first, 2)}"
    title = f"States add up {exactly} in the first layer; in the last they miss {said(last)}"
    caption = "Distance of the state after a and b from what b keeps of a's plus what b writes "
    caption += "alone, over its size: exact in the first layer, elsewhere what lower layers told."
    traces = _layered(rows, "residual", "residual_low", "residual_high")
    layout = {"xaxis": _by_layer(rows), "yaxis": axis("residual", rangemode="tozero")}
    return Figure("states-superposition", title, caption, traces, layout)


def _edits(rows: list[Record]) -> Figure:
    """Distance of the states by number of edited tokens."""
    traces = []
    for row in rows:
        x = [str(n) for n in row["edits"]]
        name, color = LOOKS[row["branch"]]
        traces += band(x, row["distance"], row["low"], row["high"], name, color)  # pyright: ignore
    order = {row["branch"]: sig(row["rho"], 2) for row in rows}
    title = f"More edits move the state farther: rank correlation {said(order)}"
    caption = (
        "Relative distance of the last state from that of the unedited text, mean over layers."
    )
    layout = {
        "xaxis": axis("replaced tokens", type="category"),
        "yaxis": axis("relative distance", rangemode="tozero"),
    }
    return Figure("states-edits", title, caption, traces, layout)


def _mixtures(row: Record) -> Figure:
    """Loss from states between two, and the straight line."""
    x, y = row["alpha"], row["extra"]
    chord = line([x[0], x[-1]], [y[0], y[-1]], "straight line", MUTED, dash="dot", width=1.5)
    above = [value - (1 - a) * y[0] - a * y[-1] for a, value in zip(x, y, strict=True)]
    barrier = max(above[1:-1])
    title = "Between two states lies no barrier: the loss stays below the straight line"
    if barrier > 0:
        title = f"Between two states lies a barrier of {sig(barrier, 2)} nats"
    caption = (
        "What it costs a text to go on from a mixture of its own state (1) and another text's (0), "
        "over its own, with intervals over texts; a hump would be a barrier between them."
    )
    traces = [*band(x, y, row["low"], row["high"], "mixed state", INK), chord]
    layout = {"xaxis": axis("share of its own state"), "yaxis": axis("extra nats per token")}
    return Figure("states-mixtures", title, caption, traces, layout)
