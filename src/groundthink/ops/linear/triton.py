"""Sums over tokens of outer products as a Triton kernel: the gradients of weights.

The matrices are small and the tokens many, so that each program takes some of the tokens. Several
sums share a launch: one alone has too few tiles to hide its loads.
"""

from __future__ import annotations

import triton.language as tl

from groundthink.ops.launching import kernel


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

    a, b: pointers; JOBS: of each job the distances between rows of a and b, M and N, all in units
    of eight elements, its first tile, and where its sum begins, in the same units.
    """
    tile = tl.program_id(1)
    share = tl.program_id(0)
    a_ptr, b_ptr = a[0], b[0]
    later = tile < 0
    a_step = tl.where(later, 0, JOBS[0][0])
    b_step = tl.where(later, 0, JOBS[0][1])
    height = tl.where(later, 0, JOBS[0][2])
    width = tl.where(later, 0, JOBS[0][3])
    first = tl.where(later, 0, JOBS[0][4])
    offset = tl.where(later, 0, JOBS[0][5])
    for j in tl.static_range(1, len(JOBS)):
        later = tile >= JOBS[j][4]
        if later:
            a_ptr = a[j]
            b_ptr = b[j]
        a_step = tl.where(later, JOBS[j][0], a_step)
        b_step = tl.where(later, JOBS[j][1], b_step)
        height = tl.where(later, JOBS[j][2], height)
        width = tl.where(later, JOBS[j][3], width)
        first = tl.where(later, JOBS[j][4], first)
        offset = tl.where(later, JOBS[j][5], offset)
    across = tl.cdiv(width * 8, TILE)
    down = ((tile - first) // across) * TILE + tl.arange(0, TILE)
    right = ((tile - first) % across) * TILE + tl.arange(0, TILE)
    a_ptr = tl.multiple_of(a_ptr, 16)
    b_ptr = tl.multiple_of(b_ptr, 16)
    total = tl.zeros((TILE, TILE), tl.float32)
    for i in tl.range(share, tl.cdiv(n, ROWS), tl.num_programs(0), num_stages=STAGES):
        row = i * ROWS + tl.arange(0, ROWS)[:, None]
        at = row.to(tl.int64) * (a_step * 8) + down[None, :]
        x = tl.load(a_ptr + at, (row < n) & (down < height * 8)[None, :], 0)
        at = row.to(tl.int64) * (b_step * 8) + right[None, :]
        y = tl.load(b_ptr + at, (row < n) & (right < width * 8)[None, :], 0)
        total = tl.dot(tl.trans(x), y, total)
    at = shares_ptr + share.to(tl.int64) * SIZE + offset * 8
    at += down[:, None] * (width * 8) + right[None, :]
    tl.store(at, total, (down < height * 8)[:, None] & (right < width * 8)[None, :])
