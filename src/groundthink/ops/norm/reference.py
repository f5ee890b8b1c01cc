"""The norms and their gates as their papers have them, in fp32 or wider."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def wide(x: Tensor) -> Tensor:
    """x in fp32 or wider."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def rms_norm(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight."""
    x = wide(x)
    return F.rms_norm(x, weight.shape, weight.to(x.dtype), eps).to(dtype)


def residual_norm(
    x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """x and its norm twice."""
    y = rms_norm(x, weight, eps, dtype)
    return x, y, y


def gated_rms_norm(y: Tensor, z: Tensor, weight: Tensor, groups: int, eps: float) -> Tensor:
    """The norm of y silu(z), in equal groups of channels."""
    gated = (wide(y) * F.silu(wide(z))).unflatten(-1, (groups, -1))
    normed = F.rms_norm(gated, gated.shape[-1:], eps=eps).flatten(-2)
    return (normed * weight).to(y.dtype)


def head_norm_gate(y: Tensor, g: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Each head normalised by itself, scaled and shifted a channel, times silu(g)."""
    normed = F.layer_norm(wide(y), y.shape[-1:], eps=eps).flatten(-2)
    return (torch.addcmul(bias, normed, weight) * F.silu(wide(g))).to(y.dtype)
