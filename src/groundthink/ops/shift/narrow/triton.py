"""The data-dependent token shift of narrow models as Triton kernels: all channels in a program.

Forward one kernel does it all. Backward `_backward` goes once through the five gradients and
leaves what reaches x directly and what reaches x through shift(x) - x; `_unshift` joins them.
"""

from __future__ import annotations

import triton
import triton.language as tl

from groundthink.ops.launching import kernel
from groundthink.ops.shift.triton import _tanh, _tile, _w2


@triton.jit
def _pair(
    x_ptr,
    last_ptr,
    reset_ptr,
    first,
    n,
    steps,
    SIZE: tl.constexpr,
    PAD: tl.constexpr,
    ROWS: tl.constexpr,
):
    """x and the token before it in the ROWS rows from `first` on, zeros where there is none."""
    row = first + tl.arange(0, ROWS)[:, None]
    channel = tl.arange(0, PAD)[None, :]
    inside = (row < n) & (channel < SIZE)
    at = x_ptr + row.to(tl.int64) * SIZE + channel
    x = tl.load(at, inside, 0).to(tl.float32)
    linked = row < n
    if reset_ptr is not None:
        linked = linked & (tl.load(reset_ptr + row, linked, 1) == 0)
    starts = row % steps == 0
    before = tl.load(at - SIZE, inside & linked & ~starts, 0).to(tl.float32)
    if (first + steps - 1) // steps * steps < first + ROWS:  # a sequence starts here
        old = last_ptr + (row // steps).to(tl.int64) * SIZE + channel
        before += tl.load(old, inside & linked & starts, 0).to(tl.float32)
    return x, before


@triton.jit
def _w1(ptr, q, SIZE: tl.constexpr, RANK: tl.constexpr, PAD: tl.constexpr, UNITS: tl.constexpr):
    """The first low-rank matrix of blend q [PAD, UNITS]."""
    channel = tl.arange(0, PAD)[:, None]
    rank = tl.arange(0, UNITS)[None, :]
    at = channel * (5 * RANK) + q * RANK + rank
    return tl.load(ptr + at, (channel < SIZE) & (rank < RANK), 0)


@triton.jit
def _share(hidden, w2, maa_ptr, channel, q, SIZE: tl.constexpr):
    maa = tl.load(maa_ptr + q * SIZE + channel, channel < SIZE, 0).to(tl.float32)
    return tl.dot(hidden, w2) + maa


@kernel(do_not_specialize=["n"])
def _forward(
    x_ptr,
    last_ptr,
    reset_ptr,
    maa_x_ptr,
    w1_ptr,
    w2_ptr,
    maa_ptr,
    hidden_ptr,
    first_ptr,
    rest_ptr,
    final_ptr,
    n,
    steps,
    SIZE: tl.constexpr,
    RANK: tl.constexpr,
    PAD: tl.constexpr,
    UNITS: tl.constexpr,
    ROWS: tl.constexpr,
    BLENDS: tl.constexpr,
    STAGES: tl.constexpr,
):
    kind = x_ptr.dtype.element_ty
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    channel = tl.arange(0, PAD)[None, :]
    inside = (row < n) & (channel < SIZE)
    x, before = _pair(
        x_ptr, last_ptr, reset_ptr, tl.program_id(0) * ROWS, n, steps, SIZE, PAD, ROWS
    )
    back = before - x
    maa_x = tl.load(maa_x_ptr + channel, channel < SIZE, 0).to(tl.float32)
    mixed = (x + back * maa_x).to(kind)
    at = row.to(tl.int64) * SIZE + channel
    rank = tl.arange(0, UNITS)[None, :]
    unit = hidden_ptr + row.to(tl.int64) * (5 * RANK) + rank
    some = tl.program_id(1) * BLENDS
    for q in tl.range(some, some + BLENDS, num_stages=STAGES):
        w1 = _w1(w1_ptr, q, SIZE, RANK, PAD, UNITS)
        hidden = _tanh(tl.dot(mixed, w1.to(kind))).to(kind)
        tl.store(unit + q * RANK, hidden, (row < n) & (rank < RANK))
        w2 = _w2(w2_ptr, channel, q, SIZE, RANK, UNITS).to(kind)
        out = x + back * _share(hidden, w2, maa_ptr, channel, q, SIZE)
        if q == 0:
            tl.store(first_ptr + at, out.to(kind), inside)
        else:
            tl.store(rest_ptr + (q - 1) * (n.to(tl.int64) * SIZE) + at, out.to(kind), inside)
    if some == 0:
        final = final_ptr + (row // steps).to(tl.int64) * SIZE + channel
        tl.store(final, x.to(final_ptr.dtype.element_ty), inside & (row % steps == steps - 1))


@triton.jit
def _blend(dfirst_ptr, drest_ptr, q, n, at, inside, SIZE: tl.constexpr):
    """The gradient of blend q."""
    ptr = dfirst_ptr
    if q > 0:
        ptr = drest_ptr + (q - 1) * (n.to(tl.int64) * SIZE)
    return tl.load(tl.multiple_of(ptr, 16) + at, inside, 0).to(tl.float32)


@kernel(do_not_specialize=["n"])
def _backward(
    x_ptr,
    last_ptr,
    reset_ptr,
    maa_x_ptr,
    w1_ptr,
    w2_ptr,
    maa_ptr,
    hidden_ptr,
    dfirst_ptr,
    drest_ptr,
    mixed_ptr,
    dhidden_ptr,
    dblend_ptr,
    direct_ptr,
    through_ptr,
    shares_ptr,
    n,
    steps,
    SIZE: tl.constexpr,
    RANK: tl.constexpr,
    PAD: tl.constexpr,
    UNITS: tl.constexpr,
    ROWS: tl.constexpr,
    STAGES: tl.constexpr,
):
    """The gradients of all but the weights, and shares of those of maa [5, C] and maa_x [C].

    The gradients of w1 and w2 are products of what is left in memory: those of the blends before
    shift(x) - x is added in, and of the hidden units, with the premix and the hidden units.
    """
    kind = x_ptr.dtype.element_ty
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    channel, rank = tl.arange(0, PAD)[None, :], tl.arange(0, UNITS)[None, :]
    real, low = channel < SIZE, (row < n) & (rank < RANK)
    inside = (row < n) & real
    at = row.to(tl.int64) * SIZE + channel
    unit = row.to(tl.int64) * (5 * RANK) + rank
    shares_ptr += tl.program_id(0).to(tl.int64) * (6 * SIZE) + channel
    maa_x = tl.load(maa_x_ptr + channel, real, 0).to(tl.float32)
    x, before = _pair(
        x_ptr, last_ptr, reset_ptr, tl.program_id(0) * ROWS, n, steps, SIZE, PAD, ROWS
    )
    back = before - x
    tl.store(mixed_ptr + at, (x + back * maa_x).to(kind), inside)
    dmixed = tl.zeros((ROWS, PAD), tl.float32)
    for q in tl.range(0, 5, num_stages=STAGES):
        dshare = _blend(dfirst_ptr, drest_ptr, q, n, at, inside, SIZE) * back
        tl.store(shares_ptr + q * SIZE, tl.sum(dshare, axis=0)[None, :], real)
        dshare = dshare.to(kind)
        tl.store(dblend_ptr + q * (n.to(tl.int64) * SIZE) + at, dshare, inside)
        w2 = _w2(w2_ptr, channel, q, SIZE, RANK, UNITS).to(kind)
        hidden = tl.load(hidden_ptr + unit + q * RANK, low, 0).to(tl.float32)
        dhidden = (tl.dot(dshare, tl.trans(w2)) * (1 - hidden * hidden)).to(kind)
        tl.store(dhidden_ptr + unit + q * RANK, dhidden, low)
        w1 = _w1(w1_ptr, q, SIZE, RANK, PAD, UNITS).to(kind)
        dmixed = tl.dot(dhidden, tl.trans(w1), dmixed)
    tl.store(shares_ptr + 5 * SIZE, tl.sum(dmixed * back, axis=0)[None, :], real)
    direct, through = dmixed, dmixed * maa_x
    for q in tl.range(0, 5, num_stages=STAGES):
        dout = _blend(dfirst_ptr, drest_ptr, q, n, at, inside, SIZE)
        hidden = tl.load(hidden_ptr + unit + q * RANK, low, 0)
        w2 = _w2(w2_ptr, channel, q, SIZE, RANK, UNITS).to(kind)
        direct += dout
        through += dout * _share(hidden, w2, maa_ptr, channel, q, SIZE)
    tl.store(direct_ptr + at, direct.to(kind), inside)
    tl.store(through_ptr + at, through.to(kind), inside)


@kernel(do_not_specialize=["n"])
def _unshift(
    reset_ptr,
    direct_ptr,
    through_ptr,
    dfinal_ptr,
    dx_ptr,
    dlast_ptr,
    n,
    steps,
    SIZE: tl.constexpr,
    PAD: tl.constexpr,
    ROWS: tl.constexpr,
):
    """direct - through, and what the token after it has through this one."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    channel = tl.arange(0, PAD)[None, :]
    inside = (row < n) & (channel < SIZE)
    at = row.to(tl.int64) * SIZE + channel
    through = tl.load(through_ptr + at, inside, 0).to(tl.float32)
    dx = tl.load(direct_ptr + at, inside, 0).to(tl.float32) - through
    place = row % steps
    after = inside & (place != steps - 1)
    linked = inside & (place == 0)
    if reset_ptr is not None:
        after = after & (tl.load(reset_ptr + row + 1, row + 1 < n, 1) == 0)
        linked = linked & (tl.load(reset_ptr + row, row < n, 1) == 0)
    dx += tl.load(through_ptr + at + SIZE, after, 0).to(tl.float32)
    sequence = (row // steps).to(tl.int64) * SIZE + channel
    if dfinal_ptr is not None:
        dx += tl.load(dfinal_ptr + sequence, inside & (place == steps - 1), 0).to(tl.float32)
    tl.store(dx_ptr + at, dx.to(dx_ptr.dtype.element_ty), inside)
    dlast = tl.where(linked, through, 0.0).to(dlast_ptr.dtype.element_ty)
    tl.store(dlast_ptr + sequence, dlast, inside & (place == 0))


@kernel(do_not_specialize=["n"])
def _decay_backward(
    x_ptr,
    w1_ptr,
    w2_ptr,
    hidden_ptr,
    dout_ptr,
    dx_ptr,
    shares_ptr,
    n,
    SIZE: tl.constexpr,
    WIDTH: tl.constexpr,
    RANK: tl.constexpr,
    ACROSS: tl.constexpr,
    ALONG: tl.constexpr,
    UNITS: tl.constexpr,
    ROWS: tl.constexpr,
    STAGES: tl.constexpr,
):
    """The gradient of x, and shares of those of w2 [R, D], the bias [D] and w1 [C, R]."""
    kind = x_ptr.dtype.element_ty
    channel, out = tl.arange(0, ACROSS)[None, :], tl.arange(0, ALONG)[None, :]
    rank, line = tl.arange(0, UNITS), tl.arange(0, 16)[:, None]
    up = rank[:, None]
    inside = (up < RANK) & (channel < SIZE)
    w1 = tl.load(w1_ptr + channel * RANK + up, inside, 0).to(kind)  # [R, C]
    w2 = _tile(w2_ptr, up, out, RANK, WIDTH).to(kind)
    ones = tl.full((16, ROWS), 1, kind)
    dw1 = tl.zeros((UNITS, ACROSS), tl.float32)
    dw2 = tl.zeros((UNITS, ALONG), tl.float32)
    dbias = tl.zeros((16, ALONG), tl.float32)
    for tile in tl.range(tl.program_id(0), tl.cdiv(n, ROWS), tl.num_programs(0), num_stages=STAGES):
        row = tile * ROWS + tl.arange(0, ROWS)[:, None]
        dout = _tile(dout_ptr, row, out, n, WIDTH).to(kind)
        hidden = _tile(hidden_ptr, row, rank[None, :], n, RANK)
        x = _tile(x_ptr, row, channel, n, SIZE)
        dw2 = tl.dot(tl.trans(hidden), dout, dw2)
        dbias = tl.dot(ones, dout, dbias)
        activation = hidden.to(tl.float32)
        low = tl.dot(dout, tl.trans(w2)) * (1 - activation * activation)
        low = low.to(kind)
        dw1 = tl.dot(tl.trans(low), x, dw1)
        at = dx_ptr + row.to(tl.int64) * SIZE + channel
        tl.store(at, tl.dot(low, w1).to(kind), (row < n) & (channel < SIZE))
    shares_ptr += tl.program_id(0).to(tl.int64) * ((RANK + 1) * WIDTH + RANK * SIZE)
    tl.store(shares_ptr + up * WIDTH + out, dw2, (up < RANK) & (out < WIDTH))
    at = shares_ptr + (RANK + line) * WIDTH + out
    tl.store(at, dbias, (line == 0) & (out < WIDTH))
    at = shares_ptr + (RANK + 1) * WIDTH + channel * RANK + up
    tl.store(at, dw1, inside)
