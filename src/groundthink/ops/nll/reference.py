"""The negative log-likelihood by log_softmax, in fp32 or wider."""

from __future__ import annotations

import torch
from torch import Tensor


def nll_(logits: Tensor, targets: Tensor) -> Tensor:
    """Losses of all rows; the logits become their gradient."""
    full = torch.promote_types(logits.dtype, torch.float32)
    log_p = logits.to(full).log_softmax(-1)
    at, scored = targets.clamp(min=0)[:, None], targets >= 0
    losses = -log_p.gather(1, at).squeeze(1).where(scored, 0)
    gradient = log_p.exp_().scatter_add_(1, at, log_p.new_tensor(-1.0).expand(at.shape))
    logits.copy_(gradient.where(scored[:, None], 0))
    return losses
