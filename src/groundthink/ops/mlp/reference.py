"""The GELU MLP as its parts."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from groundthink.ops.norm.reference import rms_norm


def add_mlp(
    x: Tensor, norm: Tensor, up: Tensor, down: Tensor, eps: float, dtype: torch.dtype
) -> Tensor:
    """x + down gelu(up rms_norm(x))."""
    hidden = F.gelu(F.linear(rms_norm(x, norm, eps, dtype), up.to(dtype)))
    return x + F.linear(hidden, down.to(dtype)).to(x.dtype)
