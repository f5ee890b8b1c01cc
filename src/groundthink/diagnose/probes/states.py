"""`groundthink probe states`: how the recurrent states move, grow, forget and mix."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from groundthink.diagnose.components import branches
from groundthink.diagnose.dynamics import diverged
from groundthink.diagnose.probes.coupling import spearman
from groundthink.diagnose.probes.evolution import between, edited, superposition
from groundthink.diagnose.probes.growth import growth, needed
from groundthink.diagnose.probes.registry import Row, probe
from groundthink.diagnose.probes.walk import Table, gated, observe
from groundthink.diagnose.states import matrices
from groundthink.diagnose.subject import Subject
from groundthink.verdicts.statistics import Interval, Paired, bootstrap_mean, median
from groundthink.verdicts.verdict import judge, skipped

TURN, LENGTH = 64, 512
"""Tokens between two looks at the states, and in all."""
WARM = 128
"""Tokens after which a state counts as filled."""
PERMUTATIONS = 499
EDITED, EDITS, VARIANTS = (32, 64), (0, 1, 2, 4, 8), 4
"""Texts that are edited and their length, how many of their tokens, how many ways for one."""
HALVES = (32, 128)
"""Texts that are cut into halves, and their length."""
PREFIX, REST = 128, 32
"""Tokens that make a state, and that are predicted from a mixture of two."""
ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)
PATH = 8
"""Tokens between two points of a path."""


@probe("states", "how the recurrent states move")
@torch.inference_mode()
def states(subject: Subject) -> list[Row]:
    """Size, rank, writes, time constants, growth, input dependence and linearity of all states."""
    if not branches(subject.model):
        return [("finding", skipped("states", "states", "no recurrent branch").record())]
    texts, clusters = subject.stretches(subject.samples, LENGTH)
    table = observe(subject.model, texts, list(range(TURN, LENGTH + 1, TURN)))
    return [
        *moving(table, clusters),
        *gates(table, subject, clusters),
        *growing(subject),
        *adding_up(subject),
        *editing(subject),
        *mixing(subject),
        *path(subject),
    ]


def place(name: str) -> dict[str, Any]:
    """Layer and branch of a module."""
    _, layer, *branch = name.split(".")
    return {"layer": int(layer), **({"branch": branch[0]} if branch else {})}


def ends(interval: Interval, name: str) -> dict[str, float]:
    """An interval as fields of a record."""
    return {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}


def found(
    quantity: str, interval: Interval, note: str = "", where: str = "", id: str = "states"
) -> Row:
    return "finding", judge(id, quantity, interval, note, where).record()


def moving(table: Table, clusters: list[int]) -> Iterator[Row]:
    """What the walk saw of every recurrence: along the text, and as numbers with intervals."""
    stops = list(range(TURN, LENGTH + 1, TURN))
    warm = [stop > WARM for stop in stops]
    modules = {name: columns for name, columns in table.items() if "rms" in columns}
    for name, columns in modules.items():
        along: dict[str, list[float | None]] = {
            quantity: columns[quantity].mean(0).tolist()
            for quantity in ("rms", "turn", "shift", "written", "forgotten", "rank", "entropy")
        }
        along["turn"][0] = along["shift"][0] = None  # there is no turn before the first
        yield "along", {**place(name), "tokens": stops, **along}
        tau = -1 / columns["log_decay"].mean(0).clamp(max=-1e-9)
        yield "tau", {**place(name), "tokens": tau.tolist()}
        filled = columns["rms"][:, warm]
        stability = bootstrap_mean((filled.std(1) / filled.mean(1)).numpy(), clusters)
        share, p = identity(columns["sketch"])
        apart = bootstrap_mean(columns["apart"].numpy(), clusters[: len(columns["apart"]) * 2 : 2])
        means = {q: columns[q][:, warm].mean().item() for q in ("written", "forgotten", "output")}
        yield (
            "state",
            {
                **place(name),
                **ends(apart, "apart"),
                **ends(stability, "stability"),
                **means,
                **{q: columns[q][:, -1].mean().item() for q in ("rank", "entropy", "rms")},
                "tau": tau.median().item(),
                "text_share": share,
                "p": p,
            },
        )
        said = f"{share:.0%} of the variance tells texts apart over {2 * TURN} tokens, p = {p:.2g}"
        yield found("input share", apart, said, name, "D2")
        yield found("norm stability", stability, where=name)
    for branch in sorted({name.rpartition(".")[2] for name in modules}, reverse=True):
        turns = [x["turn"][:, 1:].mean(1) for name, x in modules.items() if name.endswith(branch)]
        mean = torch.stack(turns).mean(0)
        yield found("turn similarity", bootstrap_mean(mean.numpy(), clusters), where=branch)


def identity(sketches: Tensor) -> tuple[float, float]:
    """Share of the variance of states that says which text they are of, beyond chance, and its p.

    Under the null hypothesis a state knows its position and the last few tokens, but not the text
    that it read before the last anchor: then texts can be exchanged at every anchor.

    Args:
        sketches: states at anchors [texts, anchors, BUCKETS].
    """
    x = sketches.double().transpose(0, 1)  # [anchors, texts, BUCKETS]
    energy, x = x.square().sum(), x - x.mean(1, keepdim=True)
    total = x.square().sum()
    if total <= 1e-12 * energy:  # all that is left is the rounding of the mean
        return 0.0, 1.0
    anchors, texts = x.shape[:2]
    generator = torch.Generator().manual_seed(0)
    shuffled = torch.rand(PERMUTATIONS, anchors, texts, generator=generator).argsort(2)
    order = torch.cat((torch.arange(texts).expand(1, anchors, texts), shuffled))
    explained = total.expand(len(order)).clone()  # of the sum over anchors of every text, squared
    for j in range(anchors):
        for k in range(j):
            explained += 2 * (x[j] @ x[k].T)[order[:, j], order[:, k]].sum(1)
    seen, *null = (explained / anchors / total).tolist()
    chance = sum(null) / len(null)
    p = (1 + sum(value >= seen for value in null)) / len(order)
    return (seen - chance) / (1 - chance), p


def gates(table: Table, subject: Subject, clusters: list[int]) -> Iterator[Row]:
    """Gates by layer, and the outputs of both branches (type A) beside their states (type B)."""
    for block in gated(subject.model):
        gate = bootstrap_mean(table[block]["gate"].numpy(), clusters)
        saturated = bootstrap_mean(table[block]["saturated"].numpy(), clusters)
        yield "gate", {**place(block), **ends(gate, "gate"), **ends(saturated, "saturated")}
        yield found("gate saturation", saturated, f"mean gate {gate.value:.3f}", block)
    for name, columns in table.items():
        block, _, branch = name.rpartition(".")
        other = table.get(f"{block}.mamba2")
        if branch == "rwkv6" and other:
            paired = Paired(
                {
                    f"{q} {b}": x[q][:, -1].double().numpy()
                    for q in ("output", "rms")
                    for b, x in (("R", columns), ("M", other))
                },
                clusters,
            )
            outputs, sizes = (
                paired.interval(lambda m, q=q: m[f"{q} R"] / m[f"{q} M"]) for q in ("output", "rms")
            )
            yield "sizes", {**place(block), **ends(outputs, "outputs"), **ends(sizes, "states")}
            about = float(f"{sizes.value:.2g}")
            note = f"the states' RMS is {about:,g} to 1, which says nothing about use"
            yield found("activation ratio", outputs, note, block)


def growing(subject: Subject) -> Iterator[Row]:
    """Sizes and losses beyond the training length."""
    grown = growth(subject)
    if grown is None:
        yield "finding", skipped("D1", "growth exponent", needed(subject)).record()
        return
    findings = diverged(grown)
    for finding, (name, sizes) in zip(findings, grown.rms.items(), strict=True):
        fields = {"tokens": grown.stops, "rms": sizes.mean(0).tolist()}
        yield "growth", {**place(name), **fields, **ends(grown.exponent(name), "exponent")}
        yield "finding", finding.record()
    loss = [bootstrap_mean(x.numpy(), grown.clusters) for x in grown.loss.T]
    bounds = {"low": [x.low for x in loss], "high": [x.high for x in loss]}
    values = {"loss": [x.value for x in loss], **bounds, **ends(grown.rise, "rise")}
    yield "length", {"start": grown.start, "tokens": grown.stops, **values}


def adding_up(subject: Subject) -> Iterator[Row]:
    """Superposition: exact in the first layer, and how far from it in the others."""
    texts, clusters = subject.stretches(*HALVES)
    for name, residual in superposition(subject.model, texts, HALVES[1] // 2).items():
        interval = bootstrap_mean(residual.numpy(), clusters)
        yield "superposition", {**place(name), **ends(interval, "residual")}
        if place(name)["layer"] == 0:
            yield found("superposition residual", interval, where=name)


def editing(subject: Subject) -> Iterator[Row]:
    """Whether more edits move the state farther, and like edits about as far."""
    texts, clusters = subject.stretches(*EDITED)
    by_count, by_choice = edited(subject.model, texts, EDITS, VARIANTS)
    for branch, distances in by_count.items():
        order = spearman(torch.tensor(EDITS).expand(distances.shape), distances)
        rho = bootstrap_mean(order.numpy(), clusters)
        means = [bootstrap_mean(x.numpy(), clusters) for x in distances.T]
        fields = {"edits": list(EDITS), "distance": [x.value for x in means]}
        bounds = {"low": [x.low for x in means], "high": [x.high for x in means]}
        yield "edits", {"branch": branch, **fields, **bounds, **ends(rho, "rho")}
        yield found("order of edits", rho, where=branch)
        like = by_choice[branch]
        spread = median((like.max(1).values / like.min(1).values).numpy())
        yield found("spread of like edits", spread, where=branch)


def mixing(subject: Subject) -> Iterator[Row]:
    """Loss from states between two texts' states, against the straight line between its ends."""
    texts, clusters = subject.stretches(subject.samples, PREFIX + REST)
    losses = between(subject.model, texts, PREFIX, ALPHAS).double().numpy()
    paired = Paired({str(a): x for a, x in zip(ALPHAS, losses.T, strict=True)}, clusters)

    def above(alpha: float) -> Interval:
        return paired.interval(lambda m: m[str(alpha)] - alpha * m["1.0"] - (1 - alpha) * m["0.0"])

    curve = [paired.interval(lambda m, a=a: m[str(a)] - m["1.0"]) for a in ALPHAS]
    bounds = {"low": [x.low for x in curve], "high": [x.high for x in curve]}
    yield "between", {"alpha": list(ALPHAS), "extra": [x.value for x in curve], **bounds}
    worst = max(ALPHAS[1:-1], key=lambda alpha: above(alpha).value)
    yield found("interpolation barrier", above(worst), f"at {worst:g} of its own state")


def path(subject: Subject) -> Iterator[Row]:
    """The states along the longest text, on their own two principal axes."""
    text = subject.stretches(1, LENGTH)[0]
    stops = list(range(PATH, LENGTH + 1, PATH))
    state, seen = None, []
    for stop in stops:
        _, state = subject.model.features(text[:, stop - PATH : stop], state)
        seen.append(matrices(state))
    for name in seen[0]:
        points, explained = principal(torch.stack([x[name].flatten() for x in seen]).double())
        x, y = points.T.tolist()
        yield "path", {**place(name), "tokens": stops, "x": x, "y": y, "explained": explained}


def principal(points: Tensor) -> tuple[Tensor, float]:
    """Points [n, D] on their first two principal axes [n, 2], and the share of variance there."""
    centred = points - points.mean(0)
    values, vectors = torch.linalg.eigh(centred @ centred.T)
    values = values.clamp(min=0)
    shown = vectors[:, -2:].flip(1) * values[-2:].flip(0).sqrt()
    total = values.sum()
    return shown.cpu(), (values[-2:].sum() / total).item() if total else 0.0
