"""Gates that read the records of the training run: G3, activation evolution, baselines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from groundthink.diagnose.components import branches
from groundthink.diagnose.registry import gate
from groundthink.diagnose.subject import Subject
from groundthink.records import Record
from groundthink.verdicts.statistics import (
    Interval,
    exact,
    normal,
    slope,
    t_mean,
    unknown,
    wilson,
)
from groundthink.verdicts.thresholds import MIN_STEPS, SPIKE
from groundthink.verdicts.verdict import Finding, Verdict, join, judge, skipped

ENDS = 100
"""Steps averaged at either end for the drop."""
BLOCK = 20
"""Steps averaged to one point of the slope, so that neighbours are nearly independent."""
MEMORY = 100
"""Steps that the running median looks back on."""


@gate("G3", "training", trained=True)
def training(subject: Subject) -> list[Finding]:
    """The loss of the first 1000 steps falls, without spikes of the gradient or NaN."""
    rows = [record for record in subject.records if record["kind"] == "train"]
    bad = nonfinite(subject.records, rows)
    findings = [judge("G3", "non-finite steps", exact(bad, len(rows)))]
    if bad or len(rows) < 3 * ENDS:
        reason = "not finite" if bad else f"needs {MIN_STEPS - len(rows)} more training steps"
        return [*findings, skipped("G3", "loss and gradient", reason)]
    loss = np.array([row["loss"] for row in rows[:MIN_STEPS]])
    norms = np.array([row["grad_norm"] for row in rows], dtype=np.float64)
    fit, p = slope(*block_means(loss), confidence=0.98)
    findings += [
        judge("G3", "loss slope", scaled(fit, 1000), f"p = {p:.2g}"),
        judge("G3", "loss drop", drop(loss[:ENDS], loss[-ENDS:])),
        judge("G3", "gradient spikes", wilson(spikes(norms), len(norms) - BLOCK)),
    ]
    return [settled(finding, len(rows)) for finding in findings]


def nonfinite(records: Sequence[Record], rows: Sequence[Record]) -> int:
    """Steps stopped by NaN, or with such a loss, that no later try made good.

    A gradient norm alone may be null: fp16 leaves out the step and lowers its scale.
    """
    good = {row["step"] for row in rows if row["loss"] is not None}
    events = {r["step"] for r in records if r["kind"] == "event" and r["what"] == "nonfinite"}
    return len(({row["step"] for row in rows} | events) - good)


def block_means(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Step and mean of each whole block of steps."""
    means = values[: len(values) // BLOCK * BLOCK].reshape(-1, BLOCK).mean(1)
    return BLOCK * np.arange(len(means)), means


def scaled(i: Interval, factor: float) -> Interval:
    """The interval of a positive multiple."""
    return Interval(factor * i.value, factor * i.low, factor * i.high, i.n)


def drop(first: np.ndarray, last: np.ndarray) -> Interval:
    """Relative fall of the mean from `first` to `last`; the ends of both t intervals bound it."""
    a, b = t_mean(first), t_mean(last)
    return Interval(1 - b.value / a.value, 1 - b.high / a.low, 1 - b.low / a.high, a.n + b.n)


def spikes(norms: np.ndarray) -> int:
    """Steps whose gradient norm is above `SPIKE` times the median of the steps before."""
    before = (norms[max(0, i - MEMORY) : i] for i in range(BLOCK, len(norms)))
    medians = np.array([np.nanmedian(window) for window in before])
    return int((norms[BLOCK:] > SPIKE * medians).sum())


def settled(finding: Finding, steps: int) -> Finding:
    """The finding as it is after enough steps; before, only what is exact counts."""
    if steps >= MIN_STEPS or finding.name == "non-finite steps":
        return finding
    note = join(f"needs {MIN_STEPS - steps} more training steps", finding.note)
    return replace(finding, verdict=Verdict.INCONCLUSIVE, note=note)


@gate("evolution", "activation evolution", trained=True)
def evolution(subject: Subject) -> list[Finding]:
    """No branch's output collapsed or blew up from the first to the last quarter of training."""
    rows = [record for record in subject.records if record["kind"] == "balance"]
    quarter = len(rows) // 4
    if quarter < 2 or not branches(subject.model):
        reason = "fewer than 8 balance records" if quarter < 2 else "no recurrent branch"
        return [skipped("evolution", "output growth", reason)]
    findings = []
    for branch in branches(subject.model):
        rms = np.array([row["branch_rms"][branch] for row in rows], dtype=np.float64)
        for layer in np.flatnonzero(~np.isnan(rms[-1])):
            early, late = np.median(rms[:quarter, layer]), np.median(rms[-quarter:, layer])
            where = f"blocks.{layer}.{branch}"
            growth = exact(float(late / early), len(rows))
            findings.append(judge("evolution", "output growth", growth, where=where))
    return findings


@gate("baseline", "n-gram baselines", trained=True)
def baseline(subject: Subject) -> list[Finding]:
    """The best validation loss is below uniform guessing, token frequencies and bigrams."""
    on_val = [record for record in subject.records if record.get("split") == "val"]
    scored = [r for r in on_val if r["kind"] == "val" and r["loss"] is not None]
    known = [r for r in on_val if r["kind"] == "baseline"]
    if not scored or not known:
        return [skipped("baseline", "val loss", "the run recorded no validation or no baseline")]
    best = min(scored, key=lambda record: record["loss"])
    findings = []
    for name in ("uniform", "unigram", "bigram"):
        level, n = known[-1][name], best["tokens"]
        gap = best["loss"] - level
        interval = unknown(gap, n) if best["se"] is None else normal(gap, best["se"], n)
        note = f"{best['loss']:.4f} at step {best['step']} against {level:.4f}"
        findings.append(judge("baseline", f"val loss - {name}", interval, note))
    return findings
