"""Figures of what a model holds: recurrent state over time, parameters by part."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from groundthink.records import Record
from groundthink.report.plot import (
    COMPONENTS,
    FAINT,
    INK,
    MAMBA2,
    MUTED,
    RWKV6,
    Figure,
    Panel,
    axis,
    stacked,
)
from groundthink.report.run import Run
from groundthink.report.series import column, known
from groundthink.report.text import compact, percent, sig


def states(run: Run) -> list[Figure]:
    """The state columns of --train.log_states."""
    rows = run.of("states")
    return [*_state_sizes(rows), *_state_dynamics(rows)]


def budget(run: Run) -> list[Figure]:
    """Where the parameters are, as one bar."""
    parts = parameter_parts(run.counts)
    if not parts:
        return []
    total = sum(number for _, number, _ in parts)
    name, number, _ = max(parts, key=lambda part: part[1])
    traces = [
        {
            "type": "bar",
            "orientation": "h",
            "x": [n],
            "y": ["parameters"],
            "name": label,
            "marker": {"color": color},
            "hovertemplate": f"{label}: %{{x:,d}} ({percent(n / total)})<extra></extra>",
        }
        for label, n, color in parts
    ]
    layout = {
        "barmode": "stack",
        "hovermode": "closest",
        "xaxis": axis("parameters", tickformat="~s"),
        "yaxis": {"visible": False, "fixedrange": True},
    }
    title = (
        f"The largest part, {name}, holds {percent(number / total)} of {compact(total)} parameters"
    )
    caption = "Counted on the built model; norms outside the named parts are the rest."
    return [Figure("parameters", title, caption, traces, layout, height=190, wide=True)]


def parameter_parts(counts: Mapping[str, Any]) -> list[tuple[str, int, str]]:
    """(label, parameters, colour) of each part that has any; together they make the total."""
    if not counts.get("total"):
        return []
    parts = [(name, counts.get(key, 0), color) for key, name, color in COMPONENTS if key != "other"]
    outside = counts["total"] - counts.get("non_embedding", counts["total"])
    parts.append(("embeddings", outside, MUTED))
    parts.append(("rest", counts["total"] - sum(number for _, number, _ in parts), FAINT))
    return [part for part in parts if part[1] > 0]


def _state_sizes(rows: list[Record]) -> list[Figure]:
    def both(kind: str) -> list[tuple[str, str, str]]:
        pair = (("rwkv", "RWKV-6", RWKV6), ("mamba", "Mamba-2", MAMBA2))
        return [(f"{branch}_state_{kind}", name, color) for branch, name, color in pair]

    ratios = [
        ("state_ratio", "R:M of states", INK),
        ("activation_ratio", "R:M of activations", MUTED),
    ]
    panels = [
        Panel("norm", both("norm"), log=True),
        Panel("variance", both("var"), log=True),
        Panel("R:M ratio", ratios, log=True),
    ]
    panels = _recorded(rows, panels)
    if not panels:
        return []
    ends = [
        f"{sig(known(column(rows, field)[1])[-1], 2)} ({name})"
        for field, name, _ in panels[0].fields
    ]
    title = f"Recurrent state {panels[0].title} ends at {' and '.join(ends)}"
    caption = "Norm and variance of what carries over from token to token, and their ratios R:M."
    traces, layout = stacked(rows, panels)
    return [Figure("state-sizes", title, caption, traces, layout, height=420)]


def _state_dynamics(rows: list[Record]) -> list[Figure]:
    panels = _recorded(
        rows,
        [
            Panel(
                "entropy / ln n",
                [("state_entropy", "states", INK), ("hidden_entropy", "mixers, last layer", MUTED)],
            ),
            Panel("relative update", [("update_magnitude", "update magnitude", INK)]),
            Panel("std / mean", [("norm_stability", "norm stability", INK)]),
        ],
    )
    if not panels:
        return []
    field = panels[0].fields[0][0]
    end = known(column(rows, field)[1])[-1]
    title = {
        "state_entropy": f"State entropy ends at {percent(end)} of its maximum",
        "hidden_entropy": f"Hidden entropy ends at {percent(end)} of its maximum",
        "update_magnitude": f"Between records the state moves by {percent(end)} of its norm",
        "norm_stability": f"State norms vary by {percent(end)} of their mean",
    }[field]
    caption = "How evenly the state is filled, how far it moved since the last record, how steady."
    traces, layout = stacked(rows, panels)
    return [Figure("state-dynamics", title, caption, traces, layout, height=420)]


def _recorded(rows: list[Record], panels: list[Panel]) -> list[Panel]:
    """The panels reduced to the fields that were logged."""
    kept = [replace(p, fields=[f for f in p.fields if column(rows, f[0])[0]]) for p in panels]
    return [panel for panel in kept if panel.fields]
