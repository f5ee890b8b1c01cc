"""SSD on a GPU: how the work of the kernels in `triton` is cut and launched, and its gradient.

Eager code calls the launches through an autograd function; compiled code through registered
operators, which are opaque to it.
"""
# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from groundthink.errors import UserError
from groundthink.ops.fused import Operator, after, device_of, differentiable, traced
from groundthink.ops.shares import total
from groundthink.ops.ssd.triton import _between, _output, _scan, _step, _within

PROGRAMS = 264
"""Programs that fill the machine; sequences are cut into segments until there are so many."""
OUTPUTS = 256
"""Programs of the output, at least, where there are so many chunks and heads."""
CELLS = 8192
"""Of the state, that a program keeps in registers from chunk to chunk."""
SHORTEST = 8
"""Chunks in a segment, at least."""
NARROWEST = 64
"""Width of a tile in half precision: narrower ones are compiled to wrong results here and there."""
ROWS = 16
"""Of the state, that a program of a single step works on."""


def ssd_triton(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    state: Tensor | None,
    reset: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The contract of `ssd`, inputs in half precision or fp32 as they come.

    Raises:
        UserError: x or B is in fp64.
    """
    if torch.float64 in (x.dtype, B.dtype):
        raise UserError("ssd backend 'triton' works in fp32 at most; use 'chunked' for fp64")
    common = torch.promote_types(x.dtype, torch.promote_types(B.dtype, C.dtype))
    D, state = (None if t is None else t.float().contiguous() for t in (D, state))
    inputs = x.to(common), dt, A.float().contiguous(), B.to(common), C.to(common), D, state
    keep = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs)
    y, last, _ = _run(*inputs, reset, keep)
    return y.to(x.dtype), last


class _Plan(NamedTuple):
    """How the work is cut, and what all kernels are compiled for."""

    chunks: int
    segment: int
    """Chunks in a segment."""
    segments: int
    meta: dict
    split: dict
    """The same for kernels that take some columns of the state in a program."""
    grid: tuple[int, int, int]
    """Of those kernels: heads, segments, columns."""
    share: int
    """Heads that a program of the output takes a chunk through."""

    @classmethod
    def of(cls, x: Tensor, B: Tensor, reset: Tensor | None) -> _Plan:
        return _plan(*x.shape, *B.shape[-2:], x.dtype, reset is not None)

    def tuning(self, kernel: str) -> dict:
        """Warps and stages of a kernel."""
        if self.meta["EXACT"]:
            return {"num_warps": 8, "num_stages": 1}
        return TUNING[kernel, self.meta["BP"] * self.meta["BN"] > 64 * 64]


@functools.lru_cache(maxsize=256)
def _plan(b: int, t: int, h: int, p: int, g: int, n: int, dtype: torch.dtype, resets: bool):
    chunks, width, height = _chunks(t, dtype), _width(p, dtype), _width(n, dtype)
    tile = min(width, max(16, CELLS // height))
    columns = -(-p // tile)
    segments = max(1, min(PROGRAMS // (b * h * columns), chunks // SHORTEST))
    segment = -(-chunks // segments)
    segments = -(-chunks // segment)
    meta = {
        "R": h // g, "P": p, "N": n, "BP": width, "BN": height, "L": _length(dtype),
        "RESETS": resets, "EXACT": dtype == torch.float32,
    }  # fmt: skip
    grid = b * h, segments, columns
    return _Plan(
        chunks, segment, segments, meta, meta | {"BP": tile}, grid, _share(b * chunks, h, g)
    )


def _share(chunks: int, heads: int, groups: int) -> int:
    """The most heads of a group whose programs are still `OUTPUTS`."""
    shares = [r for r in range(1, heads // groups + 1) if heads // groups % r == 0]
    return max(r for r in shares if r == 1 or chunks * heads // r >= OUTPUTS)


def _tuned(warps: int, stages: int) -> dict:
    return {"num_warps": warps, "num_stages": stages}


TUNING = {
    ("output", False): _tuned(4, 2),
    ("output", True): _tuned(4, 3),
    ("scan", False): _tuned(4, 3),
    ("scan", True): _tuned(4, 3),
    ("between", False): _tuned(4, 3),
    ("between", True): _tuned(8, 3),
    ("within", False): _tuned(4, 2),
    ("within", True): _tuned(4, 2),
}
"""By kernel and whether the state is larger than 64 x 64."""


def _length(dtype: torch.dtype) -> int:
    """Tokens in a chunk."""
    return 16 if dtype == torch.float32 else 64


def _chunks(steps: int, dtype: torch.dtype) -> int:
    return -(-steps // _length(dtype))


def _width(size: int, dtype: torch.dtype) -> int:
    return max(_padded(size), 16 if dtype == torch.float32 else NARROWEST)


def _padded(size: int) -> int:
    """What a matrix product takes: a power of two from 16 on."""
    return max(16, 1 << (size - 1).bit_length())


def _rows(x: Tensor) -> Tensor:
    """x, with the elements of a row next to one another."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _on_its_device(launch: Callable) -> Callable:
    @functools.wraps(launch)
    def call(x, *args):
        with device_of(x):
            return launch(x, *args)

    return call


@_on_its_device
def _launch_forward(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    state: Tensor | None,
    reset: Tensor | None,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """y, the state after, and if `keep` the states before the chunks."""
    b, t, h, p = x.shape
    n = B.shape[-1]
    x, B, C = _rows(x), _rows(B), _rows(C)
    reset = None if reset is None else reset.contiguous()
    y, last = x.new_empty(b, t, h, p), A.new_empty(b, h, p, n)
    if b == 0:
        return y, last, x.new_empty(0)
    if t == 1 and not keep:
        last = after(state, last)
        _launch_step(x, dt, A, B, C, D, state, reset, y, last)
        return y, last, x.new_empty(0)
    plan = _Plan.of(x, B, reset)
    states = x.new_empty(b, plan.chunks, h, n, p)
    ends, kept = _launch_summaries(plan, x, B, dt, A, reset, back=False)
    _scan[plan.grid](
        x, B, dt, A, reset, state, ends, kept, states, last,
        *x.stride()[:3], *B.stride()[:3], *dt.stride(), t, h, plan.chunks, plan.segment,
        **plan.split, BACK=False, SUMMARY=False, FIRST=state is not None, CUT=plan.segments > 1,
        LAST=True, **plan.tuning("scan"),
    )  # fmt: skip
    _output[b * plan.chunks, h // plan.share](
        x, dt, A, B, C, D, reset, states, y,
        *x.stride()[:3], *dt.stride(), *B.stride()[:3], *C.stride()[:3],
        t, h, plan.chunks, plan.share,
        **plan.meta, SKIP=D is not None, **plan.tuning("output"),
    )  # fmt: skip
    return y, last, states if keep else x.new_empty(0)


def _launch_step(x, dt, A, B, C, D, state, reset, y, last):
    b, _, h, p = x.shape
    g, n = B.shape[-2:]
    strides = (s for t in (x, dt, B, C) for s in (t.stride(0), t.stride(2)))
    _step[b * h, -(-p // ROWS)](
        x, dt, A, B, C, D, reset, state, y, last, *strides, h,
        R=h // g, P=p, N=n, ROWS=ROWS, BN=_padded(n),
        RESETS=reset is not None, FIRST=state is not None, SKIP=D is not None,
    )  # fmt: skip


def _launch_summaries(plan, u, v, dt, A, reset, back):
    """What every segment but the last adds to the state, and what it keeps of it."""
    if plan.segments == 1:
        return None, None
    (b, t, h, p), n = u.shape, v.shape[-1]
    ends = A.new_empty(b, h, plan.segments - 1, n, p)
    kept = A.new_empty(b, h, plan.segments - 1)
    _scan[plan.grid[0], plan.segments - 1, plan.grid[2]](
        u, v, dt, A, reset, None, ends, kept, None, None,
        *u.stride()[:3], *v.stride()[:3], *dt.stride(), t, h, plan.chunks, plan.segment,
        **plan.split, BACK=back, SUMMARY=True, FIRST=False, CUT=True, LAST=False,
        **plan.tuning("scan"),
    )  # fmt: skip
    return ends, kept


@_on_its_device
def _launch_backward(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    reset: Tensor | None,
    states: Tensor,
    dy: Tensor | None,
    dlast: Tensor | None,
    want_dfirst: bool,
    together: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, dt, A, B, C, D and, if wanted, of the state before.

    Those of x, B and C are parts of the same rows if they are to be `together`.
    """
    b, t, h, p = x.shape
    g, n = B.shape[-2:]
    x, B, C = _rows(x), _rows(B), _rows(C)
    dy = torch.zeros_like(x, memory_format=torch.contiguous_format) if dy is None else dy
    dy, dlast = dy.contiguous(), None if dlast is None else dlast.contiguous()
    reset = None if reset is None else reset.contiguous()
    dx, dB, dC = _places((x, B, C), together)
    ddt = dt.new_empty(dt.shape)
    dfirst = A.new_empty((b, h, p, n) if want_dfirst else 0)
    if b == 0:
        return dx, ddt, torch.zeros_like(A), dB, dC, torch.zeros_like(A), dfirst
    plan = _Plan.of(x, B, reset)
    dstates = torch.empty_like(states)
    ends, kept = _launch_summaries(plan, dy, C, dt, A, reset, back=True)
    _scan[plan.grid](
        dy, C, dt, A, reset, dlast, ends, kept, dstates, dfirst,
        *dy.stride()[:3], *C.stride()[:3], *dt.stride(), t, h, plan.chunks, plan.segment,
        **plan.split, BACK=True, SUMMARY=False, FIRST=dlast is not None, CUT=plan.segments > 1,
        LAST=want_dfirst, **plan.tuning("scan"),
    )  # fmt: skip
    strides = *x.stride()[:3], *dt.stride(), *B.stride()[:3], *C.stride()[:3]
    between = A.new_empty(b, t, h), A.new_empty(B.shape), A.new_empty(B.shape)
    sums = A.new_empty(b * plan.chunks, 2, h)
    _between[b * plan.chunks, g](
        x, dt, A, B, C, reset, states, dstates, dy, *between, sums,
        *strides, t, h, plan.chunks, **plan.meta, **plan.tuning("between"),
    )  # fmt: skip
    _within[b * plan.chunks, g](
        x, dt, A, B, C, D, reset, dstates, dy, *between, dx, ddt, dB, dC, sums,
        *strides, t, h, plan.chunks, dx.stride(1), dB.stride(1), **plan.meta,
        SKIP=D is not None, **plan.tuning("within"),
    )  # fmt: skip
    dA, dD = total(sums)
    return dx, ddt, dA, dB, dC, dD, dfirst


def _places(tensors: tuple[Tensor, ...], together: bool) -> list[Tensor]:
    """Memory for tensors like these [B, T, ., .], in the same rows if their type allows it."""
    if not together or len({tensor.dtype for tensor in tensors}) > 1:
        return [tensor.new_empty(tensor.shape) for tensor in tensors]
    widths = [tensor.shape[2:].numel() for tensor in tensors]
    rows = tensors[0].new_empty(*tensors[0].shape[:2], sum(widths)).split(widths, dim=-1)
    return [row.unflatten(-1, tensor.shape[2:]) for row, tensor in zip(rows, tensors, strict=True)]


def _setup(ctx, inputs, outputs):
    x, dt, A, B, C, D, _, reset, _ = inputs
    ctx.save_for_backward(x, dt, A, B, C, D, reset, outputs[2])


def _pull_back(ctx, dy, dlast, _):
    dD, dfirst = (ctx.needs_input_grad[i] for i in (5, 6))
    saved = ctx.saved_tensors
    grads = _backward_operator(*saved, dy, dlast, dfirst, not traced(saved))
    return *grads[:5], grads[5] if dD else None, grads[6] if dfirst else None, None, None


def _fake_forward(x, dt, A, B, C, D, state, reset, keep):
    (b, t, h, p), n = x.shape, B.shape[-1]
    states = (b, _chunks(t, x.dtype), h, n, p) if keep else (0,)
    return x.new_empty(b, t, h, p), A.new_empty(b, h, p, n), x.new_empty(states)


def _fake_backward(x, dt, A, B, C, D, reset, states, dy, dlast, want_dfirst, together=False):
    (b, _, h, p), n = x.shape, B.shape[-1]
    grads = (t.new_empty(t.shape) for t in (x, dt, A, B, C, A))
    return *grads, A.new_empty((b, h, p, n) if want_dfirst else (0,))


_run = differentiable(Operator("ssd_triton", _launch_forward, _fake_forward), _setup, _pull_back)
_backward_operator = Operator("ssd_triton_backward", _launch_backward, _fake_backward)
