"""Normalisation of the residual stream, of heads and of gated outputs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from groundthink.errors import unknown


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight over the channels (Zhang and Sennrich 2019, eq. 4)."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def init_weights(self) -> None:
        nn.init.ones_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


class LayerNorm(nn.LayerNorm):
    """Ba et al. 2016, with weight and bias."""

    def init_weights(self) -> None:
        self.reset_parameters()


class HeadNorm(nn.Module):
    """Each head normalised by itself, then scaled per channel: GroupNorm with a group a head."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, H, N] -> [B, T, H N]."""
        x = F.layer_norm(x, x.shape[-1:], eps=self.eps).flatten(-2)
        return torch.addcmul(self.bias, x, self.weight)


class GatedRMSNorm(nn.Module):
    """RMSNorm of y silu(z), in equal groups of channels (Dao and Gu 2024, section 7)."""

    def __init__(self, dim: int, groups: int, eps: float):
        super().__init__()
        self.groups = groups
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, y: Tensor, z: Tensor) -> Tensor:
        """y and its gate z, both [B, T, D] -> [B, T, D]."""
        y = y * F.silu(z)
        if self.groups == 1:
            return rms_norm(y, self.weight, self.eps)
        y = y.unflatten(-1, (self.groups, -1))
        return F.rms_norm(y, y.shape[-1:], eps=self.eps).flatten(-2) * self.weight


NORMS = {"rms": RMSNorm, "layer": LayerNorm}


def make_norm(kind: str, dim: int, eps: float) -> RMSNorm | LayerNorm:
    """The norm of the residual stream: "rms" or "layer".

    Raises:
        UserError: another kind.
    """
    if kind not in NORMS:
        raise unknown("norm", kind, NORMS)
    return NORMS[kind](dim, eps=eps)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm of x over its last dimension; as F.rms_norm, in half its time on the CPU."""
    x = x.to(torch.promote_types(x.dtype, weight.dtype))
    slow = x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)
    if slow and not torch.compiler.is_compiling():
        return _RMSNorm.apply(x, weight, eps)  # pyright: ignore
    return F.rms_norm(x, weight.shape, weight, eps)


class _RMSNorm(torch.autograd.Function):
    """Its backward is that of LayerNorm with mean 0, less the centring of the gradient."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        scale = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return (x * scale).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy: Tensor):
        x, weight, scale = ctx.saved_tensors
        dx, dweight, _ = torch.ops.aten.native_layer_norm_backward(
            dy, x, weight.shape, torch.zeros_like(scale), scale, weight, None, [True, True, False]
        )
        centre = (dy @ weight).unsqueeze(-1).mul_(scale).div_(x.shape[-1])
        return dx.add_(centre), dweight, None
