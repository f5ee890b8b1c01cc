"""The norms on a GPU: how the kernels in `triton` are launched, and the gradients."""

# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable

from groundthink.ops.fused import Operator, device_of, differentiable, processors, rows, traced
from groundthink.ops.norm.triton import _head_backward, _head_forward, _rms_backward, _rms_forward
from groundthink.ops.shares import total

TILE, BACK = 2048, 1024
"""Elements of a tile, forward and backward."""
FILL = 16
"""Warps a multiprocessor that share the rows of a gradient, or twice as many of long rows."""


def tile_of(width: int, elements: int) -> tuple[int, int, int]:
    """Columns (a power of two), rows and warps of a tile of about so many elements."""
    pad = triton.next_power_of_2(width)
    return pad, max(1, elements // pad), min(16, max(4, pad // 256))


def _fill(pad: int) -> int:
    return FILL if pad <= 512 else 2 * FILL


def _rms(
    x: Tensor, z: Tensor | None, weight: Tensor, groups: int, eps: float, dtype: torch.dtype
) -> Tensor:
    """The norm of x or x silu(z)."""
    width = x.shape[-1]
    out = torch.empty(x.shape, dtype=dtype, device=x.device)
    x, x_step, x_unit = rows(x)
    z, z_step, z_unit = (None, 0, 1) if z is None else rows(z)
    n = x.numel() // width
    pad, tall, warps = tile_of(width // groups, TILE)
    with device_of(x):
        _rms_forward[(triton.cdiv(n, tall), groups)](
            x, z, weight, out, n, x_step, z_step, eps,
            width, width // groups, x_unit, z_unit, pad, tall, num_warps=warps,
        )  # fmt: skip
    return out


def _rms_grad(
    x: Tensor,
    z: Tensor | None,
    weight: Tensor,
    dout: Tensor,
    dmore: Tensor | None,
    dthrough: Tensor | None,
    groups: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, which has `dthrough` from elsewhere, of z, and of the weight.

    That of the norm is dout, or the sum of both.
    """
    width = x.shape[-1]
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    dz = x.new_empty(0) if z is None else torch.empty(x.shape, dtype=z.dtype, device=x.device)
    x, x_step, x_unit = rows(x)
    dout, dout_step, dout_unit = rows(dout)
    z, z_step, z_unit = (None, 0, 1) if z is None else rows(z)
    dmore, dmore_step, dmore_unit = (None, 0, 1) if dmore is None else rows(dmore)
    dthrough, dthrough_step, dthrough_unit = (None, 0, 1) if dthrough is None else rows(dthrough)
    n = x.numel() // width
    pad, tall, warps = tile_of(width // groups, BACK)
    some = min(triton.cdiv(n, tall), processors(x.device) * _fill(pad) // warps)
    shares = torch.empty(some, width, dtype=torch.float32, device=x.device)
    with device_of(x):
        _rms_backward[(some, groups)](
            x, z, weight, dout, dmore, dthrough, dx, None if z is None else dz, shares,
            n, x_step, z_step, dout_step, dmore_step, dthrough_step, eps, width, width // groups,
            x_unit, z_unit, dout_unit, dmore_unit, dthrough_unit, pad, tall,
            num_warps=warps,
        )  # fmt: skip
    return dx, dz, total(shares).to(weight.dtype)


def _fake_rms(x, z, weight, groups, eps, dtype):
    return torch.empty(x.shape, dtype=dtype, device=x.device)


def _fake_rms_grad(x, z, weight, dout, dmore, dthrough, groups, eps):
    dz = x.new_empty(0) if z is None else z.new_empty(z.shape)
    return x.new_empty(x.shape), dz, torch.empty_like(weight)


def _rms_setup(ctx, inputs, _):
    x, z, weight, *ctx.rest, _ = inputs
    ctx.save_for_backward(x, z, weight)


def _rms_pull(ctx, dout):
    x, z, weight = ctx.saved_tensors
    dx, dz, dweight = _rms_gradient(x, z, weight, dout, None, None, *ctx.rest)
    return dx, None if z is None else dz, dweight, None, None, None


_rms_gradient = Operator("rms_norm_backward", _rms_grad, _fake_rms_grad)
_rms_norm = differentiable(Operator("rms_norm", _rms, _fake_rms), _rms_setup, _rms_pull)


def rms_norm(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """`groundthink.ops.norm.rms_norm`."""
    return _rms_norm(x, None, weight, 1, eps, dtype)


class _ResidualNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype):
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, weight)
        ctx.eps = eps
        y = _rms(x, None, weight, 1, eps, dtype)
        return x.view_as(x), y, y.view_as(y)

    @staticmethod
    @once_differentiable
    def backward(ctx, dx: Tensor | None, *douts: Tensor | None):
        x, weight = ctx.saved_tensors
        given = [dout for dout in douts if dout is not None]
        if not given:
            return dx, None, None, None
        dout, dmore = (*given, None)[:2]
        dx, _, dweight = _rms_grad(x, None, weight, dout, dmore, dx, 1, ctx.eps)
        return dx, dweight, None, None


def residual_norm(
    x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """`groundthink.ops.norm.residual_norm`."""
    if traced((x, weight)):
        y = rms_norm(x, weight, eps, dtype)
        return x, y, y
    return _ResidualNorm.apply(x, weight, eps, dtype)  # pyright: ignore


def gated_rms_norm(y: Tensor, z: Tensor, weight: Tensor, groups: int, eps: float) -> Tensor:
    """`groundthink.ops.norm.gated_rms_norm`."""
    return _rms_norm(y, z, weight, groups, eps, y.dtype)


def _head_tile(count: int, size: int, elements: int) -> tuple[int, int, int]:
    """Columns of a head, heads and rows of a tile; about 128 columns."""
    pad = triton.next_power_of_2(size)
    heads = max(1, min(128 // pad, triton.next_power_of_2(count)))
    return pad, heads, max(1, elements // (pad * heads))


def _head(y: Tensor, g: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    count, size = y.shape[-2:]
    out = torch.empty(g.shape, dtype=y.dtype, device=y.device)
    y, y_step, y_unit = rows(y.flatten(-2))
    g, g_step, g_unit = rows(g)
    n = y.numel() // (count * size)
    pad, heads, tall = _head_tile(count, size, TILE)
    with device_of(y):
        _head_forward[(triton.cdiv(n, tall), triton.cdiv(count, heads))](
            y, g, weight, bias, out, n, y_step, g_step, eps,
            count, size, y_unit, g_unit, pad, heads, tall, num_warps=4,
        )  # fmt: skip
    return out


def _head_grad(
    y: Tensor, g: Tensor, weight: Tensor, bias: Tensor, dout: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of y, g, and of weight and bias one after the other, in fp32."""
    count, size = y.shape[-2:]
    dy = torch.empty(y.shape, dtype=y.dtype, device=y.device)
    dg = torch.empty(g.shape, dtype=g.dtype, device=y.device)
    y, y_step, y_unit = rows(y.flatten(-2))
    g, g_step, g_unit = rows(g)
    dout, dout_step, dout_unit = rows(dout)
    n = y.numel() // (count * size)
    pad, heads, tall = _head_tile(count, size, BACK)
    across = triton.cdiv(count, heads)
    some = min(triton.cdiv(n, tall), triton.cdiv(processors(y.device) * FILL // 4, across))
    shares = torch.empty(some, 2, count * size, dtype=torch.float32, device=y.device)
    with device_of(y):
        _head_backward[(some, across)](
            y, g, weight, bias, dout, dy, dg, shares, n, y_step, g_step, dout_step, eps,
            count, size, y_unit, g_unit, dout_unit, pad, heads, tall, num_warps=4,
        )  # fmt: skip
    return dy, dg, total(shares)


def _fake_head(y, g, weight, bias, eps):
    return torch.empty(g.shape, dtype=y.dtype, device=y.device)


def _fake_head_grad(y, g, weight, bias, dout, eps):
    dboth = torch.empty(2, *weight.shape, dtype=torch.float32, device=y.device)
    return y.new_empty(y.shape), g.new_empty(g.shape), dboth


def _head_setup(ctx, inputs, _):
    *tensors, ctx.eps = inputs
    ctx.save_for_backward(*tensors)


def _head_pull(ctx, dout):
    y, g, weight, bias = ctx.saved_tensors
    dy, dg, dboth = _head_gradient(y, g, weight, bias, dout, ctx.eps)
    return dy, dg, dboth[0].to(weight.dtype), dboth[1].to(bias.dtype), None


_head_gradient = Operator("head_norm_gate_backward", _head_grad, _fake_head_grad)
head_norm_gate = differentiable(
    Operator("head_norm_gate", _head, _fake_head), _head_setup, _head_pull
)
