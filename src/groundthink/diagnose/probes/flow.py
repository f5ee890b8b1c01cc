"""`probe flow`: what the states of the branches know, alone and together, and who pays for it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from groundthink.diagnose.components import BRANCHES
from groundthink.diagnose.probes.coupling import LENGTH, coupled
from groundthink.diagnose.probes.curves import numbers
from groundthink.diagnose.probes.information import (
    PER_DIM,
    WILDEST,
    dims_for,
    information,
    leading,
    shards,
    sketch,
)
from groundthink.diagnose.probes.registry import Row, probe
from groundthink.diagnose.probes.tracer import Site, branch_sites, matrix
from groundthink.diagnose.subject import Subject
from groundthink.models.base import LanguageModel
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
    more, others = coupled(subject.model, texts[:COUPLED], clusters[:COUPLED])
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


def ranks(texts: Tensor) -> Tensor:
    """The rank of each token id by its frequency; -1 for those that are not among the `CLASSES`
    most frequent."""
    rank = texts.new_full((int(texts.max()) + 1,), -1)
    top = texts.flatten().bincount().argsort(descending=True, stable=True)[:CLASSES]
    rank[top] = torch.arange(len(top), device=texts.device)
    return rank


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


def question(texts: Tensor, clusters: list[int], offset: int, rank: Tensor) -> Question:
    """The variable at an offset from the last token read, by the `ranks` of tokens."""
    y = rank[texts[:, [position + offset for position in positions()]]].flatten()
    documents = torch.tensor(clusters).repeat_interleave(READS)
    return Question(y >= 0, y[y >= 0], documents[(y >= 0).cpu()].tolist())


@dataclass(frozen=True)
class Answer:
    """What was found about one variable in all texts, for each row with a label."""

    y: Tensor
    """The labels [n]."""
    documents: list[int]
    embedding: Tensor
    """Bits that the embedding of the last token holds [n]."""
    layers: dict[int, dict[str, Tensor]]
    """Bits that states hold, by layer as `measured` names them [n]."""
    dims: int


def _known(subject: Subject, texts: Tensor, clusters: list[int]) -> tuple[list[Row], list[Finding]]:
    """What the states know of each variable, with the controls."""
    fresh = subject.untrained()
    rank = ranks(texts)
    found: dict[str, list[Answer | Finding]] = {name: [] for name in VARIABLES}
    for part in shards(len(texts)):
        for name, answer in _answers(subject.model, fresh, texts[part], clusters[part], rank):
            found[name].append(answer)
    rows: list[Row] = []
    findings: list[Finding] = []
    for name, answers in found.items():
        known = [answer for answer in answers if isinstance(answer, Answer)]
        findings += [answer for answer in answers if isinstance(answer, Finding)][:1]
        if known:
            whole = joined(known)
            rows += _rows(name, whole, len(texts))
            findings += _verdicts(name, whole)
    return rows, findings


def _answers(
    model: LanguageModel, fresh: LanguageModel, texts: Tensor, clusters: list[int], rank: Tensor
) -> Iterator[tuple[str, Answer | Finding]]:
    """The answers of one shard, or why there is none."""
    states, untrained = (read(each, texts) for each in (model, fresh))
    for name, offset in VARIABLES.items():
        asked = question(texts, clusters, offset, rank)
        if asked.dims < FEWEST:
            needed = -(-FEWEST * PER_DIM * len(texts) // max(1, len(asked.y)))
            reason = f"a probe needs about {needed} texts; give --samples {needed}"
            yield name, skipped("flow", f"information, {name}", reason)
            continue
        embedded = model.embed(texts[:, list(positions())]).flatten(0, 1)[asked.kept][None]
        embedded = leading(embedded.float(), min(asked.dims, embedded.shape[2]))
        control = asked.bits(embedded)[0, 0].cpu()
        layers = measured(asked, states, untrained)
        yield name, Answer(asked.y, asked.documents, control, layers, asked.dims)


def joined(answers: Sequence[Answer]) -> Answer:
    """The answer of all texts from those of the shards."""
    return Answer(
        torch.cat([answer.y for answer in answers]),
        [document for answer in answers for document in answer.documents],
        torch.cat([answer.embedding for answer in answers]),
        {
            layer: {name: torch.cat([a.layers[layer][name] for a in answers]) for name in bits}
            for layer, bits in answers[0].layers.items()
        },
        answers[0].dims,
    )


def _rows(name: str, answer: Answer, texts: int) -> list[Row]:
    share = answer.y.bincount(minlength=CLASSES) / len(answer.y)
    about = {
        "variable": name,
        "entropy": float(torch.special.entr(share).sum()) / math.log(2),
        "embedding": numbers(bootstrap_mean(answer.embedding, answer.documents)),
        "rows": len(answer.y),
        "dims": answer.dims,
        "texts": texts,
    }
    fields = {
        layer: _fields(Paired(bits, answer.documents)) for layer, bits in answer.layers.items()
    }
    return [
        ("flow_variable", about),
        *(("flow", {"layer": i, "variable": name, **field}) for i, field in fields.items()),
    ]


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


def _verdicts(variable: str, answer: Answer) -> list[Finding]:
    """Verdicts on the mean over layers: the control, and what is known of the next token."""
    found = answer.layers.values()
    names = set.intersection(*map(set, found))
    mean = {name: torch.stack([bits[name] for bits in found]).mean(0) for name in names}
    paired = Paired(mean, answer.documents)
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
