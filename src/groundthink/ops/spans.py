"""Sums of log decays relative to the middle of a chunk, for both recurrences."""

from __future__ import annotations

import functools

import torch
from torch import Tensor


def spans(like: Tensor, length: int) -> Tensor:
    """[L+1, L]: +1 for tokens from the middle up to before row i, -1 for those from i to it.

    Times the log decays of a chunk this gives the exponents from its middle to before each of its
    tokens and to its end. Every sum has terms of one sign, so nothing cancels. Transposed it turns
    gradients of the exponents into those of the log decays.
    """
    return _spans(length, like.dtype, like.device)


@functools.cache
def _spans(length: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        rows = torch.ones(length + 1, length, dtype=dtype, device=device).tril(-1)
        rows[:, : length // 2] -= 1
    return rows
