"""B3: a short training run on real text stays finite and learns."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from groundthink.bench import contestants
from groundthink.bench.config import BenchModel
from groundthink.bench.work import MakeStep
from groundthink.data.corpora import Corpus
from groundthink.data.stream import Lanes
from groundthink.verdicts.statistics import t_mean
from groundthink.verdicts.thresholds import THRESHOLDS
from groundthink.verdicts.verdict import Verdict, decide

ENDS = 10  # losses averaged at the start and at the end
LEARNS = THRESHOLDS["B3", "loss change"]


@dataclass(frozen=True)
class Stability:
    """What a run measured, step by step; it ends where something is not finite.

    Attributes:
        losses: nats per token.
        norms: gradient norms before clipping.
        finite: whether all of them are; a gradient that overflows in fp16 is left out, since the
            loss scaler skips its step.
    """

    losses: list[float]
    norms: list[float]
    finite: bool

    @property
    def fields(self) -> dict[str, Any]:
        """Fields of a record: the loss change with its 95 % interval, and the verdict."""
        ends = max(1, min(ENDS, len(self.losses) // 2))
        start = float(np.mean(self.losses[:ends]))
        change = t_mean(np.array(self.losses[-ends:]) - start)
        return {
            "value": change.value,
            "low": change.low,
            "high": change.high,
            "n": len(self.losses),
            "start": start,
            "end": start + change.value,
            "grad_norm": float(np.median(self.norms)) if self.norms else math.nan,
            "grad_norm_max": max(self.norms, default=math.nan),
            "verdict": str(
                decide(change, THRESHOLDS["B3", "loss change"]) if self.finite else Verdict.FAIL
            ),
        }

    @property
    def note(self) -> str:
        """The outcome in words."""
        if not self.finite:
            return f"FAIL: step {len(self.losses)} is not finite"
        f = self.fields
        return (
            f"{f['verdict']}: loss {f['start']:.2f} to {f['end']:.2f} nats per token, gradient "
            f"norm {f['grad_norm']:.2f}, at most {f['grad_norm_max']:.2f}"
        )


def train(
    config: BenchModel, corpus: Corpus, device: torch.device, make_step: MakeStep
) -> Stability:
    """Train the model of a config on the training text for `config.steps` steps."""
    vocab_size = corpus.tokenizer.vocab_size
    model = contestants.make(config.model, replace(config, vocab_size=vocab_size), device)
    step = make_step(model, device, config.precision)
    lanes = Lanes(corpus.splits["train"], config.batch_size, config.seq_len, config.seed)
    losses, norms = [], []
    for _ in range(config.steps):
        loss, norm = step(lanes.next())
        losses.append(loss)
        if math.isfinite(norm) or config.precision != "fp16":
            norms.append(norm)
        if not all(map(math.isfinite, (losses[-1], *norms[-1:]))):
            return Stability(losses, norms, finite=False)
    return Stability(losses, norms, finite=True)
