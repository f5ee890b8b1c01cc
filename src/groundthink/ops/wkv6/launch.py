"""WKV6 on a GPU: how the work of the kernels in `triton` is cut and launched, and its gradient.

Two launches forward: the states before the chunks, then the outputs of all chunks at once. Three
backward: the gradients of the states after the chunks, then the others, then the sum of those of
u. Eager code calls them through an autograd function, compiled code through registered operators.
"""

# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from groundthink.errors import UserError
from groundthink.ops.fused import Operator, after, device_of, differentiable, traced
from groundthink.ops.shares import total
from groundthink.ops.wkv6.triton import (
    gradient_kernel,
    output_kernel,
    state_kernel,
    step_kernel,
)

PROGRAMS = 132
"""Of the state pass; sequences are cut into segments until there are so many."""
SHORTEST = 8
"""Chunks in a segment, at least."""
ROWS, COLUMNS = 64, 32
"""Of V and of K, that a program of the state pass works on."""
STEP_COLUMNS = 16
"""Of V, that a program of a single step works on."""


def wkv6_triton(
    r: Tensor, k: Tensor, v: Tensor, w: Tensor, u: Tensor,
    state: Tensor | None, reset: Tensor | None, raw: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The contract of `wkv6` in half precision or fp32; w is w_raw if `raw`, else log w.

    Raises:
        UserError: r or k is in fp64.
    """
    common = torch.promote_types(v.dtype, torch.promote_types(r.dtype, k.dtype))
    if common == torch.float64:
        raise UserError("wkv6 backend 'triton' works in fp32 at most; use 'chunked' for fp64")
    inputs = r.to(common), k.to(common), v.to(common), w, u, state
    keep = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs)
    y, last, _, _ = _run(*inputs, reset, raw, keep)
    return y.to(v.dtype), last


class _Plan(NamedTuple):
    """How the work is cut, and what all kernels are compiled for."""

    grid: tuple[int, int]
    """Heads and chunks."""
    segments: int
    sizes: tuple[int, int, int, int]
    """T, H, chunks in a segment, segments."""
    meta: dict

    @classmethod
    def of(cls, r: Tensor, v: Tensor, reset: Tensor | None, raw: bool) -> _Plan:
        return _plan(*r.shape, v.shape[-1], r.dtype, reset is not None, raw)

    def options(self, dtype: torch.dtype) -> dict:
        """What the kernels of single chunks are told beyond `meta`."""
        return {
            "LEVELS": self.meta["L"].bit_length() - 1,
            "LIMIT": 8.0 if dtype == torch.float16 else 46.0,
            "num_warps": _warps(self.meta["BK"] * self.meta["BV"]),
            "num_stages": 1,
        }


@functools.lru_cache(maxsize=256)
def _plan(b: int, t: int, h: int, k: int, v: int, dtype: torch.dtype, resets: bool, raw: bool):
    length, bk, bv = _tile(k, v, dtype)
    chunks = triton.cdiv(t, length)
    together = triton.cdiv(chunks, max(1, min(PROGRAMS // (b * h), chunks // SHORTEST)))
    segments = triton.cdiv(chunks, together)
    meta = {
        "K": k, "V": v, "BK": bk, "BV": bv, "L": length,
        "RAW": raw, "RESETS": resets, "SEGMENTED": segments > 1,
    }  # fmt: skip
    return _Plan((b * h, chunks), segments, (t, h, together, segments), meta)


def _tile(k: int, v: int, dtype: torch.dtype) -> tuple[int, int, int]:
    """Tokens in a chunk, and K and V padded to powers of two.

    In half precision all tiles are 32 wide and high, or all are wider: ptxas 12.8 confuses the
    addresses of tiles for wgmma where a kernel has many and some are narrower than others.
    """
    if dtype == torch.float32:
        length = least = 16
    else:
        length = least = 32 if max(k, v) <= 32 else 64
    bk, bv = (max(least, triton.next_power_of_2(size)) for size in (k, v))
    return length, bk, bv


def _warps(numbers: int) -> int:
    """Of a program with a state of so many numbers."""
    return 2 if numbers <= 32 * 32 else 4 if numbers <= 64 * 64 else 8


def _state_pass(
    plan: _Plan, x: Tensor, z: Tensor, w: Tensor, reset: Tensor | None,
    start: Tensor | None, end: Tensor | None, table: Tensor, back: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:  # fmt: skip
    """The states around the chunks, and what makes them whole where there are segments."""
    (bh, chunks), meta = plan.grid, plan.meta
    bk, bv = meta["BK"], meta["BV"]
    states = x.new_empty(bh, chunks, bv, bk)
    sums = decays = passed = None
    if plan.segments > 1:
        sums = table.new_empty(bh, plan.segments, bv, bk, dtype=torch.float32)
        decays = table.new_empty(bh, plan.segments, bk, dtype=torch.float32)
        passed = table.new_empty(bh, chunks, bk, dtype=torch.float32)
    rows, columns = min(ROWS, bv), min(COLUMNS, bk)
    state_kernel[bh, plan.segments, bv // rows * (bk // columns)](
        x, z, w, reset, start, end, table, states, sums, decays, passed, *plan.sizes, **meta,
        ROWS=rows, COLUMNS=columns, START=start is not None, END=end is not None, BACK=back,
        num_warps=min(4, _warps(rows * bk)), num_stages=3,
    )  # fmt: skip
    return states, sums, decays, passed


def _launch_forward(
    r: Tensor, k: Tensor, v: Tensor, w: Tensor, u: Tensor,
    state: Tensor | None, reset: Tensor | None, raw: bool, keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """y, the state after, and for the gradient the states before the chunks and a table."""
    b, t, h, kdim = r.shape
    r, k, v, w, u = (x.contiguous() for x in (r, k, v, w, u))
    state = None if state is None else state.float().contiguous()
    reset = None if reset is None else reset.contiguous()
    y, last = torch.empty_like(v), u.new_empty(b, h, kdim, v.shape[-1], dtype=torch.float32)
    if b == 0 or (t == 1 and not keep):
        if b:
            last = after(state, last)
            _launch_step(r, k, v, w, u, state, reset, raw, y, last)
        return y, last, r.new_empty(0), r.new_empty(0)
    plan = _Plan.of(r, v, reset, raw)
    table = r.new_empty(2, plan.meta["L"], plan.meta["L"])
    with device_of(r):
        states, *rest = _state_pass(plan, k, v, w, reset, state, last, table, back=False)
        output_kernel[plan.grid](
            r, k, v, w, u, reset, state, last, table, states, *rest, y, *plan.sizes, **plan.meta,
            START=state is not None, **plan.options(r.dtype),
        )  # fmt: skip
    return y, last, states, table


def _launch_step(r, k, v, w, u, state, reset, raw, y, last):
    b, _, h, kdim = r.shape
    vdim = v.shape[-1]
    with device_of(r):
        step_kernel[b * h, triton.cdiv(vdim, STEP_COLUMNS)](
            r, k, v, w, u, state, reset, y, last, h,
            K=kdim, V=vdim, BK=triton.next_power_of_2(kdim), COLUMNS=STEP_COLUMNS,
            RAW=raw, START=state is not None, RESETS=reset is not None,
        )  # fmt: skip


def _launch_backward(
    r: Tensor, k: Tensor, v: Tensor, w: Tensor, u: Tensor, reset: Tensor | None,
    states: Tensor, table: Tensor, dy: Tensor | None, dlast: Tensor | None, raw: bool,
    want_dfirst: bool, together: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of r, k, v, w, u and, if wanted, of the state before.

    Those of k, v and r lie one after the other if they are to be `together`.
    """
    b, _, h, kdim = r.shape
    r, k, v, w, u = (x.contiguous() for x in (r, k, v, w, u))
    reset = None if reset is None else reset.contiguous()
    dy = torch.zeros_like(v) if dy is None else dy.contiguous()
    dlast = None if dlast is None else dlast.contiguous()
    dk, dv, dr = _pieces((k, v, r), together)
    dw = torch.empty_like(w)
    dfirst = u.new_empty((b, h, kdim, v.shape[-1]) if want_dfirst else 0, dtype=torch.float32)
    if b == 0:
        return dr, dk, dv, dw, torch.zeros_like(u), dfirst
    plan = _Plan.of(r, v, reset, raw)
    du = u.new_empty(b, plan.grid[1], h, kdim, dtype=torch.float32)
    end = dfirst if want_dfirst else None
    with device_of(r):
        dstates, *rest = _state_pass(plan, r, dy, w, reset, dlast, end, table, back=True)
        gradient_kernel[plan.grid](
            r, k, v, w, u, reset, dlast, end, table, states, dstates, *rest,
            dy, dr, dk, dv, dw, du, *plan.sizes, **plan.meta,
            DEND=dlast is not None, DSTART=want_dfirst, **plan.options(r.dtype),
        )  # fmt: skip
        du = total(du.flatten(0, 1)).to(u.dtype)
    return dr, dk, dv, dw, du, dfirst


def _pieces(tensors: tuple[Tensor, ...], together: bool) -> list[Tensor]:
    """Contiguous memory for tensors like these, in one piece if their shapes allow it."""
    first = tensors[0]
    if together and all(t.shape == first.shape for t in tensors):
        return list(first.new_empty(len(tensors), *first.shape).unbind(0))
    return [torch.empty_like(t) for t in tensors]


def _setup(ctx, inputs, outputs):
    r, k, v, w, u, _, reset, ctx.raw, _ = inputs
    ctx.save_for_backward(r, k, v, w, u, reset, *outputs[2:])


def _pull_back(ctx, dy, dlast, *_):
    wanted = ctx.needs_input_grad[5]
    saved = ctx.saved_tensors
    *grads, dfirst = _backward_operator(*saved, dy, dlast, ctx.raw, wanted, not traced(saved))
    return *grads, dfirst if wanted else None, None, None, None


def _fake_forward(r, k, v, w, u, state, reset, raw, keep):
    b, t, h, kdim = r.shape
    last = u.new_empty(b, h, kdim, v.shape[-1], dtype=torch.float32)
    if b == 0 or (t == 1 and not keep):
        return v.new_empty(v.shape), last, r.new_empty(0), r.new_empty(0)
    length, bk, bv = _tile(kdim, v.shape[-1], r.dtype)
    states = r.new_empty(b * h, -(-t // length), bv, bk)
    return v.new_empty(v.shape), last, states, r.new_empty(2, length, length)


def _fake_backward(
    r, k, v, w, u, reset, states, table, dy, dlast, raw, want_dfirst, together=False
):
    b, _, h, kdim = r.shape
    dfirst = u.new_empty((b, h, kdim, v.shape[-1]) if want_dfirst else 0, dtype=torch.float32)
    return *(x.new_empty(x.shape) for x in (r, k, v, w, u)), dfirst


_run = differentiable(Operator("wkv6_triton", _launch_forward, _fake_forward), _setup, _pull_back)
_backward_operator = Operator("wkv6_triton_backward", _launch_backward, _fake_backward)
