"""`probe memory`: what the states keep, for how long, and whether anything reads it."""

from __future__ import annotations

import math
from typing import Any

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
from groundthink.diagnose.probes.information import PER_DIM, dims_for, information, leading
from groundthink.diagnose.probes.registry import Row, probe
from groundthink.diagnose.probes.retention import Retention, retention
from groundthink.diagnose.probes.tracer import (
    PREFIX,
    SWAPPED,
    VALUES,
    WHOLE,
    Facts,
    Place,
    Site,
    Trace,
    choose,
    setting,
    trace,
)
from groundthink.diagnose.subject import Subject
from groundthink.verdicts.statistics import Interval, Paired, bootstrap_mean, exact
from groundthink.verdicts.verdict import Finding, judge, skipped

ASKED = 16
"""Distance in tokens at which verdicts are given."""
AFTER = f"after {ASKED} tokens"
READ = 32
"""Texts from which the predicted retention is averaged."""


@probe("memory", "what the states keep of a planted fact, and what reads it")
def memory(subject: Subject) -> list[Row]:
    """Predicted retention, probed information and recall of a planted fact over token distance."""
    distances, texts, clusters = setting(subject)
    facts = choose(subject)
    found = trace(subject, texts, distances, facts)
    rows = [_recall(subject, facts, found, distances, clusters)]
    rows += _reads(found, distances, clusters)
    findings = _behaviour(found, distances, clusters)
    needed = -(-PER_DIM * (VALUES - 1) // VALUES)
    if not found.states:
        reason = "no layer of this model has a state of fixed size"
        findings.append(skipped("memory", "information", reason))
    elif len(texts) < needed:
        reason = f"a probe needs {needed} texts; give --samples {needed}"
        findings.append(skipped("memory", "information", reason))
    else:
        predicted = retention(subject.model, texts[:READ], PREFIX, distances)
        bits, control = probed(found.states, clusters)
        rows += _sites(found, predicted, bits, control, distances, clusters)
        findings += _probes(list(found.states), bits, control, distances, clusters)
    return [*rows, *(("finding", finding.record()) for finding in findings)]


def _behaviour(found: Trace, distances: list[int], clusters: list[int]) -> list[Finding]:
    """Verdicts on recall, on the exchange of the whole state, and on what each branch carries."""
    gain = _gain(found)[:, distances.index(ASKED)]
    findings = [judge("memory", "recall", bootstrap_mean(gain, clusters), AFTER)]
    # With the whole state of the other run the answer is the other run's, whatever the model is.
    answers = found.log_p[:SWAPPED, 1::2, :2, :2]
    preference = answers[..., 0] - answers[..., 1]
    error = (found.moved[WHOLE] - (preference[..., 0] - preference[..., 1])).abs().mean()
    findings.append(judge("memory", "error of a whole exchange", exact(float(error), len(answers))))
    at = distances[1::2].index(ASKED)
    for layer, part in found.moved:
        if layer is None and part in BRANCHES:
            share = _share(found, (layer, part), at, clusters)
            findings.append(
                judge("memory", "share read", share, AFTER, part)
                if share
                else skipped("memory", f"share read, {part}", "nothing is recalled")
            )
    return findings


def _probes(
    sites: list[Site], bits: Tensor, control: Tensor, distances: list[int], clusters: list[int]
) -> list[Finding]:
    """Verdicts on what the states hold, and on the control that must hold nothing."""
    findings = []
    for branch in BRANCHES:
        layers = [i for i, site in enumerate(sites) if site[1] == branch]
        if layers:
            at = bits[layers][:, :, distances.index(ASKED)].mean(0).cpu()
            found = bootstrap_mean(at, clusters)
            findings.append(judge("memory", "information", found, AFTER, branch))
    leak = bootstrap_mean(control.mean((0, 2)).cpu(), clusters)
    return [*findings, judge("memory", "shuffled information", leak)]


def _gain(found: Trace) -> Tensor:
    """Log-probability of the planted value, over that where another was planted [N, D]."""
    planted = found.log_p.diagonal(dim1=2, dim2=3)  # [N, D, K]
    instead = found.log_p.roll(-1, 2).diagonal(dim1=2, dim2=3)
    return (planted - instead).mean(2).cpu()


def _recall(
    subject: Subject, facts: Facts, found: Trace, distances: list[int], clusters: list[int]
) -> Row:
    """Behaviour: gain in log-probability, and how often the planted value is the likeliest."""
    gain = over_distance(_gain(found), clusters)
    right = found.log_p.argmax(3) == torch.arange(VALUES, device=found.log_p.device)
    return "recall", {
        "distances": distances,
        "gain": bounds_of(gain),
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
        fields = {"layer": layer, "part": part or "all", "distances": distances[1::2]}
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
    bits: Tensor,
    control: Tensor,
    distances: list[int],
    clusters: list[int],
) -> list[Row]:
    """What each branch of each layer keeps: by its decays, and as a probe finds it."""
    rows: list[Row] = []
    for i, (layer, branch) in enumerate(found.states):
        site = (layer, branch)
        share = predicted[site].kept.float().cpu()
        known = over_distance(bits[i], clusters)
        kept = over_distance(found.kept[site], clusters)
        edges = torch.tensor([0.25, 0.5, 0.75])
        fields: dict[str, Any] = {
            "layer": layer,
            "branch": branch,
            "distances": distances,
            "predicted": share.quantile(edges, dim=1).tolist(),
            "predicted_half_life": predicted[site].half_life.float().cpu().quantile(edges).tolist(),
            "bits": bounds_of(known),
            "control": control[i].mean(0).tolist(),
            "most_bits": math.log2(VALUES),
            "half_life": half_life_of(known, distances),
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
