"""The norms with hand-written gradients, for eager code on any device.

They keep their inputs alone and compute the rest again: on a CPU the time of these layers is that
of moving their tensors through memory. RMSNorm has the gradient of LayerNorm with mean 0, less
the centring, and so can use its kernel.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def rms_norm(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight."""
    return _RMSNorm.apply(*_wide(x, weight), eps).to(dtype)  # pyright: ignore


def residual_norm(
    x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """x and its norm twice."""
    if torch.compiler.is_compiling():
        y = rms_norm(x, weight, eps, dtype)
        return x, y, y
    return _ResidualNorm.apply(x, weight, eps, dtype)  # pyright: ignore


def gated_rms_norm(y: Tensor, z: Tensor, weight: Tensor, groups: int, eps: float) -> Tensor:
    """The norm of y silu(z), in equal groups of channels."""
    return _GatedRMSNorm.apply(*_wide(y, z, weight), groups, eps).to(y.dtype)  # pyright: ignore


def head_norm_gate(y: Tensor, g: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Each head normalised by itself, scaled and shifted a channel, times silu(g)."""
    return _HeadNormGate.apply(*_wide(y, g, weight, bias), eps).to(y.dtype)  # pyright: ignore


def _wide(*tensors: Tensor) -> list[Tensor]:
    """All in one dtype, fp32 or wider."""
    full = functools.reduce(torch.promote_types, (t.dtype for t in tensors), torch.float32)
    return [t.to(full) for t in tensors]


def scale_of(x: Tensor, eps: float) -> Tensor:
    """1 / sqrt(mean(x^2) + eps) [..., 1]."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()


def rms_norm_backward(
    dy: Tensor, x: Tensor, weight: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of x and weight, for `scale` of `scale_of`."""
    dx, dweight, _ = torch.ops.aten.native_layer_norm_backward(
        dy, x, weight.shape, torch.zeros_like(scale), scale, weight, None, [True, True, False]
    )
    centre = (dy @ weight).unsqueeze(-1).mul_(scale).div_(x.shape[-1])
    return dx.add_(centre), dweight


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        scale = scale_of(x, eps)
        ctx.save_for_backward(x, weight, scale)
        return (x * scale).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy: Tensor):
        return *rms_norm_backward(dy, *ctx.saved_tensors), None


class _ResidualNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype):
        ctx.set_materialize_grads(False)
        wide, gain = _wide(x, weight)
        scale = scale_of(wide, eps)
        ctx.save_for_backward(x, weight, scale)
        y = (wide * scale).mul_(gain).to(dtype)
        return x.view_as(x), y, y.view_as(y)

    @staticmethod
    @once_differentiable
    def backward(ctx, dx: Tensor | None, *douts: Tensor | None):
        x, weight, scale = ctx.saved_tensors
        given = [dout for dout in douts if dout is not None]
        if not given:
            return dx, None, None, None
        wide, gain, *given = _wide(x, weight, *given)
        found, dweight = rms_norm_backward(sum(given[1:], given[0]), wide, gain, scale)
        if dx is not None:
            found.add_(dx)
        return found.to(x.dtype), dweight.to(weight.dtype), None, None


class _GatedRMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y: Tensor, z: Tensor, weight: Tensor, groups: int, eps: float) -> Tensor:
        gated = F.silu(z).mul_(y).unflatten(-1, (groups, -1))
        scale = scale_of(gated, eps)
        ctx.save_for_backward(y, z, weight, scale)
        return gated.mul_(scale).flatten(-2).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx, dout: Tensor):
        y, z, weight, scale = ctx.saved_tensors
        gate = F.silu(z)
        gated = (y * gate).unflatten(-1, (scale.shape[-2], -1))
        if gated.shape[-2] == 1:
            dgated, dweight = rms_norm_backward(dout, gated.squeeze(-2), weight, scale.squeeze(-2))
        else:
            normed = gated * scale
            dweight = (dout * normed.flatten(-2)).flatten(0, -2).sum(0)
            dnormed = (dout * weight).unflatten(-1, gated.shape[-2:])
            centre = (dnormed * normed).mean(-1, keepdim=True)
            dgated = dnormed.addcmul_(normed, centre, value=-1).mul_(scale).flatten(-2)
        dz = torch.ops.aten.silu_backward(dgated * y, z)
        return dgated.mul_(gate), dz, dweight, None, None


class _HeadNormGate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y: Tensor, g: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        normed, mean, scale = torch.native_layer_norm(y, y.shape[-1:], None, None, eps)
        ctx.save_for_backward(y, g, weight, bias, mean, scale)
        return torch.addcmul(bias, normed.flatten(-2), weight).mul_(F.silu(g))

    @staticmethod
    @once_differentiable
    def backward(ctx, dout: Tensor):
        y, g, weight, bias, mean, scale = ctx.saved_tensors
        normed = (y - mean).mul_(scale).flatten(-2)
        dg = torch.addcmul(bias, normed, weight).mul_(dout)
        dg = torch.ops.aten.silu_backward(dg, g)
        dscaled = F.silu(g).mul_(dout)
        dbias = dscaled.flatten(0, -2).sum(0)
        dweight = normed.mul_(dscaled).flatten(0, -2).sum(0)
        dnormed = dscaled.mul_(weight).view_as(y)
        dy, _, _ = torch.ops.aten.native_layer_norm_backward(
            dnormed, y, y.shape[-1:], mean, scale, None, None, [True, False, False]
        )
        return dy, dg, dweight, dbias, None
