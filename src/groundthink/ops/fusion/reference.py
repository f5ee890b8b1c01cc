"""The fusions as they are written on paper, in fp32 or wider."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from groundthink.ops.norm.reference import rms_norm, wide


def branch(x: Tensor, norm: Tensor | None, eps: float) -> Tensor:
    """A branch output after its RMSNorm, if it has one."""
    x = wide(x)
    return x if norm is None else rms_norm(x, norm, eps, x.dtype)


def token_gate(
    x: Tensor,
    r: Tensor,
    m: Tensor,
    norm_r: Tensor | None,
    norm_m: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """x + a r + (1 - a) m with a = sigmoid(weight [r; m] + bias)."""
    r, m = branch(r, norm_r, eps), branch(m, norm_m, eps)
    a = torch.sigmoid(F.linear(torch.cat((r, m), dim=-1), weight.to(r.dtype), bias.to(r.dtype)))
    return (wide(x) + torch.lerp(m, r, a)).to(x.dtype), a


def channel_gate(x: Tensor, r: Tensor, m: Tensor, logits: Tensor) -> Tensor:
    """x + a r + (1 - a) m with a = sigmoid(logits)."""
    r, m = wide(r), wide(m)
    return (wide(x) + m + torch.sigmoid(wide(logits)) * (r - m)).to(x.dtype)


def branch_gains(
    x: Tensor,
    r: Tensor,
    m: Tensor,
    norm_r: Tensor | None,
    norm_m: Tensor | None,
    gain_r: Tensor,
    gain_m: Tensor,
    eps: float,
) -> Tensor:
    """x + gain_r r + gain_m m."""
    r, m = branch(r, norm_r, eps), branch(m, norm_m, eps)
    return (wide(x) + gain_r * r + gain_m * m).to(x.dtype)
