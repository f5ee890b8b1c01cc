"""The short convolution on a GPU: how the kernels in `triton` are launched, and the gradients."""

# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable

from groundthink.ops.conv.triton import _backward, _forward
from groundthink.ops.fused import Operator, device_of, differentiable, flags, rows, traced
from groundthink.ops.memory import aligned, in_a_column, joined, padded
from groundthink.ops.outer.launch import outer
from groundthink.ops.shares import total

BLOCK = 128
"""Channels of a program: four for each thread of a warp."""
PROGRAMS = 2048
"""Programs that fill the machine."""


def _stretch(batch: int, steps: int, blocks: int) -> int:
    """Tokens of a program: as many as leave it filled, between 8 and 128."""
    stretch = 8
    while stretch < 128 and stretch < steps and batch * steps * blocks > 2 * PROGRAMS * stretch:
        stretch *= 2
    return stretch


def _run(
    x: Tensor,
    dt: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    dt_bias: Tensor | None,
    window: Tensor,
    reset: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """silu(conv(x)), the step sizes (empty without dt), and the window after."""
    batch, steps, size = x.shape
    heads = 0 if dt is None else dt.shape[-1]
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    sizes = torch.empty(batch, steps, heads, dtype=torch.float32, device=x.device)
    final = torch.empty(window.shape, dtype=window.dtype, device=x.device)
    x, x_step, x_unit = rows(x)
    dt, dt_step, dt_unit = (None, 0, 1) if dt is None else rows(dt)
    blocks = triton.cdiv(size, BLOCK)
    stretch = _stretch(batch, steps, blocks)
    with device_of(x):
        _forward[(batch * triton.cdiv(steps, stretch), blocks + triton.cdiv(heads, 32))](
            x, dt, weight.contiguous(), bias, dt_bias, window.contiguous(), flags(reset),
            y, sizes, final, steps, stretch, x_step, dt_step,
            size, heads, weight.shape[1], x_unit, dt_unit, BLOCK, blocks, num_warps=1,
        )  # fmt: skip
    return y, sizes, final


def _grad(
    x: Tensor,
    dt: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    dt_bias: Tensor | None,
    window: Tensor,
    reset: Tensor | None,
    dy: Tensor,
    dsizes: Tensor | None,
    dfinal: Tensor | None,
    together: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, dt, the window, and of [weight, bias, dt_bias] in a row, in fp32.

    Those of x and dt are parts of the same aligned rows if they are to be `together`, with zeros
    behind them.
    """
    batch, steps, size = x.shape
    heads = 0 if dt is None else dt.shape[-1]
    width = weight.shape[1]
    kind = x.dtype if dt is None else dt.dtype
    room = heads
    if together and kind == x.dtype:
        room = aligned(size + heads) - size
        both = torch.empty(batch, steps, size + room, dtype=kind, device=x.device)
        dx, ddt = both[..., :size], both[..., size : size + heads]
    else:
        dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        ddt = torch.empty(batch, steps, heads, dtype=kind, device=x.device)
    dwindow = torch.empty(window.shape, dtype=window.dtype, device=x.device)
    x, x_step, x_unit = rows(x)
    dt, dt_step, dt_unit = (None, 0, 1) if dt is None else rows(dt)
    dy, dy_step, dy_unit = rows(dy)
    blocks = triton.cdiv(size, BLOCK)
    stretch = _stretch(batch, steps, blocks)
    some = batch * triton.cdiv(steps, stretch)
    shares = torch.empty(some, size * (width + 1) + heads, dtype=torch.float32, device=x.device)
    with device_of(x):
        _backward[(some, blocks + triton.cdiv(room, 32))](
            x, dt, weight.contiguous(), bias, dt_bias, window.contiguous(), flags(reset),
            dy, None if dsizes is None else dsizes.contiguous(),
            None if dfinal is None else dfinal.contiguous(), dx, ddt, dwindow, shares,
            steps, stretch, x_step, dt_step, dy_step, size, heads, room, width, x_unit, dt_unit,
            dy_unit, dx.stride(1), ddt.stride(1), BLOCK, blocks, num_warps=1,
        )  # fmt: skip
    return dx, ddt, dwindow, total(shares)


def _fake(x, dt, weight, bias, dt_bias, window, reset):
    heads = 0 if dt is None else dt.shape[-1]
    sizes = torch.empty(*x.shape[:2], heads, dtype=torch.float32, device=x.device)
    return x.new_empty(x.shape), sizes, window.new_empty(window.shape)


def _fake_grad(x, dt, weight, bias, dt_bias, window, reset, dy, dsizes, dfinal, together=False):
    ddt = x.new_empty(*x.shape[:2], 0) if dt is None else dt.new_empty(dt.shape)
    sums = torch.empty(
        weight.numel() + bias.numel() + ddt.shape[-1], dtype=torch.float32, device=x.device
    )
    return x.new_empty(x.shape), ddt, window.new_empty(window.shape), sums


def _setup(ctx, inputs, _):
    ctx.save_for_backward(*inputs)


def _pull(ctx, dy, dsizes, dfinal):
    saved = ctx.saved_tensors  # once: a checkpoint makes them anew each time
    x, dt, weight, bias, dt_bias, window, reset = saved
    if dy is None:
        dy = torch.zeros(x.shape, dtype=x.dtype, device=x.device)
    if dt is not None and dsizes is None:
        dsizes = torch.zeros(dt.shape, dtype=torch.float32, device=x.device)
    together = dt is not None and not traced(saved)
    dx, ddt, dwindow, sums = _gradient(*saved, dy, dsizes, dfinal, together)
    dweight, dbias, dt_sum = sums.split((weight.numel(), bias.numel(), ddt.shape[-1]))
    return (
        dx,
        None if dt is None else ddt,
        dweight.view(weight.shape).to(weight.dtype),
        dbias.to(bias.dtype),
        None if dt_bias is None else dt_sum.to(dt_bias.dtype),
        dwindow,
        None,
    )


_gradient = Operator("conv_silu_backward", _grad, _fake_grad)
_conv = differentiable(Operator("conv_silu", _run, _fake), _setup, _pull)


def conv_silu(
    x: Tensor, weight: Tensor, bias: Tensor, window: Tensor, reset: Tensor | None
) -> tuple[Tensor, Tensor]:
    """`groundthink.ops.conv.conv_silu`."""
    y, _, window = _conv(x, None, weight, bias, None, window, reset)
    return y, window


def conv_silu_dt(
    x: Tensor,
    dt: Tensor,
    weight: Tensor,
    bias: Tensor,
    dt_bias: Tensor,
    window: Tensor,
    reset: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """`groundthink.ops.conv.conv_silu_dt`."""
    return _conv(x, dt, weight, bias, dt_bias, window, reset)


class _Parts(torch.autograd.Function):
    """One product x w^T, in parts; backward the second and third come in the same rows.

    The weight has rows of zeros up to a multiple of eight: products of other widths are slow.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, sizes: tuple[int, ...]):
        flat, ctx.sizes, ctx.dtype = x.flatten(0, -2), sizes, weight.dtype
        weight = padded(weight, sizes[0] + aligned(sum(sizes[1:])), x.dtype)
        ctx.save_for_backward(flat, weight)
        room = (flat @ weight.t()).view(*x.shape[:-1], len(weight))
        return room[..., : sum(sizes)].split(sizes, dim=-1)

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads: Tensor):
        flat, weight = ctx.saved_tensors
        first, second, third = (grad.flatten(0, -2) for grad in grads)
        rest, start = joined(second, third), ctx.sizes[0]
        dweights = outer([(first, flat), (rest, flat)], ctx.dtype)
        dx = torch.mm(first, weight[:start]).addmm_(rest, weight[start:])
        dweight = in_a_column(dweights)[: sum(ctx.sizes)]
        return dx.view(*grads[0].shape[:-1], weight.shape[1]), dweight, None


def parts(x: Tensor, weight: Tensor, sizes: tuple[int, int, int]) -> tuple[Tensor, ...]:
    """`groundthink.ops.conv.parts`."""
    if traced((x, weight)):
        return F.linear(x, weight.to(x.dtype)).split(sizes, dim=-1)
    return _Parts.apply(x, weight, sizes)  # pyright: ignore
