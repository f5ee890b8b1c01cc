"""Balance: what each branch is worth, in all and by layer, beside what its gates suggest."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from typing import Any

from groundthink.records import Record
from groundthink.report.plot import (
    ACCENT,
    COMPONENTS,
    INK,
    SHARE_SCALE,
    Figure,
    Json,
    axis,
    line,
)
from groundthink.report.run import Kinds
from groundthink.report.series import known
from groundthink.report.shell import Section
from groundthink.report.text import percent, prose, sig

NAMES = {key: (name, color) for key, name, color in COMPONENTS}
SITES = {
    "output": (
        "The output of {} is worth {}",
        "What a branch adds to the stream is replaced in all layers.",
    ),
    "read": (
        "What {} reads from the past is worth {}",
        "Only what the recurrence of a branch reads from earlier tokens is replaced; bonus, skip, "
        "token shift and convolution stay.",
    ),
    "memory": (
        "What {} remembers is worth {}",
        "The whole state of a branch is replaced once, before token {at}; the loss is that of the "
        "{after} tokens after it.",
    ),
}
"""Title and caption of each site."""
MODES = {
    "zero": "with nothing in its place",
    "mean": "against its mean",
    "resample": "against that of another text",
    "optimal": "against the best constant",
}
"""What stands in, in words."""
HOLM = 0.05
"""A p value above it leaves open whether the effect is there."""


def section(rows: Kinds) -> Section:
    """The part of the page that draws the records of `probe balance`."""
    effects, layers = rows.get("effect", []), rows.get("layer", [])
    texts = next(iter(rows.get("texts", [])), {})
    drawn = [
        *(_worth(_of(effects, "all", site), site, texts) for site in SITES),
        _map(layers, _of(effects, "layer", "output", "mean")),
        _layers(_of(effects, "layer", "output", "mean"), "output"),
        _layers(_of(effects, "layer", "memory", "zero"), "memory"),
        _prefixes([row for row in effects if _prefix(row)]),
    ]
    words = [_verdict(effects), _gradients(rows.get("gradients", []))]
    html = "".join(f"<p>{prose(text)}</p>" for text in words if text)
    return Section("balance", "Balance", [figure for figure in drawn if figure], html)


def _prefix(row: Record) -> bool:
    return row["scope"] != "layer" and (row["site"], row["mode"]) == ("output", "zero")


def _of(effects: Sequence[Record], scope: str, site: str, mode: str = "") -> list[Record]:
    return [
        row
        for row in effects
        if (row["scope"], row["site"]) == (scope, site) and mode in ("", row["mode"])
    ]


def _verdict(effects: Sequence[Record]) -> str:
    """The balance in one sentence."""
    whole = next(iter(_of(effects, "all", "output", "optimal")), None)
    read = next(iter(_of(effects, "all", "read", "mean")), None)
    if not whole or not whole["share"]:
        return ""
    parts = [f"RWKV-6 holds {percent(_clip(whole['share']['value']))} of what the branches know"]
    if read and read["share"]:
        parts.append(f"{percent(_clip(read['share']['value']))} of what they read from the past")
    return f"{' and '.join(parts)}; the branches are {_relation(whole['interaction'])}."


def _relation(interaction: Json) -> str:
    if interaction["low"] is None or interaction["low"] <= 0 <= interaction["high"]:
        return "neither redundant nor synergistic as far as these texts tell"
    return "redundant" if interaction["value"] < 0 else "synergistic"


def _worth(rows: Sequence[Record], site: str, texts: Record) -> Figure | None:
    """Shapley values and interaction in all layers, by what stands in."""
    if not rows:
        return None
    x = [row["mode"] for row in rows]
    traces = [_bars(x, rows, branch) for branch in rows[0]["phi"]]
    judged = rows[-1] if site == "output" else rows[0]
    worth = {NAMES[b][0]: f"{sig(phi['value'], 2)}" for b, phi in judged["phi"].items()}
    (name, value), *other = worth.items()
    opening, caption = SITES[site]
    title = opening.format(name, f"{value} nats a token")
    title += "".join(f", that of {n} {v}" if site == "output" else f", {n} {v}" for n, v in other)
    caption = caption.format(at=texts["at"], after=texts["length"] - texts["at"] - 1)
    if other:
        traces.append(_interactions(x, rows))
        caption += (
            " The loss of cutting both is shared by Shapley value. Interaction: below zero either "
            "branch does alone, above zero each needs the other."
        )
    caption += f" Intervals: 95 % over {texts['documents']} documents, pale if not told from zero."
    caption += _broken(rows, texts)
    layout = {
        "xaxis": {"tickangle": 0},
        "yaxis": axis("nats per token"),
        "hovermode": "closest",
        **_grouped(),
    }
    title += f", {MODES[judged['mode']]}"
    return Figure(f"balance-{site}", title, caption, traces, layout, height=320)


def _broken(rows: Sequence[Record], texts: Record) -> str:
    """Which ablations leave a model that is worse than guessing."""
    modes = [row["mode"] for row in rows if row["loss"][""] > texts["chance"]]
    if not modes:
        return ""
    chance = sig(texts["chance"])
    return f" Worse than guessing ({chance}), so broken rather than deprived: {', '.join(modes)}."


def _layers(rows: Sequence[Record], site: str) -> Figure | None:
    """Shapley values of single layers."""
    if len(rows) < 2:
        return None
    traces, best = [], []
    for branch, (name, _) in NAMES.items():
        kept = [row for row in rows if branch in row["phi"]]
        if kept:
            traces.append(_bars([row["layer"] for row in kept], kept, branch))
            most = max(kept, key=lambda row: _value(row, branch))
            best.append(f"{name} in layer {most['layer']} ({sig(_value(most, branch), 2)})")
    title = f"Of single layers the {site} is worth most: {' and '.join(best)}"
    once = ", once, halfway through the text" if site == "memory" else ""
    stands = "Its mean" if rows[0]["mode"] == "mean" else "Nothing"
    caption = (
        f"{stands} stands in for a branch in one layer{once}. Other layers make up for it, so "
        "layers do not add up to the whole. Pale bars are not told from zero (Holm)."
    )
    layout = {
        "xaxis": axis("layer", dtick=1 if len(rows) <= 16 else None),
        "yaxis": axis("nats per token"),
        "hovermode": "closest",
        **_grouped(),
    }
    return Figure(f"balance-layers-{site}", title, caption, traces, layout)


def _value(row: Record, branch: str) -> float:
    return row["phi"][branch]["value"]


def _prefixes(rows: Sequence[Record]) -> Figure | None:
    """Shapley values when all layers up to one are cut."""
    rows = sorted(rows, key=lambda row: row["layer"])
    if len(rows) < 2:
        return None
    traces, ends = [], []
    for branch, (name, color) in NAMES.items():
        kept = [row for row in rows if branch in row["phi"]]
        if kept:
            x = [row["layer"] for row in kept]
            traces += _band(x, [row["phi"][branch] for row in kept], name, color)
            first, last = (sig(_value(row, branch), 2) for row in (kept[0], kept[-1]))
            ends.append(f"{name} from {first} to {last}")
    title = f"From the first layer to all of them a branch gains in worth: {' and '.join(ends)}"
    caption = "Nothing stands in for the outputs of a branch in all layers up to this one."
    layout = {
        "xaxis": axis("cut up to layer", dtick=1 if rows[-1]["layer"] <= 16 else None),
        "yaxis": axis("nats per token"),
    }
    return Figure("balance-prefix", title, caption, traces, layout)


def _map(layers: Sequence[Record], effects: Sequence[Record]) -> Figure | None:
    """RWKV-6 shares of every layer by three measures, one under the other."""
    if not layers:
        return None
    index = [row["layer"] for row in layers]
    lines = {
        "worth": _shares(effects, index),
        "of the sum": [row["share"]["value"] for row in layers],
        "gate": [row["gate"]["value"] if row["gate"] else None for row in layers],
    }
    lines = {name: values for name, values in lines.items() if known(values)}
    cells = [[None if v is None else _clip(v) for v in values] for values in lines.values()]
    trace = {
        "type": "heatmap",
        "x": index,
        "y": list(lines),
        "z": cells,
        "zmin": 0,
        "zmax": 1,
        "colorscale": SHARE_SCALE,
        "showscale": False,
        "showlegend": False,
        "xgap": 2,
        "ygap": 6,
        "texttemplate": "%{z:.0%}" if len(index) <= 12 else "",
        "textfont": {"color": INK},
        "hovertemplate": "layer %{x}, %{y}: RWKV-6 %{z:.1%}<extra></extra>",
    }
    means = {name: percent(_clip(statistics.fmean(known(v)))) for name, v in lines.items()}
    title = f"RWKV-6 makes {means['of the sum']} of the fused outputs"
    if "gate" in means:
        title = f"Gates give RWKV-6 {means['gate']}, and it makes {means['of the sum']} of the sums"
    if "worth" in means:
        title += f"; it is worth {means['worth']}"
    saturated = [row["gate"]["saturated"] for row in layers if row["gate"]]
    caption = (
        "RWKV-6 share of each layer, 0 is all Mamba-2: of what cutting the branches costs, of the "
        "fused output (projected on the sum), and the mean gate."
    )
    if saturated:
        spread = statistics.fmean(row["gate"]["sd"] for row in layers if row["gate"])
        caption += (
            f" Gates vary by {sig(spread, 2)} from token to token; {percent(max(saturated))} at "
            "most of a layer's are shut or open."
        )
    layout = {
        "xaxis": axis("layer", dtick=1 if len(index) <= 16 else None),
        "yaxis": {"showgrid": False, "ticks": ""},
        "hovermode": "closest",
    }
    return Figure("balance-map", title, caption, [trace], layout, height=90 + 60 * len(lines))


def _shares(rows: Sequence[Record], layers: Sequence[int]) -> list[float | None]:
    found = {row["layer"]: row["share"]["value"] for row in rows if row["share"]}
    return [found.get(layer) for layer in layers]


def _clip(share: float) -> float:
    return min(1.0, max(0.0, share))


def _bars(x: Sequence[Any], rows: Sequence[Record], branch: str) -> Json:
    values = [row["phi"][branch] for row in rows]
    real = [1.0 if row["p"][branch] < HOLM else 0.35 for row in rows]
    return _bar(x, values, *NAMES[branch], real)


def _bar(
    x: Sequence[Any], values: Sequence[Json], name: str, color: str, opacity: Sequence[float]
) -> Json:
    return {
        "type": "bar",
        "x": list(x),
        "y": [value["value"] for value in values],
        "name": name,
        "marker": {"color": color, "opacity": list(opacity)},
        "error_y": _error(values),
        "hovertemplate": f"{name}: %{{y:.3~g}} nats<extra></extra>",
    }


def _interactions(x: Sequence[Any], rows: Sequence[Record]) -> Json:
    values = [row["interaction"] for row in rows]
    real = [1.0 if row["p"]["interaction"] < HOLM else 0.35 for row in rows]
    return _bar(x, values, "interaction", ACCENT, real)


def _error(values: Sequence[Json]) -> Json:
    above = [_side(value["high"], value["value"]) for value in values]
    below = [_side(value["value"], value["low"]) for value in values]
    look = {"color": INK, "thickness": 1, "width": 3}
    return {"type": "data", "symmetric": False, "array": above, "arrayminus": below, **look}


def _side(high: float | None, low: float | None) -> float | None:
    """Length of one side of an interval; an endless one has none."""
    return None if high is None or low is None else high - low


def _band(x: Sequence[int], values: Sequence[Json], name: str, color: str) -> Iterator[Json]:
    """A line with its intervals as a band."""
    soft = f"color-mix(in srgb, {color} 16%, transparent)"
    edge = {"mode": "lines", "width": 0, "showlegend": False, "hoverinfo": "skip"}
    yield line(x, [value["high"] for value in values], name, color, **edge)
    low = [value["low"] for value in values]
    yield line(x, low, name, color, fill="tonexty", fillcolor=soft, **edge)
    marks = {"mode": "lines+markers", "marker": {"size": 6}}
    yield line(x, [value["value"] for value in values], name, color, **marks)


def _grouped() -> Json:
    return {"barmode": "group", "bargap": 0.3, "bargroupgap": 0.08}


def _gradients(rows: Sequence[Record]) -> str:
    """Gradient balance in words."""
    if not rows or not all(branch in rows[0]["grad_rms"] for branch in ("rwkv6", "mamba2")):
        return ""
    words = []
    for key, what in (("grad_rms", "gradient RMS per parameter"), ("update_ratio", "update ratio")):
        found = rows[0].get(key) or {}
        if "rwkv6" in found and "mamba2" in found:
            r, m = sig(found["rwkv6"], 2), sig(found["mamba2"], 2)
            words.append(f"{what} {r} in RWKV-6 and {m} in Mamba-2")
    return (
        f"Later half of training: {'; '.join(words)}. That says which branch was being moved; "
        "it is no proof of what either contributes."
    )
