"""G3.5: whether the recurrent states live, on real text, layer by layer and branch by branch."""

from __future__ import annotations

import torch
from torch import Tensor

from groundthink.diagnose.measures import cosine, effective_rank, rms, singular
from groundthink.diagnose.registry import gate
from groundthink.diagnose.states import Matrices, matrices
from groundthink.diagnose.subject import Subject
from groundthink.verdicts.statistics import bootstrap_mean, exact
from groundthink.verdicts.thresholds import OUTLIER
from groundthink.verdicts.verdict import Finding, judge, skipped

ROWS = 16
"""Stretches of text; they are the samples of every interval."""
LAGS = (1, 8, 64)
ANCHORS = (64, 128, 192)
"""Tokens read before the states that the lags count from."""


@gate("G3.5", "state health", trained=True)
@torch.no_grad()
def state_health(subject: Subject) -> list[Finding]:
    """Matrix states move with the text, use their rank, and hold neither nothing nor outliers."""
    cosines, final = observe(subject)
    if not final:
        return [skipped("G3.5", "state health", "no recurrent branch")]
    return [finding for name in final for finding in health(name, final[name], cosines[name])]


def observe(subject: Subject) -> tuple[dict[str, dict[int, Tensor]], Matrices]:
    """Cosine of each row's states at every lag, mean over anchors {module: {lag: [rows]}}, and the
    states after the last token."""
    tokens = subject.rows(ROWS, ANCHORS[-1] + LAGS[-1])
    found: dict[str, dict[int, list[Tensor]]] = {}
    state, anchor, now = None, {}, {}
    done = start = 0
    for position in sorted({a + lag for a in ANCHORS for lag in (0, *LAGS)}):
        _, state = subject.model(tokens[:, done:position], state)
        now, done = matrices(state), position
        if anchor and position - start in LAGS:
            for name, x in now.items():
                lags = found.setdefault(name, {})
                lags.setdefault(position - start, []).append(cosine(anchor[name], x))
        if position in ANCHORS:
            anchor, start = now, position
    means = {
        name: {lag: torch.stack(x).mean(0) for lag, x in lags.items()}
        for name, lags in found.items()
    }
    return means, now


def health(name: str, state: Tensor, cosines: dict[int, Tensor]) -> list[Finding]:
    """The findings of one module's state."""
    bad = int((~state.isfinite()).sum())
    findings = [judge("G3.5", "non-finite state entries", exact(bad, state.numel()), where=name)]
    if bad:
        return findings
    size = rms(state)
    outliers = (state.flatten(1).abs() > OUTLIER * size[:, None]).float().mean(1)
    lag_8 = f"lag 8: {cosines[8].mean():.3f}"
    for quantity, samples, note in (
        ("state RMS", size, ""),
        ("cosine at lag 1", cosines[1], ""),
        ("cosine at lag 64", cosines[64], lag_8),
        ("effective rank", effective_rank(singular(state)), ""),
        ("outlier share", outliers, ""),
    ):
        interval = bootstrap_mean(samples.cpu().numpy())
        findings.append(judge("G3.5", quantity, interval, note, name))
    return findings
