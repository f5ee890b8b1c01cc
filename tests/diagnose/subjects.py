"""Small real models on a made-up language, to check or to break."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from toys import randomized, small

from groundthink.data.stream import Batch
from groundthink.diagnose.gates import GATES, Subject
from groundthink.models.build import build
from groundthink.verdicts.verdict import Finding, Verdict


def text(batches: int, rows: int, length: int, vocab_size: int = 50) -> list[Batch]:
    """Batches of a skewed random walk over the vocabulary."""
    generator = torch.Generator().manual_seed(0)
    steps = torch.randint(0, 7, (batches, rows, length + 1), generator=generator).square()
    tokens = steps.cumsum(-1) % vocab_size
    reset = torch.zeros(rows, length, dtype=torch.bool)
    return [Batch(x[:, :-1].contiguous(), x[:, 1:].contiguous(), reset) for x in tokens]


def subject(variant: str = "gf-mh", *, shape=(4, 4, 256), backend="auto", **fields) -> Subject:
    """A toy whose weights are as far from their init as those of a trained model."""
    model = randomized(build(small(variant), backend=backend)).eval()
    return Subject(model, text(*shape), **{"steps": 5, **fields})


def verdicts(findings: Sequence[Finding]) -> dict[str, Verdict]:
    return {finding.name: finding.verdict for finding in findings}


def run(id: str, subject: Subject) -> dict[str, Verdict]:
    """Verdicts of one gate by name."""
    return verdicts(GATES[id](subject))
