"""Normalisation of the residual stream, of heads and of gated outputs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from groundthink.errors import unknown
from groundthink.ops.norm import gated_rms_norm, head_norm_gate, residual_norm, rms_norm


def product_dtype(x: Tensor) -> torch.dtype:
    """What matrix products of x run in: the dtype of autocast, or that of x without it."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight over the channels (Zhang and Sennrich 2019, eq. 4)."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def init_weights(self) -> None:
        nn.init.ones_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps, dtype=product_dtype(x))


class LayerNorm(nn.LayerNorm):
    """Ba et al. 2016, with weight and bias."""

    def init_weights(self) -> None:
        self.reset_parameters()


class HeadNorm(nn.Module):
    """Each head normalised by itself, then scaled per channel and gated by silu(g)."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, y: Tensor, g: Tensor, backend: str = "auto") -> Tensor:
        """y [B, T, H, N] and its gate g [B, T, H N] -> [B, T, H N]."""
        return head_norm_gate(y, g, self.weight, self.bias, self.eps, backend=backend)


class GatedRMSNorm(nn.Module):
    """RMSNorm of y silu(z), in equal groups of channels (Dao and Gu 2024, section 7)."""

    def __init__(self, dim: int, groups: int, eps: float):
        super().__init__()
        self.groups = groups
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, y: Tensor, z: Tensor, backend: str = "auto") -> Tensor:
        """y and its gate z, both [B, T, D] -> [B, T, D]."""
        return gated_rms_norm(y, z, self.weight, self.groups, self.eps, backend=backend)


def listened(module: nn.Module) -> bool:
    """Whether the module or a part of it has a forward hook."""
    return any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())


def entered(norm: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The residual stream x and its norm twice, for up to two layers that read it and add to x."""
    if isinstance(norm, RMSNorm) and not listened(norm):
        return residual_norm(x, norm.weight, norm.eps, dtype=product_dtype(x))
    y = norm(x)
    return x, y, y


NORMS = {"rms": RMSNorm, "layer": LayerNorm}


def make_norm(kind: str, dim: int, eps: float) -> RMSNorm | LayerNorm:
    """The norm of the residual stream: "rms" or "layer".

    Raises:
        UserError: another kind.
    """
    if kind not in NORMS:
        raise unknown("norm", kind, NORMS)
    return NORMS[kind](dim, eps=eps)
