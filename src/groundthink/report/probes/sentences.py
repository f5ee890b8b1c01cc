"""What each probe found, in plain sentences with 95 % intervals: the first screen of the page."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from groundthink.records import Record
from groundthink.report.plot import COMPONENTS
from groundthink.report.run import Kinds
from groundthink.report.text import count, percent, sig

NAMES = {key: name for key, name, _ in COMPONENTS}
ASKED = 16
"""Tokens after a fact that the findings of the probe memory are about."""
CHANCE = 0.05
"""A p value above it is no drift."""


def balance(rows: Kinds) -> Iterator[str]:
    """Worth of the branches and how they go together."""
    found = {(r["scope"], r["site"], r["mode"]): r for r in rows.get("effect", [])}
    whole = found.get(("all", "output", "optimal"))
    if whole and len(whole["phi"]) == 2:
        phi = sorted(whole["phi"].items(), key=lambda item: -item[1]["value"])
        (first, most), (second, least) = ((NAMES[name], of) for name, of in phi)
        share = whole["share"]
        held = f"; RWKV-6 holds {_between(share, percent)} of both" if share else ""
        yield (
            f"The output of {first} is worth {_between(most, unit=' nats')} a token, that of "
            f"{second} {_between(least)}{held}."
        )
        both = whole["interaction"]
        kind = "each needs the other" if both["value"] > 0 else "either does alone"
        known = kind if not _open(both, 0) else "neither redundant nor synergistic"
        yield f"Together: {known}, interaction {_between(both, unit=' nats')}."
    memory = found.get(("all", "memory", "zero"))
    if memory:
        worth = [f"{NAMES[name]} {_between(of)}" for name, of in memory["phi"].items()]
        yield f"Emptying the memory once costs, in nats a token: {', '.join(worth)}."


def states(rows: Kinds) -> Iterator[str]:
    """What happens beyond the training length, and whether states tell texts apart."""
    for length in rows.get("length", []):
        grown = [r for r in rows.get("growth", []) if r["exponent_low"] and r["exponent_low"] > 0]
        rise = {name: length[f"rise{end}"] for name, end in _ENDS.items()}
        yield (
            f"After {count(length['tokens'][-1])} tokens, trained on {count(length['start'])}, the "
            f"loss of a token has changed by {_between(rise, unit=' nats')}; {len(grown)} of "
            f"{len(rows['growth'])} states still grow."
        )
    known = rows.get("state", [])
    if known:
        telling = sum(row["p"] <= CHANCE for row in known)
        yield f"{telling} of {len(known)} states tell texts apart (p\u00a0≤\u00a0{CHANCE})."


def memory(rows: Kinds) -> Iterator[str]:
    """Whether a planted fact is recalled, and where from."""
    recall = _finding(rows, "recall")
    if recall:
        yield (
            f"{ASKED} tokens after a planted fact, its cue makes the value "
            f"{_between(recall, unit=' nats')} likelier."
        )
    read = {name: _finding(rows, f"share read, {name}") for name in NAMES}
    said = [f"{_between(of, percent)} from {NAMES[name]}" for name, of in read.items() if of]
    if len(said) > 1:
        yield f"That answer comes {', '.join(said)}."
    held = {name: _finding(rows, f"information, {name}") for name in NAMES}
    said = [f"{NAMES[name]} {_between(of)}" for name, of in held.items() if of]
    if said:
        yield f"A probe finds these bits of it in the states of a layer: {', '.join(said)}."


def context(rows: Kinds) -> Iterator[str]:
    """How far back each branch reaches."""
    for name in NAMES:
        reach = [row for row in rows.get("reach", []) if row["branch"] == name]
        if reach:
            far = max(reach, key=lambda row: row["distance"])
            near = min(reach, key=lambda row: row["distance"])
            back = [_between({**row, "value": row["distance"]}) for row in (near, far)]
            yield (
                f"What {NAMES[name]} adds in layer {near['layer']} comes from {back[0]} tokens "
                f"back on average, in layer {far['layer']} from {back[1]}."
            )


def flow(rows: Kinds) -> Iterator[str]:
    """What the states know of the next token, and what the losses depend on."""
    gain = _finding(rows, "gain over untrained")
    if gain:
        yield (
            f"The states of a layer tell {_between(gain, unit=' bits')} more about the next token "
            "than before training."
        )
    share = _finding(rows, "information share, rwkv6")
    if share:
        yield f"Of what both branches know of it, RWKV-6 holds {_between(share, percent)}."
    coupled = _finding(rows, "coupling share, rwkv6")
    if coupled:
        yield f"Of what the coming losses owe to states, RWKV-6 has {_between(coupled, percent)}."


def drift(rows: Kinds) -> Iterator[str]:
    """Changes in training and over turns."""
    series = rows.get("series", [])
    alarms = [f"{r['name']} at step {count(r['alarm'])}" for r in series if r["alarm"] is not None]
    if series:
        yield f"In training, an alarm for {', '.join(alarms) or 'nothing'}."
    turns = rows.get("turn", [])
    if turns:
        where = [_finding(rows, f"p of no drift over turns, {row['where']}") for row in turns]
        moved = [found for found in where if found and found["value"] < CHANCE]
        yield (
            f"{len(moved)} of {len(turns)} states drift from the second turn to the last "
            f"(p\u00a0<\u00a0{CHANCE} after Holm)."
        )


SAID: dict[str, Callable[[Kinds], Iterator[str]]] = {
    "balance": balance,
    "states": states,
    "memory": memory,
    "context": context,
    "flow": flow,
    "drift": drift,
}
_ENDS = {"value": "", "low": "_low", "high": "_high"}


def _finding(rows: Kinds, name: str) -> Record | None:
    """The finding of that name, if it was measured."""
    found = (row for row in rows.get("finding", []) if row["name"] == name and row["n"])
    return next(found, None)


def _two(value: float | None) -> str:
    return sig(value, 2)


def _between(of: Record, form: Callable[[float | None], str] = _two, unit: str = "") -> str:
    """A value with its interval: 0.46 nats (0.42 to 0.50)."""
    value, low, high = (form(of[end]) for end in ("value", "low", "high"))
    return f"{value}{unit} ({low} to {high})"


def _open(of: Record, edge: float) -> bool:
    return of["low"] is None or of["low"] <= edge <= of["high"]
