"""`probe flow`: what the states of the branches know, alone and together, and who pays for it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from groundthink.diagnose.components import BRANCHES
from groundthink.diagnose.probes.coupling import LENGTH, TAUS, Coupling, coupling, spearman
from groundthink.diagnose.probes.curves import bounds_of, half_life_of, numbers, over_distance
from groundthink.diagnose.probes.information import (
    PER_DIM,
    WILDEST,
    dims_for,
    information,
    leading,
    sketch,
)
from groundthink.diagnose.probes.registry import Row, probe
from groundthink.diagnose.probes.tracer import Site, branch_sites, matrix
from groundthink.diagnose.subject import Subject
from groundthink.models.base import LanguageModel
from groundthink.models.build import build
from groundthink.verdicts.statistics import Means, Paired, bootstrap_mean
from groundthink.verdicts.verdict import Finding, judge, skipped

FIRST, STRIDE, READS = 32, 4, 32
"""Position of the first state that is read in a text, tokens to the next, and how many."""
BACK = 8
CLASSES = 16
"""Most frequent tokens, which are the labels; rows with another one are left out."""
VARIABLES = {"current": 0, "back": -BACK, "next": 1}
"""What is asked of a state: the token at this offset from the last one read."""
FEWEST = 8
"""Dimensions below which a probe of both states is not tried."""
ROWS = 32
"""Texts in one pass."""
FEWEST_STATES = 4
"""States below which their ranks say nothing."""
COUPLED = 32
"""Texts that gradients are taken of."""


@probe("flow", "what the states know, alone and together, and how losses depend on them")
@torch.no_grad()
def flow(subject: Subject) -> list[Row]:
    """V-information of the states with its parts and controls, and gradients by the states."""
    if not branch_sites(subject.model):
        reason = "no layer of this model has a state of fixed size"
        return [("finding", skipped("flow", "information", reason).record())]
    length = max(FIRST + STRIDE * (READS - 1) + 2, LENGTH)
    texts, clusters = subject.stretches(subject.samples, length)
    rows, findings = _known(subject, texts, clusters)
    more, others = _coupled(subject, texts[:COUPLED], clusters[:COUPLED])
    return [*rows, *more, *(("finding", finding.record()) for finding in findings + others)]


def read(model: LanguageModel, texts: Tensor) -> dict[Site, Tensor]:
    """Sketches of the matrix states after the tokens `positions` of every text [N, READS, b]."""
    sites = branch_sites(model)
    found: dict[Site, list[Tensor]] = {site: [] for site in sites}
    for part in texts.split(ROWS):
        state, sketches, start = None, {site: [] for site in sites}, 0
        for position in positions():
            _, state = model.features(part[:, start : position + 1], state)
            start = position + 1
            for site in sites:
                sketches[site].append(sketch(matrix(state, site)))
        for site in sites:
            found[site].append(torch.stack(sketches[site], 1))
    return {site: torch.cat(x) for site, x in found.items()}


def positions() -> range:
    """Positions of the last token that each state has read."""
    return range(FIRST, FIRST + STRIDE * READS, STRIDE)


def labels(texts: Tensor, offset: int) -> Tensor:
    """The token at an offset from each position as the rank of its frequency [N, READS]; -1 for
    those that are not among the `CLASSES` most frequent."""
    rank = texts.new_full((int(texts.max()) + 1,), -1)
    top = texts.flatten().bincount().argsort(descending=True, stable=True)[:CLASSES]
    rank[top] = torch.arange(len(top), device=texts.device)
    return rank[texts[:, [position + offset for position in positions()]]]


def sources(*states: Tensor, dims: int, documents: Tensor) -> tuple[Tensor, ...]:
    """What probes read of one state [p, n, b], or of two: each alone, then both with products of
    their leading components, without which no linear probe sees what only both together tell.

    The last of them has `dims` dimensions at most. Components are those along which states differ
    within `documents` [n].
    """
    if len(states) == 1:
        return (leading(states[0], dims, documents),)
    few = math.isqrt(dims // 4)
    each = (dims - few * few) // 2
    r, m = (leading(x, each, documents) for x in states)
    a, b = (_standard(x[..., -few:]) for x in (r, m))
    return r, m, torch.cat((r, m, (a[..., :, None] * b[..., None, :]).flatten(-2)), -1)


def _standard(x: Tensor) -> Tensor:
    z = x / x.std(1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)
    return z.clamp(-WILDEST, WILDEST)


def parts(m: Means) -> dict[str, Any]:
    """Unique, redundant and synergistic information of the two branches, from that of each and of
    both. Redundancy is the smaller of the two (Barrett 2015); less than nothing counts as
    nothing."""
    r, other, both = (np.maximum(m[name], 0) for name in (*BRANCHES, "both"))
    shared = np.minimum(r, other)
    return {
        "unique_rwkv6": r - shared,
        "unique_mamba2": other - shared,
        "redundant": shared,
        "synergistic": both - np.maximum(r, other),
    }


@dataclass(frozen=True)
class Question:
    """One variable: the rows where it is one of the labels, and what they say."""

    kept: Tensor
    """Rows with a label, bool [N * READS]."""
    y: Tensor
    """Their labels [n]."""
    documents: list[int]
    """Their documents [n]."""

    @property
    def dims(self) -> int:
        return dims_for(len(self.y))

    def bits(self, *x: Tensor) -> Tensor:
        """Pointwise information [sources, p, n] of the sources x [p, n, d] about the labels."""
        documents = torch.tensor(self.documents)
        return information(*x, y=self.y, groups=documents, classes=CLASSES)

    def shuffled(self) -> Question:
        """The same rows with their labels drawn at random."""
        order = torch.randperm(len(self.y), generator=torch.Generator().manual_seed(0))
        return replace(self, y=self.y[order.to(self.y.device)])


def question(texts: Tensor, clusters: list[int], offset: int) -> Question:
    """The variable at an offset from the last token read."""
    y = labels(texts, offset).flatten()
    documents = torch.tensor(clusters).repeat_interleave(READS)
    return Question(y >= 0, y[y >= 0], documents[(y >= 0).cpu()].tolist())


def _known(subject: Subject, texts: Tensor, clusters: list[int]) -> tuple[list[Row], list[Finding]]:
    """What the states know of each variable, with the controls."""
    model = subject.model
    states = read(model, texts)
    fresh = build(model.config, seed=subject.seed, device=str(subject.device)).eval()
    untrained = read(fresh, texts)
    rows: list[Row] = []
    findings: list[Finding] = []
    for name, offset in VARIABLES.items():
        asked = question(texts, clusters, offset)
        if asked.dims < FEWEST:
            needed = -(-FEWEST * PER_DIM * len(texts) // max(1, len(asked.y)))
            reason = f"a probe needs about {needed} texts; give --samples {needed}"
            findings.append(skipped("flow", f"information, {name}", reason))
            continue
        embedded = model.embed(texts[:, list(positions())]).flatten(0, 1)[asked.kept][None]
        control = asked.bits(leading(embedded.float(), min(asked.dims, embedded.shape[2])))[0]
        share = asked.y.bincount(minlength=CLASSES) / len(asked.y)
        about = {
            "variable": name,
            "entropy": float(torch.special.entr(share).sum()) / math.log(2),
            "embedding": numbers(bootstrap_mean(control[0].cpu(), asked.documents)),
            "rows": len(asked.y),
            "dims": asked.dims,
            "texts": len(texts),
        }
        rows.append(("flow_variable", about))
        found = measured(asked, states, untrained)
        rows += [
            ("flow", {"layer": layer, "variable": name, **_fields(Paired(bits, asked.documents))})
            for layer, bits in found.items()
        ]
        findings += _verdicts(name, found, asked)
    return rows, findings


def measured(
    asked: Question, states: dict[Site, Tensor], untrained: dict[Site, Tensor]
) -> dict[int, dict[str, Tensor]]:
    """Pointwise information [n] in the states of each layer by name: of each branch, of "both", and
    of all that the layer has about "shuffled" labels and in the "untrained" model."""
    kinds: dict[tuple[str, ...], list[int]] = {}
    for layer in sorted({layer for layer, _ in states}):
        kinds.setdefault(tuple(b for b in BRANCHES if (layer, b) in states), []).append(layer)
    found: dict[int, dict[str, Tensor]] = {}
    for names, layers in kinds.items():
        x, control = (
            sources(
                *(_stack(source, layers, branch, asked.kept) for branch in names),
                dims=asked.dims,
                documents=torch.tensor(asked.documents),
            )
            for source in (states, untrained)
        )
        bits = dict(zip((*names, "both"), asked.bits(*x), strict=False))
        bits["shuffled"] = asked.shuffled().bits(x[-1])[0]
        bits["untrained"] = asked.bits(*control)[-1]
        for i, layer in enumerate(layers):
            found[layer] = {name: value[i].cpu() for name, value in bits.items()}
    return found


def _stack(states: dict[Site, Tensor], layers: list[int], branch: str, kept: Tensor) -> Tensor:
    return torch.stack([states[layer, branch].flatten(0, 1)[kept] for layer in layers])


def _fields(found: Paired) -> dict[str, Any]:
    """The information of one layer as fields of its record."""
    fields = {name: numbers(found.interval(lambda m, name=name: m[name])) for name in found.means}
    if "both" in found.means:
        for name in parts(found.means):
            fields[name] = numbers(found.interval(lambda m, name=name: parts(m)[name]))
        for name, other in zip(BRANCHES, BRANCHES[::-1], strict=True):
            given = found.interval(lambda m, other=other: m["both"] - m[other])
            fields[f"{name}_given_{other}"] = numbers(given)
    return fields


def _verdicts(variable: str, found: dict[int, dict[str, Tensor]], asked: Question) -> list[Finding]:
    """Verdicts on the mean over layers: the control, and what is known of the next token."""
    names = set.intersection(*(set(bits) for bits in found.values()))
    mean = {name: torch.stack([bits[name] for bits in found.values()]).mean(0) for name in names}
    paired = Paired(mean, asked.documents)
    shuffled = paired.interval(lambda m: m["shuffled"])
    findings = [judge("flow", "shuffled information", shuffled, where=variable)]
    if variable != "next":
        return findings
    whole = next((name for name in ("both", *BRANCHES) if name in names), None)
    if whole:
        gain = paired.interval(lambda m: m[whole] - m["untrained"])
        findings.append(judge("flow", "gain over untrained", gain, "of the next token"))
    if whole != "both":
        return findings
    if not paired.interval(lambda m: m["both"]).low > 0:
        return [*findings, skipped("flow", "information share", "the states know nothing")]
    for name, other in zip(BRANCHES, BRANCHES[::-1], strict=True):
        # Shapley: the mean of what a branch adds to nothing and to the other branch.
        share = paired.interval(
            lambda m, a=name, b=other: (m[a] + m["both"] - m[b]) / (2 * m["both"])
        )
        findings.append(judge("flow", "information share", share, "of the next token", name))
    return findings


def _coupled(
    subject: Subject, texts: Tensor, clusters: list[int]
) -> tuple[list[Row], list[Finding]]:
    """Credit, value and write-credit coupling of every state."""
    found = coupling(subject.model, texts)
    total = torch.stack([state.share for state in found.values()]).sum(0).clamp(min=1e-30)
    rows: list[Row] = []
    for (layer, branch), state in found.items():
        credit = over_distance(state.credit, clusters)
        means = {
            "value": state.value,
            "zeroed": state.zeroed,
            "share": state.share / total,
            "write": state.write,
        }
        fields: dict[str, Any] = {
            name: numbers(bootstrap_mean(x.cpu(), clusters)) for name, x in means.items()
        }
        fields |= {"taus": list(TAUS), "credit": bounds_of(credit)}
        fields["half_life"] = half_life_of(credit, list(TAUS))
        rows.append(("coupling", {"layer": layer, "branch": branch, **fields}))
    findings = [_agreement(list(found.values()), clusters)]
    own = [state.share for (_, branch), state in found.items() if branch == BRANCHES[0]]
    if 0 < len(own) < len(found):
        share = bootstrap_mean((torch.stack(own).sum(0) / total).cpu(), clusters)
        findings.append(judge("flow", "coupling share", share, where=BRANCHES[0]))
    return rows, findings


def _agreement(found: Sequence[Coupling], clusters: list[int]) -> Finding:
    """Whether first-order values rank the states of a text as zeroing them does."""
    if len(found) < FEWEST_STATES:
        reason = f"{len(found)} states cannot be ranked; {FEWEST_STATES} can"
        return skipped("flow", "value against zeroing", reason)
    value, zeroed = (
        torch.stack([getattr(state, name) for state in found], 1) for name in ("value", "zeroed")
    )
    rho = bootstrap_mean(spearman(value, zeroed).cpu(), clusters)
    return judge("flow", "value against zeroing", rho, f"over {len(found)} states of each text")
