"""Sums over tokens of outer products as a Triton kernel: the gradients of weights.

The matrices are small and the tokens many, so that each program takes some of the tokens. Several
sums share a launch: one alone has too few tiles to hide its loads.
"""

from __future__ import annotations

import triton
import triton.language as tl

from groundthink.ops.launching import kernel


@triton.jit
def _of(JOBS: tl.constexpr, job, field: tl.constexpr):
    """A number of the job."""
    number = tl.full((), JOBS[0][field], tl.int32)
    for j in tl.static_range(1, len(JOBS)):
        number = tl.where(job == j, JOBS[j][field], number)
    return number


@kernel(do_not_specialize=["n"])
def _outer(
    a,
    b,
    shares_ptr,
    n,
    JOBS: tl.constexpr,
    SIZE: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Share of the sums a_j^T b_j [M, N] of all jobs j, one after the other in a row of SIZE.

    a, b: pointers; JOBS: of each job the distances between rows of a and b, M and N, multiples of
    eight; its first tile; and where its sum begins.
    """
    tile, share = tl.program_id(1), tl.program_id(0)
    a_ptr, b_ptr, job = a[0], b[0], 0
    for j in tl.static_range(1, len(JOBS)):
        if tile >= JOBS[j][4]:
            a_ptr = a[j]
            b_ptr = b[j]
            job = j
    a_ptr, b_ptr = tl.multiple_of(a_ptr, 16), tl.multiple_of(b_ptr, 16)
    a_step = tl.multiple_of(_of(JOBS, job, 0), 8)
    b_step = tl.multiple_of(_of(JOBS, job, 1), 8)
    height = tl.multiple_of(_of(JOBS, job, 2), 8)
    width = tl.multiple_of(_of(JOBS, job, 3), 8)
    tile -= _of(JOBS, job, 4)
    across = tl.cdiv(width, TILE)
    down = (tile // across) * TILE + tl.arange(0, TILE)
    right = (tile % across) * TILE + tl.arange(0, TILE)
    total = tl.zeros((TILE, TILE), tl.float32)
    for i in tl.range(share, tl.cdiv(n, ROWS), tl.num_programs(0), num_stages=STAGES):
        row = i * ROWS + tl.arange(0, ROWS)[:, None]
        at = row.to(tl.int64) * a_step + down[None, :]
        x = tl.load(a_ptr + at, (row < n) & (down < height)[None, :], 0)
        at = row.to(tl.int64) * b_step + right[None, :]
        y = tl.load(b_ptr + at, (row < n) & (right < width)[None, :], 0)
        total = tl.dot(tl.trans(x), y, total)
    at = shares_ptr + share.to(tl.int64) * SIZE + tl.multiple_of(_of(JOBS, job, 5), 8)
    at += down[:, None] * width + right[None, :]
    tl.store(at, total, (down < height)[:, None] & (right < width)[None, :])
