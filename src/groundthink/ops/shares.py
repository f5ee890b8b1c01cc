"""The last launch of a gradient: adds what each program summed up, always in the same order."""

# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from groundthink.ops.fused import device_of
from groundthink.ops.later import left
from groundthink.ops.launching import kernel


@kernel
def _total(shares_ptr, out_ptr, n, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for first in range(0, n, ROWS):
        row = first + tl.arange(0, ROWS)[:, None]
        at = shares_ptr + row.to(tl.int64) * width + column
        total += tl.load(at, (row < n) & (column < width), 0)
    total = tl.sum(total, axis=0)[None, :].to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + column, total, column < width)


@kernel(do_not_specialize=["heights", "widths", "firsts"])
def _totals(
    shares, outs, heights, widths, firsts,
    COUNT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """`_total` of several shares [height, width], each from program `first` on."""
    program = tl.program_id(0)
    shares_ptr, out_ptr = shares[0], outs[0]
    n, width, first = heights[0], widths[0], firsts[0]
    for i in tl.static_range(1, COUNT):
        if program >= firsts[i]:
            shares_ptr = shares[i]
            out_ptr = outs[i]
            n = heights[i]
            width = widths[i]
            first = firsts[i]
    column = (program - first) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for top in range(0, n, ROWS):
        row = top + tl.arange(0, ROWS)[:, None]
        at = shares_ptr + row.to(tl.int64) * width + column
        total += tl.load(at, (row < n) & (column < width), 0)
    tl.store(out_ptr + column, tl.sum(total, axis=0)[None, :], column < width)


def _launch(some: list[tuple[Tensor, Tensor]]) -> None:
    """Each sum of shares in its memory."""
    shares, outs = zip(*some, strict=True)
    heights, widths = tuple(len(s) for s in shares), tuple(out.numel() for out in outs)
    firsts, programs = [], 0
    for width in widths:
        firsts.append(programs)
        programs += triton.cdiv(width, COLUMNS)
    with device_of(shares[0]):
        _totals[(programs,)](
            shares, outs, heights, widths, tuple(firsts),
            COUNT=len(some), ROWS=128, COLUMNS=COLUMNS, num_warps=8,
        )  # fmt: skip


COLUMNS = 32
"""Of a program of several sums."""


def gradient(shares: Tensor, *parameters: Tensor | None) -> Tensor:
    """`total` for the gradient of `parameters`, where they can wait at the end of the pass."""
    out = left(shares, parameters, _launch)
    return total(shares) if out is None else out


def total(shares: Tensor, out: Tensor | None = None) -> Tensor:
    """Shares [P, ...] of P programs, in fp32, to their sum [...], in `out` if it is given."""
    n, width = shares.shape[0], shares.shape[1:].numel()
    if out is None:
        out = torch.empty(shares.shape[1:], dtype=shares.dtype, device=shares.device)
    tall = min(256, triton.next_power_of_2(max(n, 1)))
    columns = max(32, 2048 // tall)
    with device_of(shares):
        _total[(triton.cdiv(width, columns),)](
            shares, out, n, width, tall, columns, num_warps=8 if tall > 64 else 4
        )
    return out
