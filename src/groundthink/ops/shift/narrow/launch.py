"""The data-dependent token shift of narrow models: how its kernels are launched."""

# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import torch
import triton
from torch import Tensor

from groundthink.ops.fused import device_of, flags, processors
from groundthink.ops.linear.launch import outer
from groundthink.ops.memory import in_a_column
from groundthink.ops.shares import gradient
from groundthink.ops.shift.narrow.triton import _backward, _decay_backward, _forward, _unshift

WIDEST, HIGHEST = 128, 64
"""Channels and ranks that a program holds."""
FORWARD = {"ROWS": 64, "STAGES": 2, "num_warps": 8}
BACKWARD = {"ROWS": 32, "STAGES": 2, "num_warps": 4}
"""Tokens of a tile, blends in flight, warps."""
DECAY = {"ROWS": 64, "STAGES": 2, "num_warps": 8}
ROWS = 16
"""Tokens of a tile of the last kernel."""
FEW = 512
"""Tokens up to which every blend has programs of its own: together they fill no machine."""


def fits(x: Tensor, rank: int) -> bool:
    """Whether the kernels take the input: few channels, in half precision."""
    return x.shape[-1] <= WIDEST and rank <= HIGHEST and x.dtype in (torch.bfloat16, torch.float16)


def _pads(size: int, rank: int) -> tuple[int, int]:
    return max(16, triton.next_power_of_2(size)), max(16, triton.next_power_of_2(rank))


def run(
    x: Tensor,
    last: Tensor,
    maa_x: Tensor,
    w1: Tensor,
    w2: Tensor,
    maa: Tensor,
    reset: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The five blends, the last token, and the hidden units for the gradient."""
    batch, steps, size = x.shape
    rank, n = w2.shape[1], batch * steps
    x, last = x.contiguous(), last.contiguous()
    first, final = torch.empty_like(x), torch.empty_like(last)
    rest = torch.empty((4, *x.shape), dtype=x.dtype, device=x.device)
    hidden = torch.empty(n, 5 * rank, dtype=x.dtype, device=x.device)
    blends = 5 if n > FEW else 1
    pad, units = _pads(size, rank)
    with device_of(x):
        _forward[(triton.cdiv(n, FORWARD["ROWS"]), 5 // blends)](
            x, last, flags(reset), maa_x, w1.contiguous(), w2.contiguous(), maa.contiguous(),
            hidden, first, rest, final, n, steps,
            SIZE=size, RANK=rank, PAD=pad, UNITS=units, BLENDS=blends, **FORWARD,
        )  # fmt: skip
    return first, rest, final, hidden


def grad(
    x: Tensor,
    last: Tensor,
    maa_x: Tensor,
    w1: Tensor,
    w2: Tensor,
    maa: Tensor,
    reset: Tensor | None,
    hidden: Tensor,
    dfirst: Tensor,
    drest: Tensor,
    dfinal: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, last and w1, and of w2 and [maa, maa_x] by rows, in fp32."""
    batch, steps, size = x.shape
    rank, n = w2.shape[1], batch * steps
    x, last, reset = x.contiguous(), last.contiguous(), flags(reset)
    mixed, direct, through, dx = (torch.empty_like(x) for _ in range(4))
    dlast, dhidden = torch.empty_like(last), torch.empty_like(hidden)
    dblend = torch.empty(5, n, size, dtype=x.dtype, device=x.device)
    some = triton.cdiv(n, BACKWARD["ROWS"])
    shares = torch.empty(some, 6, size, dtype=torch.float32, device=x.device)
    pad, units = _pads(size, rank)
    with device_of(x):
        _backward[(some,)](
            x, last, reset, maa_x, w1.contiguous(), w2.contiguous(), maa.contiguous(), hidden,
            dfirst.contiguous(), drest.contiguous(), mixed, dhidden, dblend, direct, through,
            shares, n, steps, SIZE=size, RANK=rank, PAD=pad, UNITS=units, **BACKWARD,
        )  # fmt: skip
        _unshift[(triton.cdiv(n, ROWS),)](
            reset, direct, through, None if dfinal is None else dfinal.contiguous(), dx, dlast,
            n, steps, size, pad, ROWS, num_warps=4,
        )  # fmt: skip
    (dw1,) = outer([(mixed.view(n, size), dhidden)], w1.dtype)
    dw2 = outer(list(zip(hidden.split(rank, 1), dblend, strict=True)), torch.float32)
    return dx, dlast, dw1, in_a_column(dw2), gradient(shares, maa_x, maa)


def decay_grad(
    x: Tensor, w1: Tensor, w2: Tensor, hidden: Tensor, dout: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of x, and of [w2, bias, w1] in a row, in fp32."""
    (size, rank), width = w1.shape, w2.shape[1]
    x, dout, n = x.contiguous(), dout.contiguous(), x.shape[:-1].numel()
    dx = torch.empty_like(x)
    some = min(triton.cdiv(n, DECAY["ROWS"]), processors(x.device))
    columns = (rank + 1) * width + rank * size
    shares = torch.empty(some, columns, dtype=torch.float32, device=x.device)
    (across, units), (along, _) = _pads(size, rank), _pads(width, rank)
    with device_of(x):
        _decay_backward[(some,)](
            x, w1.contiguous(), w2.contiguous(), hidden, dout, dx, shares, n, SIZE=size,
            WIDTH=width, RANK=rank, ACROSS=across, ALONG=along, UNITS=units, **DECAY,
        )  # fmt: skip
    return dx, gradient(shares, w1, w2)
