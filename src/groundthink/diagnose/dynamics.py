"""D1 to D4: whether states diverge or collapse, both branches matter, and the past is used."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from groundthink.diagnose.components import BRANCHES, parallel
from groundthink.diagnose.losses import ROWS
from groundthink.diagnose.measures import apart
from groundthink.diagnose.probes.ablation import zero
from groundthink.diagnose.probes.growth import Growth, growth, needed
from groundthink.diagnose.probes.influence import by_context, flow, influence
from groundthink.diagnose.registry import gate
from groundthink.diagnose.state_tests import ablation, share
from groundthink.diagnose.states import matrices
from groundthink.diagnose.subject import Subject
from groundthink.errors import UserError
from groundthink.models import pretrained
from groundthink.models.base import LanguageModel
from groundthink.verdicts.statistics import Paired, bootstrap_mean
from groundthink.verdicts.thresholds import THRESHOLDS
from groundthink.verdicts.verdict import Finding, Verdict, decide, join, judge, skipped

LENGTH = 256
"""Length of the texts whose last states are compared, or emptied."""
SCORED = 32
"""Tokens at the end of each text that D4a predicts with more and more context."""
SHORT, LONG = 8, 128
"""Contexts between which the benefit of context is taken."""
EDIT, LAGS = 32, (16, 64, 256, 1024)
"""Position of the token that D4b replaces, and how much later the predictions are compared."""
FEWEST = 8
"""Texts."""


@gate("D1", "state divergence", suite="diagnostics", trained=True)
@torch.no_grad()
def divergence(subject: Subject) -> list[Finding]:
    """States stop growing beyond the training length, or grow without harm to the loss."""
    if not matrices(subject.model.init_state(1)):
        return [skipped("D1", "growth exponent", "no recurrent branch")]
    grown = growth(subject)
    return [skipped("D1", "growth exponent", needed(subject))] if grown is None else diverged(grown)


def diverged(grown: Growth) -> list[Finding]:
    """The finding of every state. One that grows too much is a divergence only if the loss rises as
    well: without it the state has a long time constant that is not yet full."""
    harm = decide(grown.rise, THRESHOLDS["D1", "loss rise"])
    note = f"loss {grown.rise.value:+.3f} nats after {grown.stops[-1]} tokens of context"
    findings = []
    for name in grown.rms:
        found = judge("D1", "growth exponent", grown.exponent(name), note, name)
        if found.verdict is Verdict.FAIL and harm is not Verdict.FAIL:
            milder = Verdict.WARN if harm is Verdict.PASS else Verdict.INCONCLUSIVE
            found = replace(found, verdict=milder)
        findings.append(found)
    return findings


@gate("D2", "state collapse", suite="diagnostics", trained=True)
@torch.no_grad()
def collapse(subject: Subject) -> list[Finding]:
    """States depend on the text, and no less than at the first checkpoint that was kept."""
    texts, clusters = subject.stretches(subject.samples // 2 * 2, LENGTH)
    now = input_share(subject.model, texts)
    if not now:
        return [skipped("D2", "input share", "no recurrent branch")]
    labels = clusters[::2]
    findings = [
        judge("D2", "input share", bootstrap_mean(x.numpy(), labels), where=name)
        for name, x in now.items()
    ]
    first = earliest(subject)
    if first is None:
        return [*findings, skipped("D2", "change of the input share", "no earlier checkpoint")]
    model, step = first
    before = input_share(model, texts)
    change = (mean_of(now) - mean_of(before)).numpy()
    interval = bootstrap_mean(change, labels)
    note = f"since step {step}, mean over states"
    return [*findings, judge("D2", "change of the input share", interval, note)]


def input_share(model: LanguageModel, texts: Tensor) -> dict[str, Tensor]:
    """Share of the energy of the last states of two texts that lies in their difference, by module
    [pairs]."""
    parts = [matrices(model.features(part)[1]) for part in texts.split(ROWS)]
    return {
        name: torch.cat([apart(part[name][::2], part[name][1::2]) for part in parts]).cpu()
        for name in parts[0]
    }


def mean_of(table: dict[str, Tensor]) -> Tensor:
    """Mean over modules."""
    return torch.stack(list(table.values())).mean(0)


def earliest(subject: Subject) -> tuple[LanguageModel, int] | None:
    """The first checkpoint of the run that is older than the subject, with its step."""
    folder = subject.folder and subject.folder / "checkpoints"
    for path in sorted(folder.glob("step-*")) if folder else ():
        step = pretrained.read_meta(path)["step"]
        if step < subject.steps:
            return pretrained.load(path, device=subject.device)[0], step
    return None


@gate("D3", "component interaction", suite="diagnostics", both=True, trained=True)
@torch.no_grad()
def interaction(subject: Subject) -> list[Finding]:
    """What it costs to lose the output of one branch, in all layers: nothing, or another text's."""
    modes = {"zero": ("output", zero), "resample": ("output", lambda _, part: part.roll(1, 0))}
    return ablation(subject, "D3", modes)


@gate("D4a", "length", suite="diagnostics", trained=True)
@torch.no_grad()
def length(subject: Subject) -> list[Finding]:
    """The same tokens are predicted better after more context, up to sixteen training lengths."""
    contexts, texts, clusters = contexts_of(subject)
    losses = by_context(subject.model, texts, contexts, SCORED).double().numpy()
    columns = dict(zip(contexts, losses.T, strict=True))
    paired = Paired(columns, clusters)
    said = "nats after " + ", ".join(f"{c}: {x.mean():.3f}" for c, x in columns.items())
    findings = []
    if columns.keys() >= {SHORT, LONG}:
        gain = paired.interval(lambda m: 1 - m[LONG] / m[SHORT])
        findings.append(judge("D4a", "benefit of context", gain, said))
    near = max((c for c in contexts if c <= subject.train_length), default=contexts[0])
    far = contexts[-1]
    if far < 2 * near:
        reason = f"needs contexts of {2 * near} tokens, and documents of {2 * near + SCORED}"
        return [*findings, skipped("D4a", "loss beyond training length", reason)]
    doublings = np.log2(far / near)
    rise = paired.interval(lambda m: m[far] - m[near])
    note = f"{far} tokens of context against {near}: {rise.value / doublings:+.4f} a doubling"
    note = note if findings else join(note, said)
    return [*findings, judge("D4a", "loss beyond training length", rise, note)]


def contexts_of(subject: Subject) -> tuple[list[int], Tensor, list[int]]:
    """The lengths that were asked for; or contexts that double from `SHORT`, and the training
    length and its doubles up to sixteen, as far as the model and the text go. With them texts for
    the longest, and their documents.

    Raises:
        UserError: the held-out text is shorter than the lengths asked for, or the training length.
    """
    if subject.lengths:
        contexts = sorted(set(subject.lengths))
        return contexts, *subject.stretches(texts_of(subject, contexts[-1]), contexts[-1] + SCORED)
    limit = 16 * subject.train_length
    if not subject.model.recurrent:
        limit = min(limit, subject.config.context_length - SCORED)
    doubles = [SHORT * 2**k for k in range(20)] + [subject.train_length * 2**k for k in range(5)]
    contexts = sorted({c for c in doubles if c <= limit})
    while True:
        try:
            count = texts_of(subject, contexts[-1])
            return contexts, *subject.stretches(count, contexts[-1] + SCORED)
        except UserError:
            contexts = contexts[:-1]
            if not contexts or contexts[-1] < subject.train_length:
                raise


def texts_of(subject: Subject, context: int) -> int:
    """How many texts of that context are read: fewer of long ones."""
    return min(64, max(FEWEST, 2**16 // context), max(FEWEST, subject.samples))


@gate("D4b", "influence", suite="diagnostics", trained=True)
@torch.no_grad()
def reach(subject: Subject) -> list[Finding]:
    """A token moves the predictions long after it, and both branches' states carry what moves."""
    lags, texts, clusters = lags_of(subject)
    moved, _ = influence(subject.model, texts, EDIT, lags)
    values = dict(zip(lags, moved.T, strict=True))
    note = "KL in nats after " + ", ".join(f"{lag}: {x.mean():.1e}" for lag, x in values.items())
    findings = [
        judge("D4b", f"influence at {lag}", bootstrap_mean(values[lag].numpy(), clusters), note)
        for lag in (64, 256)
        if lag in values
    ]
    if not parallel(subject.model):
        return findings
    texts, clusters = subject.stretches(subject.samples, LENGTH)
    flows = {name: x.numpy() for name, x in flow(subject.model, texts, LENGTH * 3 // 4).items()}
    paired = Paired(flows, clusters)
    note = " and ".join(f"{flows[name].mean():.2g} nats without {name}" for name in BRANCHES)
    return [*findings, judge("D4b", "RWKV share of the flow", paired.interval(share), note)]


def lags_of(subject: Subject) -> tuple[list[int], Tensor, list[int]]:
    """The lags that the model and the text allow, texts for them, and their documents."""
    limit = LAGS[-1] if subject.model.recurrent else subject.config.context_length - EDIT - 1
    lags = [lag for lag in LAGS if lag <= limit]
    while True:
        try:
            return lags, *subject.stretches(subject.samples // 2, EDIT + lags[-1] + 1)
        except UserError:
            lags = lags[:-1]
            if not lags:
                raise
