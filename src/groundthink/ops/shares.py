"""The last launch of a gradient: adds what each program summed up, always in the same order."""

# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

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
