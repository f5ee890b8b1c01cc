"""Sums over tokens of outer products on a GPU: how the kernel in `triton` is launched."""

# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
from torch import Tensor

from groundthink.ops.fused import device_of, processors
from groundthink.ops.outer.triton import _outer
from groundthink.ops.shares import total

ROWS, TILE, STAGES = 64, 128, 4
MOST = 16
"""Tiles of a launch; the library needs no help with more, or with a single pair."""


def outer(pairs: Sequence[tuple[Tensor, Tensor]], dtype: torch.dtype) -> list[Tensor]:
    """The sums ``a^T b`` over tokens of pairs a [n, M] and b [n, N], one after the other.

    They are summed in fp32, and rounded to `dtype` once where the kernel takes all of them.
    """
    first, sizes = pairs[0][0], [a.shape[1] * b.shape[1] for a, b in pairs]
    tiles = [triton.cdiv(a.shape[1], TILE) * triton.cdiv(b.shape[1], TILE) for a, b in pairs]
    if len(pairs) == 1 or sum(tiles) > MOST or not all(_fits(a, b) for a, b in pairs):
        return [(a.t() @ b).to(dtype) for a, b in pairs]
    some = max(1, min(triton.cdiv(len(first), 2 * ROWS), processors(first.device) // sum(tiles)))
    jobs = tuple(
        (a.stride(0), b.stride(0), a.shape[1], b.shape[1], sum(tiles[:i]), sum(sizes[:i]))
        for i, (a, b) in enumerate(pairs)
    )
    shares = torch.empty(some, sum(sizes), dtype=torch.float32, device=first.device)
    flat = torch.empty(sum(sizes), dtype=dtype, device=first.device)
    with device_of(first):
        _outer[(some, sum(tiles))](
            tuple(a for a, _ in pairs), tuple(b for _, b in pairs), shares, len(first),
            JOBS=jobs, SIZE=sum(sizes), ROWS=ROWS, TILE=TILE, STAGES=STAGES, num_warps=8,
        )  # fmt: skip
        total(shares, flat)
    sums = zip(flat.split(sizes), pairs, strict=True)
    return [s.view(a.shape[1], b.shape[1]) for s, (a, b) in sums]


def _fits(a: Tensor, b: Tensor) -> bool:
    """Whether the kernel takes a pair: half precision, in steps of sixteen bytes."""
    numbers = a.stride(0), b.stride(0), a.shape[1], b.shape[1]
    return (
        a.dtype == b.dtype
        and a.dtype in (torch.bfloat16, torch.float16)
        and a.stride(1) == b.stride(1) == 1
        and not any(number % 8 for number in numbers)
        and not any(t.data_ptr() % 16 for t in (a, b))
    )
