"""Linear maps on a GPU: products by the library, sums over tokens by the kernel in `triton`."""

# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable

from groundthink.ops.fused import device_of, processors, traced
from groundthink.ops.later import aside, settled
from groundthink.ops.linear.triton import _outer
from groundthink.ops.shares import total

ROWS, TILE, STAGES = 64, 128, 4
MOST = 16
"""Tiles of a launch; the library needs no help with more, or with a single pair."""


def outer(pairs: Sequence[tuple[Tensor, Tensor]], dtype: torch.dtype) -> list[Tensor]:
    """The sums ``a^T b`` over tokens of pairs a [n, M] and b [n, N], one after the other.

    They are gradients of weights (`ops.later`), and summed in fp32.
    """
    jobs, tiles = _jobs(pairs)
    first, sizes = pairs[0][0], [a.shape[1] * b.shape[1] for a, b in pairs]
    alone = not jobs or tiles > MOST or len(pairs) == 1
    flat = torch.empty(sum(sizes), dtype=first.dtype if alone else dtype, device=first.device)
    sums = [
        s.view(a.shape[1], b.shape[1]) for s, (a, b) in zip(flat.split(sizes), pairs, strict=True)
    ]
    with device_of(first), aside(*(t for pair in pairs for t in pair)):
        if alone:
            for (a, b), out in zip(pairs, sums, strict=True):
                torch.mm(a.t(), b, out=out)
        else:
            _launch(pairs, jobs, tiles, flat)
    if flat.dtype == dtype:
        return sums
    settled()
    return [out.to(dtype) for out in sums]


def _launch(pairs: Sequence[tuple[Tensor, Tensor]], jobs: tuple, tiles: int, out: Tensor) -> None:
    first = pairs[0][0]
    n, size = len(first), out.numel()
    some = max(1, min(triton.cdiv(n, 2 * ROWS), processors(first.device) // tiles))
    shares = torch.empty(some, size, dtype=torch.float32, device=first.device)
    _outer[(some, tiles)](
        tuple(a for a, _ in pairs), tuple(b for _, b in pairs), shares, n,
        JOBS=jobs, SIZE=size, ROWS=ROWS, TILE=TILE, STAGES=STAGES, num_warps=8,
    )  # fmt: skip
    total(shares, out)


def _jobs(pairs: Sequence[tuple[Tensor, Tensor]]) -> tuple[tuple[tuple[int, ...], ...], int]:
    """What the kernel is told of each pair, or nothing if it does not take them; and the tiles."""
    jobs, tiles, size = [], 0, 0
    for a, b in pairs:
        height, width = a.shape[1], b.shape[1]
        numbers = a.stride(0), b.stride(0), height, width
        if not _fits(a, b, numbers):
            return (), 0
        jobs.append((*(number // 8 for number in numbers), tiles, size // 8))
        tiles += triton.cdiv(height, TILE) * triton.cdiv(width, TILE)
        size += height * width
    return tuple(jobs), tiles


def _fits(a: Tensor, b: Tensor, numbers: tuple[int, ...]) -> bool:
    """Whether the kernel takes a pair: half precision, in steps of sixteen bytes."""
    return (
        a.dtype == b.dtype
        and a.dtype in (torch.bfloat16, torch.float16)
        and a.stride(1) == b.stride(1) == 1
        and not any(number % 8 for number in numbers)
        and not any(t.data_ptr() % 16 for t in (a, b))
    )


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor) -> Tensor:
        flat, ctx.dtype = x.flatten(0, -2), weight.dtype
        weight = weight.to(x.dtype)
        ctx.save_for_backward(flat, weight)
        return (flat @ weight.t()).view(*x.shape[:-1], len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx, dy: Tensor):
        flat, weight = ctx.saved_tensors
        dout = dy.flatten(0, -2)
        (dweight,) = outer([(dout, flat)], ctx.dtype)
        return (dout @ weight).view(*dy.shape[:-1], weight.shape[1]), dweight


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """`groundthink.ops.linear.linear`."""
    if traced((x, weight)) or not torch.is_grad_enabled():
        return F.linear(x, weight.to(x.dtype))
    return _Linear.apply(x, weight)  # pyright: ignore
