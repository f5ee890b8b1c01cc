"""The page of `probe drift`: what changed in training, over turns and between checkpoints."""

from __future__ import annotations

from groundthink.records import Record
from groundthink.report.plot import ACCENT, INK, MAMBA2, RWKV6, Figure, Json, axis, line, steps
from groundthink.report.run import Kinds
from groundthink.report.series import running_mean
from groundthink.report.shell import Section
from groundthink.report.text import count, percent, sig

COLOURS = {"rwkv6": ("RWKV-6", RWKV6), "mamba2": ("Mamba-2", MAMBA2)}
UNITS = {"training loss": "nats per token", "mean gate": "RWKV-6 share"}


def section(rows: Kinds) -> Section:
    """Timelines of the training records, states over turns, likeness of the checkpoints."""
    figures = [_timeline(row) for row in rows.get("series", [])]
    figures += [*_turns(rows.get("turn", [])), *_checkpoints(rows.get("checkpoint", []))]
    notes = [] if rows.get("series") else ["The run has too few records to look for change in."]
    return Section("drift", "Drift", figures, notes=notes)


def _timeline(row: Record) -> Figure:
    name, alarm = row["name"], row["alarm"]
    x, y = row["steps"], row["values"]
    smooth = running_mean(x, y, max(5, len(x) // 40))
    values = [
        line(x, y, name, INK, width=1, opacity=0.28, showlegend=False, hoverinfo="skip"),
        line(*smooth, name, INK, showlegend=False),
    ]
    sums = line(x, row["statistic"], "Page-Hinkley sum", ACCENT, width=1.5, yaxis="y2")
    edge = line(x[:: len(x) - 1], [row["threshold"]] * 2, "alarm above", ACCENT, yaxis="y2")
    edge["line"] = {**edge["line"], "dash": "dot", "width": 1}
    layout: Json = {
        "xaxis": steps(anchor="y2"),
        "yaxis": axis(UNITS.get(name, ""), domain=[0.42, 1]),
        "yaxis2": axis("", domain=[0, 0.3], nticks=3, rangemode="tozero"),
        "shapes": [] if alarm is None else [_mark(alarm)],
    }
    said = "shows no change" if alarm is None else f"changes around step {count(alarm)}"
    caption = (
        "Above the record, below the sum of its surprises; stationary series like it raise "
        f"an alarm in {percent(row['false_alarm_rate'])} of cases"
    )
    if row["delay"] is not None:
        caption += f", a shift by {sig(row['seen'], 2)} is seen after {count(row['delay'])} steps"
    title = f"The {name} {said}"
    traces = [*values, sums, edge]
    return Figure(
        f"drift-{name.replace(' ', '-').replace('/', '-')}",
        title,
        caption + ".",
        traces,
        layout,
        height=340,
    )


def _mark(step: int) -> Json:
    place = {"type": "line", "x0": step, "x1": step, "yref": "paper", "y0": 0, "y1": 1}
    return {**place, "line": {"color": ACCENT, "width": 1.5}}


def _turns(rows: list[Record]) -> list[Figure]:
    if not rows:
        return []
    traces, moved = [], {}
    for branch, (name, color) in COLOURS.items():
        mine = [row for row in rows if row["where"].endswith(branch)]
        for i, row in enumerate(mine):
            turns = [*range(1, len(row["distance"]) + 1)]
            layer = row["where"].split(".")[1]
            once = {"showlegend": i == 0, "legendgroup": name, "opacity": 0.75, "width": 1.5}
            hover = f"layer {layer}, {name}: %{{y:.3f}}<extra></extra>"
            traces.append(line(turns, row["distance"], name, color, hovertemplate=hover, **once))
        if mine:
            moved[name] = sum(row["distance"][-1] for row in mine) / len(mine)
    said = " and ".join(f"{sig(value, 2)} ({name})" for name, value in moved.items())
    last = len(rows[0]["distance"])
    layout = {
        "hovermode": "closest",
        "xaxis": axis("turn", dtick=1),
        "yaxis": axis("energy distance to turn 2", rangemode="tozero"),
    }
    title = f"From turn 2 to turn {last} the states move by {said} of the most they could"
    caption = (
        "Energy distance between the states of many texts after each turn and after the second, "
        "0 for one distribution and 1 for two that share nothing; a line a layer."
    )
    return [Figure("drift-turns", title, caption, traces, layout, wide=True)]


def _checkpoints(rows: list[Record]) -> list[Figure]:
    if not rows:
        return []
    traces = []
    for step in sorted({row["step"] for row in rows}):
        for branch, (name, color) in COLOURS.items():
            mine = [r for r in rows if r["step"] == step and r["where"].endswith(branch)]
            x = [int(row["where"].split(".")[1]) for row in mine]
            y = [row["cka"] for row in mine]
            if mine:
                traces.append(line(x, y, f"{name}, step {count(step)}", color))
    least = min(rows, key=lambda row: row["cka"])
    branch = COLOURS[least["where"].split(".")[2]][0]
    title = (
        f"The state that changed most since step {count(least['step'])} is {branch} of layer "
        f"{least['where'].split('.')[1]}: likeness {sig(least['cka'], 2)}"
    )
    caption = "Debiased CKA of the states of this checkpoint and of an earlier one: 1 is the same."
    layout = {"xaxis": axis("layer", dtick=1), "yaxis": axis("debiased CKA")}
    return [Figure("drift-checkpoints", title, caption, traces, layout, wide=True)]
