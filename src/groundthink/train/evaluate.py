"""Validation loss with its standard error, in nats, bits per byte and perplexity."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from groundthink.data.stream import Batch
from groundthink.train.loss import nats
from groundthink.train.step import autocast


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
    token_bytes: Tensor,
    *,
    carry: bool,
    precision: str = "fp32",
) -> dict[str, Any]:
    """Mean loss over every scored token of `batches`.

    Args:
        token_bytes: UTF-8 bytes of each token id [V].
        carry: row b of a batch continues row b of the batch before, so state carries over.

    Returns:
        loss (nats per token), bpb (bits per byte), perplexity, tokens, and se, the standard error
        of the loss: lanes are its units where state carries over, else windows.
    """
    device = next(model.parameters()).device
    model.eval()
    sums, counts, n_bytes, state = [], [], 0, None
    for batch in batches:
        targets = batch.targets.to(device)
        with autocast(device, precision):
            logits, state = model(batch.tokens.to(device), state, batch.reset.to(device))
        if not carry:
            state = None
        losses = nats(logits, targets, reduction="none").view(targets.shape)
        sums.append(losses.sum(1, dtype=torch.float64))
        counts.append((batch.targets >= 0).sum(1))
        n_bytes += scored_bytes(batch, token_bytes)
    model.train()
    join = torch.stack if carry else torch.cat
    loss_sums, tokens = join(sums).cpu().numpy(), join(counts).numpy()
    if carry:
        loss_sums, tokens = loss_sums.sum(0), tokens.sum(0)
    loss = float(loss_sums.sum() / tokens.sum())
    return {
        "loss": loss,
        "bpb": bits_per_byte(float(loss_sums.sum()), n_bytes),
        "perplexity": perplexity(loss),
        "se": standard_error(loss_sums, tokens),
        "tokens": int(tokens.sum()),
    }


def standard_error(sums: np.ndarray, counts: np.ndarray) -> float:
    """Standard error of the ratio sum(sums) / sum(counts) over independent units; nan for one."""
    sums, counts = sums[counts > 0], counts[counts > 0]
    n = len(counts)
    if n < 2:
        return math.nan
    residuals = sums - counts * (sums.sum() / counts.sum())
    return float(math.sqrt(n / (n - 1) * (residuals**2).sum()) / counts.sum())


def perplexity(loss: float) -> float:
    """exp of a loss in nats per token; infinite where that is too large for a float."""
    return math.exp(loss) if loss < 700 else math.inf


def scored_bytes(batch: Batch, token_bytes: Tensor) -> int:
    """UTF-8 bytes that the scored targets of a batch stand for."""
    return int(token_bytes[batch.targets[batch.targets >= 0]].sum())


def bits_per_byte(total_nats: float, n_bytes: int) -> float:
    """Bits per byte of a summed loss; nan where no bytes were scored."""
    return total_nats / math.log(2) / n_bytes if n_bytes else math.nan
