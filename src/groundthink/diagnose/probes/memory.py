"""`probe memory`: what the states keep, for how long, and whether anything reads it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from groundthink.diagnose.components import BRANCHES
from groundthink.diagnose.probes.curves import (
    bounds,
    bounds_of,
    half_life_of,
    numbers,
    over_distance,
)
from groundthink.diagnose.probes.information import (
    PER_DIM,
    dims_for,
    information,
    leading,
    shards,
)
from groundthink.diagnose.probes.registry import Row, probe
from groundthink.diagnose.probes.retention import Retention, retention
from groundthink.diagnose.probes.tracer import (
    ASKED,
    PREFIX,
    SWAPPED,
    VALUES,
    WHOLE,
    Facts,
    Place,
    Site,
    Trace,
    choose,
    joined,
    setting,
    swapped,
    trace,
)
from groundthink.diagnose.subject import Subject
from groundthink.models.base import LanguageModel
from groundthink.verdicts.statistics import Interval, Paired, bootstrap_mean, exact
from groundthink.verdicts.verdict import Finding, judge, skipped

NEEDED = -(-PER_DIM * (VALUES - 1) // VALUES)
"""Texts that a probe needs."""
AFTER = f"after {ASKED} tokens"
READ = 32
"""Texts from which the predicted retention is averaged."""


@probe("memory", "what the states keep of a planted fact, and what reads it")
def memory(subject: Subject) -> list[Row]:
    """Predicted retention, probed information and recall of a planted fact over token distance,
    beside those of a model with the same weights before training."""
    distances, texts, clusters = setting(subject)
    facts = choose(subject)
    found, known = follow(subject.model, texts, clusters, distances, facts)
    fresh = subject.untrained()
    untrained, unlearnt = follow(fresh, texts, clusters, distances, facts, swaps=0)
    rows = [_recall(subject, facts, found, untrained, distances, clusters)]
    rows += _reads(found, distances, clusters)
    findings = _behaviour(found, untrained, distances, clusters)
    if not found.kept:
        reason = "no layer of this model has a state of fixed size"
        findings.append(skipped("memory", "information", reason))
    elif not known or not unlearnt:
        reason = f"a probe needs {NEEDED} texts; give --samples {NEEDED}"
        findings.append(skipped("memory", "information", reason))
    else:
        predicted = retention(subject.model, texts[:READ], PREFIX, distances)
        bits = Known(*known, unlearnt[0])
        rows += _sites(found, predicted, bits, distances, clusters)
        findings += _probes(list(found.kept), bits, distances, clusters)
    return [*rows, *(("finding", finding.record()) for finding in findings)]


class Known(NamedTuple):
    """What probes find in the states, bits [sites, texts, distances]."""

    bits: Tensor
    """About the planted value."""
    shuffled: Tensor
    """About values drawn at random."""
    untrained: Tensor
    """About the planted value, in the states of a model that has learnt nothing."""


def follow(
    model: LanguageModel,
    texts: Tensor,
    clusters: list[int],
    distances: list[int],
    facts: Facts,
    swaps: int = SWAPPED,
) -> tuple[Trace, tuple[Tensor, Tensor] | None]:
    """The trace of all texts without their states, and what `probed` finds in those, if the texts
    are enough and the model has such states."""
    pieces = [
        _shard(model, texts[part], clusters[part], distances, facts, 0 if part.start else swaps)
        for part in shards(len(texts))
    ]
    known = [bits for _, bits in pieces if bits]
    whole = joined([trail for trail, _ in pieces])
    if not known:
        return whole, None
    bits, control = (torch.cat(x, 1) for x in zip(*known, strict=True))
    return whole, (bits, control)


def _shard(
    model: LanguageModel,
    texts: Tensor,
    clusters: list[int],
    distances: list[int],
    facts: Facts,
    swaps: int,
) -> tuple[Trace, tuple[Tensor, Tensor] | None]:
    """`follow` of one shard, whose states are let go here."""
    found = trace(model, texts, distances, facts, swaps)
    enough = found.states and len(texts) >= NEEDED
    return replace(found, states={}), probed(found.states, clusters) if enough else None


def _behaviour(
    found: Trace, untrained: Trace, distances: list[int], clusters: list[int]
) -> list[Finding]:
    """Verdicts on recall, on the exchange of the whole state, and on what each branch carries."""
    gain, before = (_gain(x)[:, distances.index(ASKED)] for x in (found, untrained))
    note = f"{AFTER}; {before.mean():+.2g} before training"
    findings = [judge("memory", "recall", bootstrap_mean(gain, clusters), note)]
    # With the whole state of the other run the answer is the other run's, whatever the model is.
    at = [distances.index(d) for d in swapped(distances)]
    answers = found.log_p[:SWAPPED, at, :2, :2]
    preference = answers[..., 0] - answers[..., 1]
    error = (found.moved[WHOLE] - (preference[..., 0] - preference[..., 1])).abs().mean()
    findings.append(judge("memory", "error of a whole exchange", exact(float(error), len(answers))))
    for layer, part in found.moved:
        if layer is None and part in BRANCHES:
            share = _share(found, (layer, part), swapped(distances).index(ASKED), clusters)
            findings.append(
                judge("memory", "share read", share, AFTER, part)
                if share
                else skipped("memory", f"share read, {part}", "nothing is recalled")
            )
    return findings


def _probes(
    sites: list[Site], known: Known, distances: list[int], clusters: list[int]
) -> list[Finding]:
    """Verdicts on what the states hold, and on the control that must hold nothing."""
    findings = []
    asked = distances.index(ASKED)
    for branch in BRANCHES:
        layers = [i for i, site in enumerate(sites) if site[1] == branch]
        if layers:
            at, before = (x[layers, :, asked].mean(0).cpu() for x in (known.bits, known.untrained))
            note = f"{AFTER}; {before.mean():.2g} before training"
            findings.append(
                judge("memory", "information", bootstrap_mean(at, clusters), note, branch)
            )
    leak = bootstrap_mean(known.shuffled.mean((0, 2)).cpu(), clusters)
    return [*findings, judge("memory", "shuffled information", leak)]


def _gain(found: Trace) -> Tensor:
    """Log-probability of the planted value, over that where another was planted [N, D]."""
    planted = found.log_p.diagonal(dim1=2, dim2=3)  # [N, D, K]
    instead = found.log_p.roll(-1, 2).diagonal(dim1=2, dim2=3)
    return (planted - instead).mean(2).cpu()


def _recall(
    subject: Subject,
    facts: Facts,
    found: Trace,
    untrained: Trace,
    distances: list[int],
    clusters: list[int],
) -> Row:
    """Behaviour: gain in log-probability, and how often the planted value is the likeliest."""
    gain = over_distance(_gain(found), clusters)
    right = found.log_p.argmax(3) == torch.arange(VALUES, device=found.log_p.device)
    return "recall", {
        "distances": distances,
        "gain": bounds_of(gain),
        "untrained": _gain(untrained).mean(0).tolist(),
        "choice": bounds_of(over_distance(right.float().mean(2), clusters)),
        "chance": 1 / VALUES,
        "half_life": half_life_of(gain, distances),
        "cues": [_text(subject, cue.tolist()) for cue in facts.cues],
        "values": [_text(subject, [value]) for value in facts.values.tolist()],
        "texts": len(found.log_p),
    }


def _reads(found: Trace, distances: list[int], clusters: list[int]) -> list[Row]:
    """Interchange: how much of the answer each place of the state carries, where any is carried."""
    rows: list[Row] = []
    for (layer, part), moved in found.moved.items():
        shares = [_share(found, (layer, part), i, clusters) for i in range(moved.shape[1])]
        fields = {"layer": layer, "part": part or "all", "distances": swapped(distances)}
        rows.append(("read", {**fields, "share": bounds(shares), "texts": len(moved)}))
    return rows


def _share(found: Trace, place: Place, at: int, clusters: list[int]) -> Interval | None:
    """Effect of exchanging one place's state over that of the whole; None where that is nothing."""
    moved = {"part": found.moved[place][:, at].cpu(), "whole": found.moved[WHOLE][:, at].cpu()}
    paired = Paired(moved, clusters[:SWAPPED])
    if not paired.interval(lambda m: m["whole"]).low > 0:
        return None
    return paired.interval(lambda m: m["part"] / m["whole"])


def _sites(
    found: Trace,
    predicted: dict[Site, Retention],
    known: Known,
    distances: list[int],
    clusters: list[int],
) -> list[Row]:
    """What each branch of each layer keeps: by its decays, and as a probe finds it."""
    rows: list[Row] = []
    for i, (layer, branch) in enumerate(found.kept):
        site = (layer, branch)
        share = predicted[site].kept.float().cpu()
        held = over_distance(known.bits[i], clusters)
        kept = over_distance(found.kept[site], clusters)
        edges = torch.tensor([0.25, 0.5, 0.75])
        fields: dict[str, Any] = {
            "layer": layer,
            "branch": branch,
            "distances": distances,
            "predicted": share.quantile(edges, dim=1).tolist(),
            "predicted_half_life": predicted[site].half_life.float().cpu().quantile(edges).tolist(),
            "bits": bounds_of(held),
            "control": known.shuffled[i].mean(0).tolist(),
            "untrained": known.untrained[i].mean(0).tolist(),
            "most_bits": math.log2(VALUES),
            "half_life": half_life_of(held, distances),
            "kept": bounds_of(kept),
            "kept_half_life": half_life_of(kept, distances),
            "write": numbers(bootstrap_mean(found.written[site].cpu(), clusters)),
        }
        rows.append(("memory", fields))
    return rows


def probed(states: dict[Site, Tensor], clusters: list[int]) -> tuple[Tensor, Tensor]:
    """V-information in bits about which value was planted, and that about shuffled values.

    Each is [S, N, D], a mean over the runs of a text.
    """
    x = torch.stack(list(states.values()))  # [S, N, D, K, buckets]
    s, n, d, k, _ = x.shape
    x = x.permute(0, 2, 1, 3, 4).reshape(s * d, n * k, -1)
    text = torch.arange(n, device=x.device).repeat_interleave(k)
    documents = torch.tensor(clusters).repeat_interleave(k)
    planted = torch.arange(k, device=x.device).repeat(n)
    generator = torch.Generator().manual_seed(0)
    shuffled = torch.rand(n, k, generator=generator).argsort(1).flatten().to(x.device)
    # The directions come from differences within texts and from no label.
    x = leading(x, dims_for(n * k), text)
    bits, control = (
        information(x, y=y, groups=documents, classes=k).view(s, d, n, k).mean(3).transpose(1, 2)
        for y in (planted, shuffled)
    )
    return bits, control


def _text(subject: Subject, ids: list[int]) -> str:
    return subject.tokenizer.decode(ids) if subject.tokenizer else " ".join(map(str, ids))
