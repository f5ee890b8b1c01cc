"""The data-dependent token shift on a GPU: how its kernels are launched, and the gradients."""

# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable

from groundthink.ops.fused import Operator, device_of, differentiable, flags, processors, traced
from groundthink.ops.memory import stacked
from groundthink.ops.outer.launch import outer
from groundthink.ops.shares import total
from groundthink.ops.shift.triton import (
    _decay,
    _decay_backward,
    _decay_weights,
    _lerp,
    _lerp_backward,
    _low_rank_backward,
    _premix,
    _shift_backward,
)

ROWS, COLUMNS = 64, 64
"""Of a tile of the kernels with products."""
TILE, BACK = 2048, 512
"""Elements of a tile of the others, forward and backward."""
FEW = 512
"""Tokens up to which every blend has programs of its own: together they fill no machine."""
FILL = 32
"""Warps a multiprocessor that share the rows in the last kernel of the gradient."""
LOW_RANK = 128
"""Columns of a tile in the gradient of the low-rank weights; as wide as x it needs no sum."""
SHARERS = 4
"""Programs a multiprocessor that share the rows there, or twice as many."""


def _run(
    x: Tensor,
    last: Tensor,
    maa_x: Tensor,
    w1: Tensor,
    w2: Tensor,
    maa: Tensor,
    reset: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The five blends, the last token, and for the gradient the premix and its product with w1."""
    batch, steps, size = x.shape
    rank = w2.shape[1]
    x, last, n = x.contiguous(), last.contiguous(), batch * steps
    reset = flags(reset)
    mixed, first, final = torch.empty_like(x), torch.empty_like(x), torch.empty_like(last)
    rest = torch.empty((4, *x.shape), dtype=x.dtype, device=x.device)
    across, pad = triton.cdiv(size, COLUMNS), max(16, triton.next_power_of_2(rank))
    tall, blends = TILE // COLUMNS, 5 if n > FEW else 1
    with device_of(x):
        _premix[(triton.cdiv(n, tall), across)](
            x, last, maa_x, reset, mixed, final, n, steps, size, tall, COLUMNS, num_warps=4
        )
        hidden = torch.tanh_(mixed.view(n, size) @ w1.to(x.dtype))
        _lerp[(triton.cdiv(n, ROWS), across, 5 // blends)](
            x, last, reset, hidden, w2.contiguous(), maa.contiguous(), first, rest, n, steps,
            size, rank, pad, ROWS, COLUMNS, blends, num_warps=8, num_stages=1,
        )  # fmt: skip
    return first, rest, final, mixed, hidden


def _grad(
    x: Tensor,
    last: Tensor,
    maa_x: Tensor,
    w1: Tensor,
    w2: Tensor,
    maa: Tensor,
    reset: Tensor | None,
    mixed: Tensor,
    hidden: Tensor,
    dfirst: Tensor,
    drest: Tensor,
    dfinal: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, last, maa_x and w1, and of [w2, maa] by rows [5 R + 5, C], in fp32."""
    batch, steps, size = x.shape
    rank = w2.shape[1]
    x, last, n = x.contiguous(), last.contiguous(), batch * steps
    reset = flags(reset)
    across, pad = triton.cdiv(size, COLUMNS), max(16, triton.next_power_of_2(rank))
    direct, through, dx = torch.empty_like(x), torch.empty_like(x), torch.empty_like(x)
    dlast = torch.empty_like(last)
    wide = triton.cdiv(size, LOW_RANK)
    dhidden = torch.empty(wide, *hidden.shape, dtype=x.dtype, device=x.device)
    sharers = processors(x.device) * SHARERS * (1 if wide == 1 else 2)
    some = min(triton.cdiv(n, ROWS), triton.cdiv(sharers, wide * 5))
    shares = torch.empty(some, 5 * rank + 5, size, dtype=torch.float32, device=x.device)
    w2, maa = w2.contiguous(), maa.contiguous()
    dfirst, drest = dfirst.contiguous(), drest.contiguous()
    tall = BACK // COLUMNS
    few = min(triton.cdiv(n, tall), triton.cdiv(processors(x.device) * FILL // 4, across))
    dmaa_x = torch.empty(few, size, dtype=torch.float32, device=x.device)
    with device_of(x):
        _lerp_backward[(triton.cdiv(n, ROWS), across)](
            hidden, w2, maa, dfirst, drest, direct, through, n,
            size, rank, pad, ROWS, COLUMNS, num_warps=4, num_stages=1,
        )  # fmt: skip
        _low_rank_backward[(5 * some, wide)](
            x, last, reset, hidden, w2, dfirst, drest, dhidden, shares, n, steps,
            size, rank, pad, ROWS, LOW_RANK, num_warps=8, num_stages=1,
            maxnreg=None if x.dtype == torch.float32 else 128,  # two programs a multiprocessor
        )  # fmt: skip
        dhidden = dhidden.sum(0) if wide > 1 else dhidden[0]
        dmixed = dhidden @ w1.to(x.dtype).t()
        dw1 = (mixed.view(n, size).t() @ dhidden).to(w1.dtype)
        _shift_backward[(few, across)](
            x, last, maa_x, reset, direct, through, dmixed,
            None if dfinal is None else dfinal.contiguous(), dx, dlast, dmaa_x, n, steps,
            size, tall, COLUMNS, num_warps=4,
        )  # fmt: skip
    return dx, dlast, total(dmaa_x), dw1, total(shares)


def _fake(x, last, maa_x, w1, w2, maa, reset):
    first, final, mixed = x.new_empty(x.shape), last.new_empty(last.shape), x.new_empty(x.shape)
    hidden = x.new_empty(x.shape[0] * x.shape[1], w1.shape[1])
    return first, x.new_empty(4, *x.shape), final, mixed, hidden


def _fake_grad(x, last, maa_x, w1, w2, maa, reset, mixed, hidden, dfirst, drest, dfinal):
    dmaa_x = torch.empty(maa_x.shape, dtype=torch.float32, device=x.device)
    rows = torch.empty(w1.shape[1] + 5, x.shape[2], dtype=torch.float32, device=x.device)
    return x.new_empty(x.shape), last.new_empty(last.shape), dmaa_x, w1.new_empty(w1.shape), rows


def _setup(ctx, inputs, outputs):
    ctx.save_for_backward(*inputs, *outputs[3:])


def _pull(ctx, dfirst, drest, dfinal, *_):
    saved = ctx.saved_tensors
    x, _, maa_x, w1, w2, maa, *_ = saved
    dfirst = torch.zeros_like(x) if dfirst is None else dfirst
    drest = x.new_zeros(4, *x.shape) if drest is None else drest
    dx, dlast, dmaa_x, dw1, rest = _gradient(*saved, dfirst, drest, dfinal)
    dw2, dmaa = rest.split((w1.shape[1], 5))
    return (
        dx,
        dlast,
        dmaa_x.to(maa_x.dtype),
        dw1,
        dw2.view(w2.shape).to(w2.dtype),
        dmaa.to(maa.dtype),
        None,
    )


_gradient = Operator("ddlerp_backward", _grad, _fake_grad)
_ddlerp = differentiable(Operator("ddlerp", _run, _fake), _setup, _pull)


def ddlerp(
    x: Tensor,
    last: Tensor,
    maa_x: Tensor,
    w1: Tensor,
    w2: Tensor,
    maa: Tensor,
    reset: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """`groundthink.ops.shift.ddlerp`."""
    return _ddlerp(x, last, maa_x, w1, w2, maa, reset)[:3]


def project(
    x: Tensor,
    last: Tensor,
    maa_x: Tensor,
    w1: Tensor,
    w2: Tensor,
    maa: Tensor,
    weights: tuple[Tensor, ...],
    reset: Tensor | None,
) -> tuple[Tensor, ...]:
    """`groundthink.ops.shift.project`: the four products are one batched product."""
    x_w, rest, last = ddlerp(x, last, maa_x, w1, w2, maa, reset)
    if traced((x, *weights)):
        weight = torch.stack(weights).to(x.dtype)
        products = torch.bmm(rest.flatten(1, 2), weight.mT).unbind(0)
    else:
        products = _Products.apply(rest.flatten(1, 2), *weights)  # pyright: ignore
    return x_w, *(y.unflatten(0, x.shape[:2]) for y in products), last


class _Products(torch.autograd.Function):
    """A batch of products x_i w_i^T whose factors and gradients are gathered only if they must be.

    The gradients of k, v and r come from WKV6 in one piece of memory, that of the gate does not.
    """

    @staticmethod
    def forward(ctx, x: Tensor, *weights: Tensor):
        ctx.dtype = weights[0].dtype
        weight = stacked(tuple(weight.to(x.dtype) for weight in weights))
        ctx.save_for_backward(x, weight)
        return torch.bmm(x, weight.mT).unbind(0)

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads: Tensor):
        x, weight = ctx.saved_tensors
        dx = torch.empty_like(x)
        torch.bmm(stacked(grads[:-1]), weight[:-1], out=dx[:-1])
        torch.mm(grads[-1], weight[-1], out=dx[-1])
        return dx, *outer(list(zip(grads, x, strict=True)), ctx.dtype)


def _warps(x: Tensor) -> int:
    """Products in fp32 have no matrix units, and need more registers."""
    return 8 if x.dtype == torch.float32 else 4


def _decay_run(x: Tensor, bias: Tensor, w1: Tensor, w2: Tensor) -> tuple[Tensor, Tensor]:
    """The raw decay in fp32, and the hidden units for the gradient."""
    size, rank = w1.shape
    width = w2.shape[1]
    x, n = x.contiguous(), x.shape[:-1].numel()
    out = torch.empty(*x.shape[:-1], width, dtype=torch.float32, device=x.device)
    hidden = torch.empty(n, rank, dtype=x.dtype, device=x.device)
    tall, columns = (16, 128) if n <= 64 else (64, 64)  # a few tokens: many small programs
    with device_of(x):
        _decay[(triton.cdiv(n, tall), triton.cdiv(width, columns) if n <= 64 else 1)](
            x, bias, w1.contiguous(), w2.contiguous(), hidden, out, n, size, width, rank,
            max(16, triton.next_power_of_2(rank)), tall, columns, num_warps=_warps(x),
        )  # fmt: skip
    return out, hidden


def _decay_grad(
    x: Tensor, w1: Tensor, w2: Tensor, hidden: Tensor, dout: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of x, and of [w2, bias, w1] in a row, in fp32."""
    size, rank = w1.shape
    width = w2.shape[1]
    x, dout, n = x.contiguous(), dout.contiguous(), x.shape[:-1].numel()
    w1, w2 = w1.contiguous(), w2.contiguous()
    dx, dhidden = torch.empty_like(x), torch.empty_like(hidden)
    pad = max(16, triton.next_power_of_2(rank))
    across = triton.cdiv(max(size, width), 64)
    some = min(triton.cdiv(n, 64), triton.cdiv(2 * processors(x.device), across))
    columns = (rank + 1) * width + rank * size
    shares = torch.empty(some, columns, dtype=torch.float32, device=x.device)
    with device_of(x):
        _decay_backward[(triton.cdiv(n, 64),)](
            w1,
            w2,
            hidden,
            dout,
            dhidden,
            dx,
            n,
            size,
            width,
            rank,
            pad,
            64,
            64,
            num_warps=_warps(x),
        )
        _decay_weights[(some, across)](
            x, hidden, dout, dhidden, shares, n, size, width, rank, pad, 64, 64, num_warps=_warps(x)
        )
    return dx, total(shares)


def _fake_decay(x, bias, w1, w2):
    out = torch.empty(*x.shape[:-1], w2.shape[1], dtype=torch.float32, device=x.device)
    return out, x.new_empty(x.shape[:-1].numel(), w1.shape[1])


def _fake_decay_grad(x, w1, w2, hidden, dout):
    columns = w2.numel() + w2.shape[1] + w1.numel()
    return x.new_empty(x.shape), torch.empty(columns, dtype=torch.float32, device=x.device)


def _decay_setup(ctx, inputs, outputs):
    x, bias, w1, w2 = inputs
    ctx.bias = bias.dtype
    ctx.save_for_backward(x, w1, w2, outputs[1])


def _decay_pull(ctx, dout, _):
    saved = ctx.saved_tensors
    _, w1, w2, _ = saved
    dx, sums = _decay_gradient(*saved, dout)
    dw2, dbias, dw1 = sums.split((w2.numel(), w2.shape[1], w1.numel()))
    dw1 = dw1.view(w1.shape)
    return dx, dbias.to(ctx.bias), dw1.to(w1.dtype), dw2.view(w2.shape).to(w2.dtype)


_decay_gradient = Operator("raw_decay_backward", _decay_grad, _fake_decay_grad)
_raw_decay = differentiable(
    Operator("raw_decay", _decay_run, _fake_decay), _decay_setup, _decay_pull
)


def raw_decay(x: Tensor, bias: Tensor, w1: Tensor, w2: Tensor) -> Tensor:
    """`groundthink.ops.shift.raw_decay`."""
    return _raw_decay(x, bias, w1, w2)[0]
