"""The data-dependent token shift as Triton kernels around one matrix product.

Forward: `_premix` makes the input of the first low-rank product, and `_lerp` does tanh, the second
low-rank product and all five blends in one pass over x. Backward: `_lerp_backward` reads the five
gradients once and leaves two tensors, what reaches x directly and what reaches x through
shift(x) - x; `_shift_backward` joins both with the gradient of the premix and shifts back.
"""

from __future__ import annotations

import triton
import triton.language as tl

from groundthink.ops.launching import kernel


@triton.jit
def _tanh(x):
    """tanh with a small relative error: by its series near 0, where the quotient cancels."""
    square = x * x
    near = x * (1 + square * (-1 / 3 + square * (2 / 15 + square * (-17 / 315))))
    e = tl.exp(-2 * tl.abs(x))
    far = (1 - e) / (1 + e)
    return tl.where(square < 0.04, near, tl.where(x < 0, -far, far))


@triton.jit
def _pair(
    x_ptr, last_ptr, reset_ptr, first, n, steps, channel, SIZE: tl.constexpr, ROWS: tl.constexpr
):
    """x and the token before it in ROWS rows from `first` on; zeros where there is none.

    Row batch * steps + t is token t of a sequence.
    """
    row = first + tl.arange(0, ROWS)[:, None]
    inside = (row < n) & (channel < SIZE)
    at = x_ptr + row.to(tl.int64) * SIZE + channel
    x = tl.load(at, inside, 0).to(tl.float32)
    linked = row < n
    if reset_ptr is not None:
        linked = linked & (tl.load(reset_ptr + row, linked, 1) == 0)
    starts = row % steps == 0
    before = tl.load(at - SIZE, inside & linked & ~starts, 0).to(tl.float32)
    if (first + steps - 1) // steps * steps < first + ROWS:  # few tiles have a start
        last = last_ptr + (row // steps).to(tl.int64) * SIZE + channel
        before += tl.load(last, inside & linked & starts, 0).to(tl.float32)
    return x, before


@kernel
def _premix(
    x_ptr,
    last_ptr,
    maa_ptr,
    reset_ptr,
    out_ptr,
    final_ptr,
    n,
    steps,
    SIZE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    channel = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    inside = (row < n) & (channel < SIZE)
    first = tl.program_id(0) * ROWS
    x, before = _pair(x_ptr, last_ptr, reset_ptr, first, n, steps, channel, SIZE, ROWS)
    maa = tl.load(maa_ptr + channel, channel < SIZE, 0).to(tl.float32)
    out = x + (before - x) * maa
    tl.store(out_ptr + row.to(tl.int64) * SIZE + channel, out.to(out_ptr.dtype.element_ty), inside)
    at = final_ptr + (row // steps).to(tl.int64) * SIZE + channel
    ends = inside & (row % steps == steps - 1)
    tl.store(at, x.to(final_ptr.dtype.element_ty), ends)


@triton.jit
def _hidden(ptr, row, n, q, RANK: tl.constexpr, PAD: tl.constexpr):
    """Low-rank activations of blend q [ROWS, PAD]."""
    rank = tl.arange(0, PAD)[None, :]
    at = row.to(tl.int64) * (5 * RANK) + q * RANK + rank
    return tl.load(ptr + at, (row < n) & (rank < RANK), 0)


@triton.jit
def _w2(ptr, channel, q, SIZE: tl.constexpr, RANK: tl.constexpr, PAD: tl.constexpr):
    """The second low-rank matrix of blend q [PAD, COLUMNS]."""
    rank = tl.arange(0, PAD)[:, None]
    at = (q * RANK + rank) * SIZE + channel
    return tl.load(ptr + at, (rank < RANK) & (channel < SIZE), 0).to(tl.float32)


@triton.jit
def _share(hidden, w2, maa_ptr, channel, q, SIZE: tl.constexpr):
    """How much of shift(x) - x blend q takes [ROWS, COLUMNS]."""
    maa = tl.load(maa_ptr + q * SIZE + channel, channel < SIZE, 0).to(tl.float32)
    return tl.dot(hidden, w2, input_precision="ieee") + maa


@triton.jit
def _blend(
    x, back, hidden_ptr, w2_ptr, maa_ptr, row, channel, n, q,
    SIZE: tl.constexpr, RANK: tl.constexpr, PAD: tl.constexpr,
):  # fmt: skip
    kind = hidden_ptr.dtype.element_ty
    hidden = _hidden(hidden_ptr, row, n, q, RANK, PAD)
    w2 = _w2(w2_ptr, channel, q, SIZE, RANK, PAD).to(kind)
    return x + back * _share(hidden, w2, maa_ptr, channel, q, SIZE)


@kernel(do_not_specialize=["n"])
def _lerp(
    x_ptr,
    last_ptr,
    reset_ptr,
    hidden_ptr,
    w2_ptr,
    maa_ptr,
    first_ptr,
    rest_ptr,
    n,
    steps,
    SIZE: tl.constexpr,
    RANK: tl.constexpr,
    PAD: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLENDS: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    channel = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    inside = (row < n) & (channel < SIZE)
    first = tl.program_id(0) * ROWS
    x, before = _pair(x_ptr, last_ptr, reset_ptr, first, n, steps, channel, SIZE, ROWS)
    back = before - x
    at = row.to(tl.int64) * SIZE + channel
    plane = n.to(tl.int64) * SIZE
    kind = x_ptr.dtype.element_ty
    some = tl.program_id(2) * BLENDS
    for q in range(some, some + BLENDS):
        out = _blend(x, back, hidden_ptr, w2_ptr, maa_ptr, row, channel, n, q, SIZE, RANK, PAD)
        if q == 0:
            tl.store(first_ptr + at, out.to(kind), inside)
        else:
            tl.store(rest_ptr + (q - 1) * plane + at, out.to(kind), inside)


@triton.jit
def _blend_backward(
    dout_ptr, hidden_ptr, w2_ptr, maa_ptr, direct, through, row, channel, n, q,
    SIZE: tl.constexpr, RANK: tl.constexpr, PAD: tl.constexpr,
):  # fmt: skip
    """Blend q adds to the gradients of x and of shift(x) - x."""
    kind = hidden_ptr.dtype.element_ty
    at = row.to(tl.int64) * SIZE + channel
    dout = tl.load(dout_ptr + at, (row < n) & (channel < SIZE), 0).to(tl.float32)
    hidden = _hidden(hidden_ptr, row, n, q, RANK, PAD)
    w2 = _w2(w2_ptr, channel, q, SIZE, RANK, PAD).to(kind)
    return direct + dout, through + dout * _share(hidden, w2, maa_ptr, channel, q, SIZE)


@kernel(do_not_specialize=["n"])
def _lerp_backward(
    hidden_ptr,
    w2_ptr,
    maa_ptr,
    dfirst_ptr,
    drest_ptr,
    direct_ptr,
    through_ptr,
    n,
    SIZE: tl.constexpr,
    RANK: tl.constexpr,
    PAD: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    channel = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    plane = n.to(tl.int64) * SIZE
    zeros = tl.zeros((ROWS, COLUMNS), tl.float32)
    direct, through = _blend_backward(
        dfirst_ptr, hidden_ptr, w2_ptr, maa_ptr, zeros, zeros, row, channel, n, 0,
        SIZE, RANK, PAD,
    )  # fmt: skip
    for q in range(1, 5):
        direct, through = _blend_backward(
            drest_ptr + (q - 1) * plane, hidden_ptr, w2_ptr, maa_ptr, direct, through, row,
            channel, n, q, SIZE, RANK, PAD,
        )  # fmt: skip
    at = row.to(tl.int64) * SIZE + channel
    inside = (row < n) & (channel < SIZE)
    tl.store(direct_ptr + at, direct.to(direct_ptr.dtype.element_ty), inside)
    tl.store(through_ptr + at, through.to(through_ptr.dtype.element_ty), inside)


@kernel(do_not_specialize=["n"])
def _low_rank_backward(
    x_ptr,
    last_ptr,
    reset_ptr,
    hidden_ptr,
    w2_ptr,
    dfirst_ptr,
    drest_ptr,
    dhidden_ptr,
    shares_ptr,
    n,
    steps,
    SIZE: tl.constexpr,
    RANK: tl.constexpr,
    PAD: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """One blend and some channels: shares of the gradients of w2, maa and the activations."""
    q = tl.program_id(0) % 5
    share = tl.program_id(0) // 5
    channel = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    real = channel < SIZE
    kind = x_ptr.dtype.element_ty
    plane = n.to(tl.int64) * SIZE
    dout_ptr = dfirst_ptr
    if q > 0:
        dout_ptr = drest_ptr + (q - 1) * plane
    dout_ptr = tl.multiple_of(dout_ptr, 16)
    dhidden_ptr += tl.program_id(1) * n.to(tl.int64) * (5 * RANK)
    w2 = tl.trans(_w2(w2_ptr, channel, q, SIZE, RANK, PAD).to(kind))
    dw2 = tl.zeros((PAD, COLUMNS), tl.float32)
    dmaa = tl.zeros((16, COLUMNS), tl.float32)
    ones = tl.full((16, ROWS), 1, kind)
    rank = tl.arange(0, PAD)[None, :]
    stride = tl.num_programs(0) // 5
    for tile in range(share, tl.cdiv(n, ROWS), stride):
        row = tile * ROWS + tl.arange(0, ROWS)[:, None]
        first = tile * ROWS
        x, before = _pair(x_ptr, last_ptr, reset_ptr, first, n, steps, channel, SIZE, ROWS)
        at = row.to(tl.int64) * SIZE + channel
        dout = tl.load(dout_ptr + at, (row < n) & real, 0).to(tl.float32)
        dshare = (dout * (before - x)).to(kind)
        hidden = _hidden(hidden_ptr, row, n, q, RANK, PAD)
        dw2 = tl.dot(tl.trans(hidden), dshare, dw2, input_precision="ieee")
        dmaa = tl.dot(ones, dshare, dmaa, input_precision="ieee")
        dhidden = tl.dot(dshare, w2, input_precision="ieee")
        hidden = hidden.to(tl.float32)
        dhidden *= 1 - hidden * hidden
        at = dhidden_ptr + row.to(tl.int64) * (5 * RANK) + q * RANK + rank
        tl.store(at, dhidden.to(kind), (row < n) & (rank < RANK))
    shares_ptr += share.to(tl.int64) * (5 * (RANK + 1) * SIZE)
    rank = tl.arange(0, PAD)[:, None]
    tl.store(shares_ptr + (q * RANK + rank) * SIZE + channel, dw2, (rank < RANK) & real)
    line = tl.arange(0, 16)[:, None]
    at = shares_ptr + (5 * RANK + q) * SIZE + line * 0 + channel
    tl.store(at, dmaa, (line == 0) & real)


@kernel
def _shift_backward(
    x_ptr,
    last_ptr,
    maa_ptr,
    reset_ptr,
    direct_ptr,
    through_ptr,
    dmixed_ptr,
    dfinal_ptr,
    dx_ptr,
    dlast_ptr,
    shares_ptr,
    n,
    steps,
    SIZE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    channel = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    maa = tl.load(maa_ptr + channel, channel < SIZE, 0).to(tl.float32)
    dmaa = tl.zeros((ROWS, COLUMNS), tl.float32)
    for tile in range(tl.program_id(0), tl.cdiv(n, ROWS), tl.num_programs(0)):
        row = tile * ROWS + tl.arange(0, ROWS)[:, None]
        inside = (row < n) & (channel < SIZE)
        first = tile * ROWS
        x, before = _pair(x_ptr, last_ptr, reset_ptr, first, n, steps, channel, SIZE, ROWS)
        at = row.to(tl.int64) * SIZE + channel
        dmixed = tl.load(dmixed_ptr + at, inside, 0).to(tl.float32)
        dmaa += dmixed * (before - x)
        back = tl.load(through_ptr + at, inside, 0).to(tl.float32) + dmixed * maa
        dx = tl.load(direct_ptr + at, inside, 0).to(tl.float32) + dmixed - back
        after = inside & (row % steps != steps - 1)
        linked = inside & (row % steps == 0)
        if reset_ptr is not None:
            after = after & (tl.load(reset_ptr + row + 1, row + 1 < n, 1) == 0)
            linked = linked & (tl.load(reset_ptr + row, row < n, 1) == 0)
        dx += tl.load(through_ptr + at + SIZE, after, 0).to(tl.float32)
        dx += tl.load(dmixed_ptr + at + SIZE, after, 0).to(tl.float32) * maa
        sequence = (row // steps).to(tl.int64) * SIZE + channel
        if dfinal_ptr is not None:
            ends = inside & (row % steps == steps - 1)
            dx += tl.load(dfinal_ptr + sequence, ends, 0).to(tl.float32)
        tl.store(dx_ptr + at, dx.to(dx_ptr.dtype.element_ty), inside)
        starts = inside & (row % steps == 0)
        dlast = tl.where(linked, back, 0.0).to(dlast_ptr.dtype.element_ty)
        tl.store(dlast_ptr + sequence, dlast, starts)
    share = tl.sum(dmaa, axis=0)[None, :]
    tl.store(shares_ptr + tl.program_id(0) * SIZE + channel, share, channel < SIZE)


@triton.jit
def _tile(ptr, row, column, n, SIZE: tl.constexpr):
    """Rows and columns of a matrix [n, SIZE]; zeros outside of it."""
    at = row.to(tl.int64) * SIZE + column
    return tl.load(ptr + at, (row < n) & (column < SIZE), 0)


@kernel
def _decay(
    x_ptr,
    bias_ptr,
    w1_ptr,
    w2_ptr,
    hidden_ptr,
    out_ptr,
    n,
    SIZE: tl.constexpr,
    WIDTH: tl.constexpr,
    RANK: tl.constexpr,
    PAD: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    kind = x_ptr.dtype.element_ty
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    rank = tl.arange(0, PAD)
    hidden = tl.zeros((ROWS, PAD), tl.float32)
    for first in range(0, SIZE, COLUMNS):
        channel = first + tl.arange(0, COLUMNS)
        x = _tile(x_ptr, row, channel[None, :], n, SIZE)
        inside = (rank < RANK)[None, :] & (channel < SIZE)[:, None]
        w1 = tl.load(w1_ptr + channel[:, None] * RANK + rank[None, :], inside, 0)
        hidden = tl.dot(x, w1.to(kind), hidden, input_precision="ieee")
    low = _tanh(hidden).to(kind)
    share = tl.program_id(1)
    unit = hidden_ptr + row.to(tl.int64) * RANK + rank[None, :]
    if share == 0:
        tl.store(unit, low, (row < n) & (rank < RANK)[None, :])
    for first in range(share * COLUMNS, WIDTH, tl.num_programs(1) * COLUMNS):
        channel = first + tl.arange(0, COLUMNS)[None, :]
        w2 = _tile(w2_ptr, rank[:, None], channel, RANK, WIDTH)
        bias = tl.load(bias_ptr + channel, channel < WIDTH, 0).to(tl.float32)
        out = tl.dot(low, w2.to(kind), input_precision="ieee") + bias
        at = row.to(tl.int64) * WIDTH + channel
        tl.store(out_ptr + at, out, (row < n) & (channel < WIDTH))


@kernel
def _decay_backward(
    w1_ptr,
    w2_ptr,
    hidden_ptr,
    dout_ptr,
    dhidden_ptr,
    dx_ptr,
    n,
    SIZE: tl.constexpr,
    WIDTH: tl.constexpr,
    RANK: tl.constexpr,
    PAD: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    kind = dx_ptr.dtype.element_ty
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    rank = tl.arange(0, PAD)
    dhidden = tl.zeros((ROWS, PAD), tl.float32)
    for first in range(0, WIDTH, COLUMNS):
        channel = first + tl.arange(0, COLUMNS)[None, :]
        dout = _tile(dout_ptr, row, channel, n, WIDTH).to(kind)
        w2 = _tile(w2_ptr, rank[:, None], channel, RANK, WIDTH).to(kind)
        dhidden = tl.dot(dout, tl.trans(w2), dhidden, input_precision="ieee")
    hidden = _tile(hidden_ptr, row, rank[None, :], n, RANK).to(tl.float32)
    low = (dhidden * (1 - hidden * hidden)).to(kind)
    unit = dhidden_ptr + row.to(tl.int64) * RANK + rank[None, :]
    tl.store(unit, low, (row < n) & (rank < RANK)[None, :])
    for first in range(0, SIZE, COLUMNS):
        channel = first + tl.arange(0, COLUMNS)
        inside = (rank < RANK)[None, :] & (channel < SIZE)[:, None]
        w1 = tl.load(w1_ptr + channel[:, None] * RANK + rank[None, :], inside, 0).to(kind)
        dx = tl.dot(low, tl.trans(w1), input_precision="ieee")
        at = row.to(tl.int64) * SIZE + channel[None, :]
        tl.store(dx_ptr + at, dx.to(kind), (row < n) & (channel < SIZE)[None, :])


@kernel
def _decay_weights(
    x_ptr,
    hidden_ptr,
    dout_ptr,
    dhidden_ptr,
    shares_ptr,
    n,
    SIZE: tl.constexpr,
    WIDTH: tl.constexpr,
    RANK: tl.constexpr,
    PAD: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Shares of the gradients of w2, of the bias and of w1, for some columns of each."""
    kind = x_ptr.dtype.element_ty
    channel = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    rank = tl.arange(0, PAD)[None, :]
    ones = tl.full((16, ROWS), 1, kind)
    dw1 = tl.zeros((PAD, COLUMNS), tl.float32)
    dw2 = tl.zeros((PAD, COLUMNS), tl.float32)
    dbias = tl.zeros((16, COLUMNS), tl.float32)
    for tile in range(tl.program_id(0), tl.cdiv(n, ROWS), tl.num_programs(0)):
        row = tile * ROWS + tl.arange(0, ROWS)[:, None]
        x = _tile(x_ptr, row, channel, n, SIZE)
        dout = _tile(dout_ptr, row, channel, n, WIDTH).to(kind)
        hidden = _tile(hidden_ptr, row, rank, n, RANK)
        dhidden = _tile(dhidden_ptr, row, rank, n, RANK)
        dw2 = tl.dot(tl.trans(hidden), dout, dw2, input_precision="ieee")
        dw1 = tl.dot(tl.trans(dhidden), x, dw1, input_precision="ieee")
        dbias = tl.dot(ones, dout, dbias, input_precision="ieee")
    shares_ptr += tl.program_id(0) * ((RANK + 1) * WIDTH + RANK * SIZE)
    rank = tl.arange(0, PAD)[:, None]
    line = tl.arange(0, 16)[:, None]
    at = shares_ptr + rank * WIDTH + channel
    tl.store(at, dw2, (rank < RANK) & (channel < WIDTH))
    at = shares_ptr + (RANK + line) * WIDTH + channel
    tl.store(at, dbias, (line == 0) & (channel < WIDTH))
    at = shares_ptr + (RANK + 1) * WIDTH + channel * RANK + rank
    tl.store(at, dw1, (rank < RANK) & (channel < SIZE))
