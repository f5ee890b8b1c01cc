"""The negative log-likelihood on a GPU: how its kernel is launched."""

# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

import torch
import triton
from torch import Tensor

from groundthink.ops.fused import device_of
from groundthink.ops.nll.triton import _nll

BLOCK = 16384
"""Logits of a row that a program holds, at most; of a longer row it holds half as many at once."""


def nll_(logits: Tensor, targets: Tensor) -> Tensor:
    """`groundthink.ops.nll.nll_`."""
    rows, size = logits.shape
    losses = torch.empty(rows, dtype=torch.float32, device=logits.device)
    once = size <= BLOCK
    block = triton.next_power_of_2(size) if once else BLOCK // 2
    if rows:
        with device_of(logits):
            _nll[(rows,)](
                logits, targets.contiguous(), losses, logits.stride(0), size,
                BLOCK=block, ONCE=once, num_warps=8 if block > 4096 else 4,
            )  # fmt: skip
    return losses
