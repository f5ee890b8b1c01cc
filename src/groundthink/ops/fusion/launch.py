"""The fusions on a GPU: how the kernels in `triton` are launched, and the gradients."""

# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import torch
import triton
from torch import Tensor

from groundthink.ops.fused import Operator, device_of, differentiable, processors, rows
from groundthink.ops.fusion.triton import (
    _gains_backward,
    _gains_forward,
    _gate_backward,
    _gate_forward,
    _mix_backward,
    _mix_forward,
)
from groundthink.ops.norm.launch import tile_of
from groundthink.ops.shares import total

TILE, BACK = 1024, 2048
"""Elements of a tile, forward and backward."""
FILL = 8
"""Warps a multiprocessor that share the rows of a gradient."""


def _tile(width: int, elements: int = TILE) -> tuple[int, int, int]:
    """Columns, rows and warps of a tile: eight elements a thread, or more."""
    return tile_of(max(4, width), elements)


def _gate(
    x: Tensor,
    r: Tensor,
    m: Tensor,
    norm_r: Tensor | None,
    norm_m: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor]:
    size = x.shape[-1]
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    gate = torch.empty((*x.shape[:-1], 1), dtype=torch.float32, device=x.device)
    x, x_step, x_unit = rows(x)
    r, r_step, r_unit = rows(r)
    m, m_step, m_unit = rows(m)
    n = gate.numel()
    pad, tall, warps = _tile(size)
    with device_of(x):
        _gate_forward[(triton.cdiv(n, tall),)](
            x, r, m, norm_r, norm_m, weight, bias, out, gate, n, x_step, r_step, m_step, eps,
            size, x_unit, r_unit, m_unit, pad, tall, num_warps=warps,
        )  # fmt: skip
    return out, gate


def _gate_grad(
    r: Tensor,
    m: Tensor,
    norm_r: Tensor | None,
    norm_m: Tensor | None,
    weight: Tensor,
    gate: Tensor,
    dout: Tensor,
    dgate: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of r, m, and of [weight, norm_r, norm_m, bias] in a row, in fp32."""
    size = r.shape[-1]
    dr = torch.empty(r.shape, dtype=r.dtype, device=r.device)
    dm = torch.empty(m.shape, dtype=m.dtype, device=r.device)
    r, r_step, r_unit = rows(r)
    m, m_step, m_unit = rows(m)
    dout, dout_step, dout_unit = rows(dout)
    dgate = None if dgate is None else dgate.float().contiguous()
    n = gate.numel()
    pad, tall, warps = _tile(size, BACK)
    some = min(triton.cdiv(n, tall), processors(r.device) * FILL // warps)
    shares = torch.empty(some, 4 * size + 4, dtype=torch.float32, device=r.device)
    with device_of(r):
        _gate_backward[(some,)](
            r, m, norm_r, norm_m, weight, gate, dout, dgate, dr, dm, shares,
            n, r_step, m_step, dout_step, eps,
            size, r_unit, m_unit, dout_unit, pad, tall, num_warps=warps,
        )  # fmt: skip
    return dr, dm, total(shares)


def _fake_gate(x, r, m, norm_r, norm_m, weight, bias, eps):
    gate = torch.empty((*x.shape[:-1], 1), dtype=torch.float32, device=x.device)
    return x.new_empty(x.shape), gate


def _fake_gate_grad(r, m, norm_r, norm_m, weight, gate, dout, dgate, eps):
    return r.new_empty(r.shape), m.new_empty(m.shape), gate.new_empty(4 * r.shape[-1] + 4)


def _gate_setup(ctx, inputs, outputs):
    _, r, m, norm_r, norm_m, weight, ctx.bias, ctx.eps = inputs
    ctx.bias = ctx.bias.dtype
    ctx.x = outputs[0].dtype
    ctx.save_for_backward(r, m, norm_r, norm_m, weight, outputs[1])


def _gate_pull(ctx, dout, dgate):
    saved = ctx.saved_tensors
    r, m, norm_r, norm_m, weight, _ = saved
    if dout is None:
        dout = torch.zeros(r.shape, dtype=ctx.x, device=r.device)
    dr, dm, sums = _gate_gradient(*saved, dout, dgate, ctx.eps)
    size = r.shape[-1]
    dweight = sums[: 2 * size].view(1, -1).to(weight.dtype)
    dbias = sums[4 * size : 4 * size + 1].to(ctx.bias)
    dnorm_r = dnorm_m = None
    if norm_r is not None:
        dnorm_r = sums[2 * size : 3 * size].to(norm_r.dtype)
        dnorm_m = sums[3 * size : 4 * size].to(norm_m.dtype)
    return dout, dr, dm, dnorm_r, dnorm_m, dweight, dbias, None


_gate_gradient = Operator("token_gate_backward", _gate_grad, _fake_gate_grad)
token_gate = differentiable(Operator("token_gate", _gate, _fake_gate), _gate_setup, _gate_pull)


def _gains(
    x: Tensor,
    r: Tensor,
    m: Tensor,
    norm_r: Tensor | None,
    norm_m: Tensor | None,
    gain_r: Tensor,
    gain_m: Tensor,
    eps: float,
) -> Tensor:
    size = x.shape[-1]
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    n = x.numel() // size
    x, x_step, x_unit = rows(x)
    r, r_step, r_unit = rows(r)
    m, m_step, m_unit = rows(m)
    pad, tall, warps = _tile(size)
    with device_of(x):
        _gains_forward[(triton.cdiv(n, tall),)](
            x, r, m, norm_r, norm_m, gain_r, gain_m, out, n, x_step, r_step, m_step, eps,
            size, x_unit, r_unit, m_unit, pad, tall, num_warps=warps,
        )  # fmt: skip
    return out


def _gains_grad(
    r: Tensor,
    m: Tensor,
    norm_r: Tensor | None,
    norm_m: Tensor | None,
    gain_r: Tensor,
    gain_m: Tensor,
    dout: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of r, m, and of gain_r, gain_m, norm_r, norm_m, [4, C] in fp32."""
    size = r.shape[-1]
    dr = torch.empty(r.shape, dtype=r.dtype, device=r.device)
    dm = torch.empty(m.shape, dtype=m.dtype, device=r.device)
    n = r.numel() // size
    r, r_step, r_unit = rows(r)
    m, m_step, m_unit = rows(m)
    dout, dout_step, dout_unit = rows(dout)
    pad, tall, warps = _tile(size, BACK)
    some = min(triton.cdiv(n, tall), processors(r.device) * FILL // warps)
    shares = torch.empty(some, 4, size, dtype=torch.float32, device=r.device)
    with device_of(r):
        _gains_backward[(some,)](
            r, m, norm_r, norm_m, gain_r, gain_m, dout, dr, dm, shares,
            n, r_step, m_step, dout_step, eps,
            size, r_unit, m_unit, dout_unit, pad, tall, num_warps=warps,
        )  # fmt: skip
    return dr, dm, total(shares)


def _fake_gains(x, r, m, norm_r, norm_m, gain_r, gain_m, eps):
    return x.new_empty(x.shape)


def _fake_gains_grad(r, m, norm_r, norm_m, gain_r, gain_m, dout, eps):
    sums = torch.empty(4, r.shape[-1], dtype=torch.float32, device=r.device)
    return r.new_empty(r.shape), m.new_empty(m.shape), sums


def _gains_setup(ctx, inputs, _):
    _, *tensors, ctx.eps = inputs
    ctx.save_for_backward(*tensors)


def _gains_pull(ctx, dout):
    saved = ctx.saved_tensors
    _, _, norm_r, norm_m, gain_r, gain_m = saved
    dr, dm, sums = _gains_gradient(*saved, dout, ctx.eps)
    dgains = sums[0].to(gain_r.dtype), sums[1].to(gain_m.dtype)
    dnorms = (None, None)
    if norm_r is not None:
        dnorms = sums[2].to(norm_r.dtype), sums[3].to(norm_m.dtype)
    return dout, dr, dm, *dnorms, *dgains, None


_gains_gradient = Operator("branch_gains_backward", _gains_grad, _fake_gains_grad)
branch_gains = differentiable(
    Operator("branch_gains", _gains, _fake_gains), _gains_setup, _gains_pull
)


def _mix(x: Tensor, r: Tensor, m: Tensor, logits: Tensor) -> Tensor:
    x, r, m, logits = (tensor.contiguous() for tensor in (x, r, m, logits))
    out = torch.empty_like(x)
    with device_of(x):
        _mix_forward[(triton.cdiv(x.numel(), 1024),)](x, r, m, logits, out, x.numel(), 1024)
    return out


def _mix_grad(r: Tensor, m: Tensor, logits: Tensor, dout: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    r, m, logits, dout = (tensor.contiguous() for tensor in (r, m, logits, dout))
    grads = torch.empty_like(r), torch.empty_like(m), torch.empty_like(logits)
    with device_of(r):
        _mix_backward[(triton.cdiv(r.numel(), 1024),)](r, m, logits, dout, *grads, r.numel(), 1024)
    return grads


def _fake_mix(x, r, m, logits):
    return x.new_empty(x.shape)


def _fake_mix_grad(r, m, logits, dout):
    return r.new_empty(r.shape), m.new_empty(m.shape), logits.new_empty(logits.shape)


def _mix_setup(ctx, inputs, _):
    ctx.save_for_backward(*inputs[1:])


def _mix_pull(ctx, dout):
    return dout, *_mix_gradient(*ctx.saved_tensors, dout)


_mix_gradient = Operator("channel_gate_backward", _mix_grad, _fake_mix_grad)
channel_gate = differentiable(Operator("channel_gate", _mix, _fake_mix), _mix_setup, _mix_pull)
