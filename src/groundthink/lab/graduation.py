"""Gates that train: what a model must be able to do before a long run is worth it."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F

from groundthink.diagnose.gates import GATES
from groundthink.diagnose.registry import gate
from groundthink.diagnose.subject import Subject
from groundthink.models.build import build
from groundthink.verdicts.statistics import exact
from groundthink.verdicts.verdict import Finding, judge

SEQUENCES, LENGTH, STEPS, LR = 10, 64, 500, 1e-3
TARGET = 0.05
"""Nats per token at which the training ends early: the edge of PASS."""


@gate("overfit", "memorising ten sequences")
def overfit(subject: Subject) -> list[Finding]:
    """A fresh model of this config learns ten sequences of 64 tokens by heart."""
    vocab_size = subject.config.vocab_size
    model = build(subject.config, vocab_size=vocab_size, seed=subject.seed, device=subject.device)
    tokens = subject.rows(SEQUENCES, LENGTH + 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, betas=(0.9, 0.95), weight_decay=0)
    loss, step = torch.tensor(torch.inf), 0
    while step < STEPS and loss > TARGET:
        logits = model(tokens[:, :-1])[0]
        loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
    found = judge("overfit", "training loss", exact(loss.item(), SEQUENCES * LENGTH))
    return [replace(found, note=f"after {step} steps of AdamW at {LR:g}")]


GATES[overfit.id] = overfit
