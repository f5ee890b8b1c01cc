"""The last launch of a gradient: adds what each program summed up, always in the same order."""

# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from groundthink.ops.fused import device_of
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


TOGETHER = 16
"""Sums that share a launch."""


class Sums:
    """Sums over programs that are left for the end of a backward pass, to share launches."""

    def __init__(self):
        self.pending: list[tuple[Tensor, Tensor]] = []

    def finish(self, parameters: Iterable[Tensor]) -> None:
        """Compute them, in the memory of the gradients of the parameters.

        Autograd copies the gradient of a parameter that has several, before there is one here.
        """
        memory = {p.grad.untyped_storage().data_ptr() for p in parameters if p.grad is not None}
        assert all(out.untyped_storage().data_ptr() in memory for _, out in self.pending)
        while self.pending:
            some, self.pending = self.pending[:TOGETHER], self.pending[TOGETHER:]
            self._launch(some)

    def _launch(self, some: list[tuple[Tensor, Tensor]]) -> None:
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
_sums: Sums | None = None


@contextlib.contextmanager
def gathered(parameters: Iterable[Tensor]) -> Iterator[None]:
    """Within it, sums that are gradients of parameters are computed at the end.

    The parameters have no gradients yet, and none of those sums has more than one use.
    """
    global _sums
    _sums = sums = Sums()
    try:
        yield
    finally:
        _sums = None
    sums.finish(parameters)


def gradient(shares: Tensor, *parameters: Tensor | None) -> Tensor:
    """`total` for the gradient of `parameters`, computed at the end of the pass if `gathered`.

    Not so if one of them is not in fp32: its gradient will be cast before.
    """
    given = [p for p in parameters if p is not None]
    if _sums is None or any(p.dtype != torch.float32 for p in given):
        return total(shares)
    out = torch.empty(shares.shape[1:], dtype=torch.float32, device=shares.device)
    _sums.pending.append((shares, out.view_as(out)))  # autograd copies what somebody else holds
    return out


def total(shares: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Shares [P, ...] of P programs, in fp32, to their sum [...]."""
    n, width = shares.shape[0], shares.shape[1:].numel()
    out = torch.empty(shares.shape[1:], dtype=dtype, device=shares.device)
    tall = min(256, triton.next_power_of_2(max(n, 1)))
    columns = max(32, 2048 // tall)
    with device_of(shares):
        _total[(triton.cdiv(width, columns),)](
            shares, out, n, width, tall, columns, num_warps=8 if tall > 64 else 4
        )
    return out
