"""WKV6 kernels: a light pass over the states, then all chunks at once.

`state_kernel` goes through the chunks of a sequence with the state in registers and writes the
state before each chunk; backward it writes the gradient of the state after each. Where heads and
batch are few it goes through segments of the sequence instead, each as if it began with zeros, and
whoever reads a state adds what came from before its segment. With its state at hand a chunk needs
no other chunk: `output_kernel` and `gradient_kernel` have a program for each.

Inside a chunk of L tokens the decay between two of them, s < t, is a factor of r_t times one of
k_s. Where the decays of the whole chunk are mild, both factors refer to half of them. Where they
are not, the pair (t, s) belongs to the level whose aligned block of 2 h tokens it divides into
halves of h, and the factors refer to the middle of that block: no exponent is positive. Exponents
are products of 0/1 matrices with the log decays, sums of one sign in which nothing cancels, and
their gradients products with the transposed matrices. (Peng et al. 2024, section 4.2, is the
recurrence; the chunked form follows from it.)

States are held as [V, K]: the decay then runs along rows, like in a tile of tokens [L, K].
"""

# The types of kernels are those of the compiler: values, not annotations.
# pyright: reportIndexIssue=false, reportOperatorIssue=false

from __future__ import annotations

import triton
import triton.language as tl

from groundthink.ops.launching import kernel
from groundthink.ops.wkv6.tiles import (
    LN2,
    _before,
    _bonus,
    _decays,
    _documents,
    _dot,
    _give,
    _level,
    _levels,
    _log2_decay,
    _lower,
    _make_whole,
    _put,
    _split,
    _state,
    _sums,
    _table,
    _take,
    _tile,
    _times,
    _to_middle,
    _upper,
    _vector,
    _write_table,
)

RUNTIME = ("T", "H", "together", "segments")
"""Sizes that no kernel is compiled anew for."""


@kernel(do_not_specialize=RUNTIME)
def state_kernel(
    x_ptr, z_ptr, w_ptr, resets, start, end, table, states, sums, decays, passed,
    T, H, together, segments,
    K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr, L: tl.constexpr, RAW: tl.constexpr, START: tl.constexpr,
    END: tl.constexpr, RESETS: tl.constexpr, SEGMENTED: tl.constexpr, BACK: tl.constexpr,
):  # fmt: skip
    """The states before the chunks of a segment (x = k, z = v), ROWS of V and COLUMNS of K.

    BACK: the gradients of the states after them, in reverse (x = r, z = dy).
    SEGMENTED: as if the segment began with zeros, with what it adds and how it decays.
    """
    bh, segment, part = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    top, side = part // (BK // COLUMNS) * ROWS, part % (BK // COLUMNS) * COLUMNS
    b, h = bh // H, bh % H
    rows = tl.arange(0, L)
    columns, v_columns = side + tl.arange(0, COLUMNS), top + tl.arange(0, ROWS)
    state = _take(start, bh, v_columns, columns, K, V, START and not SEGMENTED)
    total = tl.zeros((COLUMNS,), tl.float32)
    begin, chunks = segment * together, tl.cdiv(T, L)
    count = tl.minimum(together, chunks - begin)
    for i in range(count):
        chunk = begin + (count - 1 - i if BACK else i)
        left, token = T - chunk * L, b * T + chunk * L
        at = token * H + h
        log_w = _decays(w_ptr + at * K, rows, columns, K, H * K, left, RAW)
        x = _tile(x_ptr + at * K, rows, columns, K, H * K, left)
        z = _tile(z_ptr + at * V, rows, v_columns, V, H * V, left)
        slot = bh * chunks + chunk
        at = states + slot * (BV * BK) + v_columns[:, None] * BK + columns[None, :]
        tl.store(at, state.to(x.dtype))
        if SEGMENTED and top == 0:
            tl.store(passed + slot * BK + columns, tl.exp2(total))
        first, rest = _split(log_w, x)
        before = _before(L)
        factor = tl.exp2(_sums(before if BACK else tl.trans(before), first, rest))
        whole = tl.sum(log_w, 0)
        if RESETS:
            document, last = _documents(resets, token, left, L)
            factor = tl.where((document == (0 if BACK else last))[:, None], factor, 0.0)
            whole = tl.where(last == 0, whole, float("-inf"))
        state = state * tl.exp2(whole)[None, :]
        state += _dot(tl.trans(z), _times(x, factor))
        total += whole
    if not BACK and bh + segment + part == 0:
        _write_table(table, L)
    if SEGMENTED:
        slot = bh * segments + segment
        tl.store(sums + slot * (BV * BK) + v_columns[:, None] * BK + columns[None, :], state)
        if top == 0:
            tl.store(decays + slot * BK + columns, tl.exp2(total))
    elif END:
        _give(end, bh, v_columns, columns, state, K, V)


@kernel(do_not_specialize=RUNTIME)
def output_kernel(
    r_ptr, k_ptr, v_ptr, w_ptr, u_ptr, resets, start, end,
    table, states, sums, decays, passed, y_ptr,
    T, H, together, segments,
    K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, L: tl.constexpr,
    LEVELS: tl.constexpr, LIMIT: tl.constexpr, RAW: tl.constexpr, START: tl.constexpr,
    RESETS: tl.constexpr, SEGMENTED: tl.constexpr,
):  # fmt: skip
    """y of a chunk. LIMIT: up to where the log2 of a factor counts as mild."""
    bh, chunk, chunks = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.cdiv(T, L)
    b, h = bh // H, bh % H
    rows, columns, v_columns = tl.arange(0, L), tl.arange(0, BK), tl.arange(0, BV)
    left, token = T - chunk * L, b * T + chunk * L
    at = token * H + h
    if SEGMENTED:
        _make_whole(
            states, sums, decays, passed, start, end, bh, chunk, chunks, together, segments,
            K, V, BK, BV, START, True, False,
        )  # fmt: skip
    log_w = _decays(w_ptr + at * K, rows, columns, K, H * K, left, RAW)
    r = _tile(r_ptr + at * K, rows, columns, K, H * K, left)
    k = _tile(k_ptr + at * K, rows, columns, K, H * K, left)
    v = _tile(v_ptr + at * V, rows, v_columns, V, H * V, left)
    state = _state(states + (bh * chunks + chunk) * (BV * BK), BK, BV)
    first, rest = _split(log_w, v)
    total = tl.sum(log_w, 0)
    if tl.min(total, 0) >= -2 * LIMIT:
        centred = _table(table, 1, L)
        reader = _times(r, tl.exp2(_sums(centred, first, rest)))
        writer = _times(k, tl.exp2(_sums(tl.trans(centred), first, rest)))
        within = _dot(reader, tl.trans(writer))
        state = _times(state, tl.exp2(total * 0.5)[None, :])
    else:
        within = _levels(r, k, first, rest, L, LEVELS)
        reader = _times(r, tl.exp2(_sums(_table(table, 0, L), first, rest)))
    own = _bonus(r, k, _vector(u_ptr + h * K, columns, K))
    within = _lower(within, own, resets, token, left, L, RESETS)
    if RESETS:
        document, _ = _documents(resets, token, left, L)
        reader = tl.where((document == 0)[:, None], reader, 0.0)
    y = _dot(within.to(v.dtype), v)
    y += _dot(reader, tl.trans(state))
    _put(y_ptr + at * V, rows, v_columns, V, H * V, left, y)


@kernel(do_not_specialize=RUNTIME)
def gradient_kernel(
    r_ptr, k_ptr, v_ptr, w_ptr, u_ptr, resets, dend, dstart,
    table, states, dstates, dsums, ddecays, dpassed,
    dy_ptr, dr_ptr, dk_ptr, dv_ptr, dw_ptr, du_ptr,
    T, H, together, segments,
    K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, L: tl.constexpr,
    LEVELS: tl.constexpr, LIMIT: tl.constexpr, RAW: tl.constexpr, DEND: tl.constexpr,
    DSTART: tl.constexpr, RESETS: tl.constexpr, SEGMENTED: tl.constexpr,
):  # fmt: skip
    """Gradients of a chunk's r, k, v and decays, and its share in that of u."""
    bh, chunk, chunks = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.cdiv(T, L)
    b, h = bh // H, bh % H
    rows, columns, v_columns = tl.arange(0, L), tl.arange(0, BK), tl.arange(0, BV)
    left, token = T - chunk * L, b * T + chunk * L
    at = token * H + h
    r_ptr += at * K
    k_ptr += at * K
    v_ptr += at * V
    w_ptr += at * K
    dy_ptr += at * V
    dr_ptr += at * K
    dk_ptr += at * K
    dv_ptr += at * V
    dw_ptr += at * K
    u_ptr += h * K
    du_ptr += ((b * chunks + chunk) * H + h) * K
    if SEGMENTED:
        _make_whole(
            dstates, dsums, ddecays, dpassed, dend, dstart, bh, chunk, chunks, together, segments,
            K, V, BK, BV, DEND, DSTART, True,
        )  # fmt: skip
    states += (bh * chunks + chunk) * (BV * BK)
    dstates += (bh * chunks + chunk) * (BV * BK)
    log_w = _decays(w_ptr, rows, columns, K, H * K, left, RAW)
    r = _tile(r_ptr, rows, columns, K, H * K, left)
    k = _tile(k_ptr, rows, columns, K, H * K, left)
    dy = _tile(dy_ptr, rows, v_columns, V, H * V, left)
    v = _tile(v_ptr, rows, v_columns, V, H * V, left)
    dstate = _state(dstates, BK, BV)
    total = tl.sum(log_w, 0)
    if tl.min(total, 0) >= -2 * LIMIT:
        _mild_gradient(
            r_ptr, k_ptr, w_ptr, u_ptr, resets, table, states,
            dr_ptr, dk_ptr, dv_ptr, dw_ptr, du_ptr, log_w, total, r, k, v, dy, dstate,
            token, left, H, K, V, BK, BV, L, RAW, RESETS,
        )  # fmt: skip
    else:
        _strong_gradient(
            u_ptr, resets, table, states,
            dr_ptr, dk_ptr, dv_ptr, dw_ptr, du_ptr, log_w, total, r, k, v, dy, dstate,
            token, left, H, K, V, BK, BV, L, LEVELS, RAW, RESETS,
        )  # fmt: skip


@triton.jit
def _mild_gradient(
    r_ptr, k_ptr, w_ptr, u_ptr, resets, table, states,
    dr_ptr, dk_ptr, dv_ptr, dw_ptr, du_ptr, log_w, total, r, k, v, dy, dstate,
    token, left, H,
    K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, L: tl.constexpr,
    RAW: tl.constexpr, RESETS: tl.constexpr,
):  # fmt: skip
    """With exponents relative to half the decay of the chunk.

    Tiles are read again where they are needed again: registers are scarcer than cached reads.
    """
    rows, columns, v_columns = tl.arange(0, L), tl.arange(0, BK), tl.arange(0, BV)
    diagonal = rows[:, None] == rows[None, :]
    if RESETS:
        document, last = _documents(resets, token, left, L)
        reads, writes = (document == 0)[:, None], (document == last)[:, None]
    own = _bonus(r, k, _vector(u_ptr, columns, K))
    first, rest = _split(log_w, r)
    half = tl.exp2(total * 0.5)[None, :]
    centred = _table(table, 1, L)
    write = tl.exp2(_sums(tl.trans(centred), first, rest))
    reader, writer = _times(r, tl.exp2(_sums(centred, first, rest))), _times(k, write)

    within = _upper(_dot(writer, tl.trans(reader)), own, resets, token, left, L, RESETS)
    dv = _dot(within.to(dy.dtype), dy)
    dstate = _times(dstate, half)
    outer = writer
    if RESETS:
        outer = tl.where(writes, writer, 0.0)
    dv += _dot(outer, tl.trans(dstate))
    _put(dv_ptr, rows, v_columns, V, H * V, left, dv)

    dwithin = _dot(v, tl.trans(dy))  # [earlier, later]
    down = tl.sum(tl.where(diagonal, dwithin, 0.0), 1)[:, None]
    dwithin = _upper(dwithin, 0.0, resets, token, left, L, RESETS).to(v.dtype)
    # Of a pair of tokens, decays outside of it get what the one gives less what the other gives:
    # both are products of the same rounded numbers, so that nothing remains.
    inner = _dot(dwithin, reader)
    k = _tile(k_ptr, rows, columns, K, H * K, left)
    given = inner * _times(k, write).to(tl.float32)
    inner = inner * write
    dk = _dot(v, dstate) * write
    if RESETS:
        dk = tl.where(writes, dk, 0.0)
    before = _table(table, 0, L)
    dlog_w = _dot(before, _times(k, dk)) - given
    dk += inner
    r = _tile(r_ptr, rows, columns, K, H * K, left)
    dk += down * (_vector(u_ptr, columns, K) * r.to(tl.float32))
    _put(dk_ptr, rows, columns, K, H * K, left, dk)

    dwithin = _dot(dy, tl.trans(v))  # [later, earlier]
    dwithin = _lower(dwithin, 0.0, resets, token, left, L, RESETS).to(v.dtype)
    state = _times(_state(states, BK, BV), half)
    dr = _dot(dy, state)
    if RESETS:
        dr = tl.where(reads, dr, 0.0)
    dr += _dot(dwithin, writer)
    centred = _table(table, 1, L)  # read again: the same sums bit for bit, in no registers
    read = tl.exp2(_sums(centred, first, rest))
    r = _tile(r_ptr, rows, columns, K, H * K, left)
    dfirst, drest = _split(dr * _times(r, read).to(tl.float32) - given, v)
    dlog_w += _sums(tl.trans(before), dfirst, drest)
    k = _tile(k_ptr, rows, columns, K, H * K, left)
    dr = dr * read + down * (_vector(u_ptr, columns, K) * k.to(tl.float32))
    _put(dr_ptr, rows, columns, K, H * K, left, dr)

    through = (state.to(tl.float32) * dstate.to(tl.float32)).to(v.dtype)
    through = _dot(tl.full((L, BV), 1.0, v.dtype), through)
    if RESETS:
        through = tl.where(last == 0, through, 0.0)
    dlog_w += through
    if RAW:
        dlog_w = dlog_w * _decays(w_ptr, rows, columns, K, H * K, left, RAW) * LN2
    _put(dw_ptr, rows, columns, K, H * K, left, dlog_w)
    r = _tile(r_ptr, rows, columns, K, H * K, left)
    k = _tile(k_ptr, rows, columns, K, H * K, left)
    du = tl.sum(down * (r.to(tl.float32) * k.to(tl.float32)), 0)
    tl.store(du_ptr + columns, du, mask=columns < K)


@triton.jit
def _strong_gradient(
    u_ptr, resets, table, states,
    dr_ptr, dk_ptr, dv_ptr, dw_ptr, du_ptr, log_w, total, r, k, v, dy, dstate,
    token, left, H,
    K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, L: tl.constexpr,
    LEVELS: tl.constexpr, RAW: tl.constexpr, RESETS: tl.constexpr,
):  # fmt: skip
    """By levels."""
    rows, columns, v_columns = tl.arange(0, L), tl.arange(0, BK), tl.arange(0, BV)
    i, j = rows[:, None], rows[None, :]
    u = _vector(u_ptr, columns, K)
    first, rest = _split(log_w, v)
    dwithin = _dot(dy, tl.trans(v))  # [later, earlier], and mirrored
    down = tl.sum(tl.where(i == j, dwithin, 0.0), 1)[:, None]
    dwithin = tl.where(i > j, dwithin, _dot(v, tl.trans(dy)))
    if RESETS:
        document, last = _documents(resets, token, left, L)
        dwithin = tl.where(document[:, None] == document[None, :], dwithin, 0.0)
    dwithin = dwithin.to(v.dtype)
    dr = down * (u * k.to(tl.float32))
    dk = down * (u * r.to(tl.float32))
    dlog_w = tl.zeros((L, BK), tl.float32)
    for n in range(LEVELS):
        pairs, x, factor, is_later = _level(r, k, first, rest, 1 << n, L)
        dx = _dot(tl.where(pairs, dwithin, 0.0).to(v.dtype), x) * factor
        dr += tl.where(is_later, dx, 0.0)
        dk += tl.where(is_later, 0.0, dx)
        dx = dx * tl.where(is_later, r, k).to(tl.float32)
        dlog_w += _dot(_to_middle(j, i, 1 << n).to(v.dtype), dx.to(v.dtype))
    within = _levels(r, k, first, rest, L, LEVELS)
    within = _upper(within, _bonus(r, k, u), resets, token, left, L, RESETS)
    before = _table(table, 0, L)
    read = tl.exp2(_sums(before, first, rest))
    write = tl.exp2(_sums(tl.trans(before), first, rest))
    whole = tl.exp2(total)[None, :]
    if RESETS:
        read = tl.where((document == 0)[:, None], read, 0.0)
        write = tl.where((document == last)[:, None], write, 0.0)
        whole = tl.where(last == 0, whole, 0.0)
    state = _state(states, BK, BV)
    dv = _dot(within.to(v.dtype), dy)
    dv += _dot(_times(k, write), tl.trans(dstate))
    _put(dv_ptr, rows, v_columns, V, H * V, left, dv)
    dx = _dot(v, dstate) * write
    dlog_w += _dot(before, _times(k, dx))
    _put(dk_ptr, rows, columns, K, H * K, left, dk + dx)
    dx = _dot(dy, state) * read
    dlog_w += _dot(tl.trans(before), _times(r, dx))
    _put(dr_ptr, rows, columns, K, H * K, left, dr + dx)
    through = (state.to(tl.float32) * dstate.to(tl.float32)).to(v.dtype)
    dlog_w += _dot(tl.full((L, BV), 1.0, v.dtype), through) * whole
    if RAW:
        dlog_w = dlog_w * log_w * LN2
    _put(dw_ptr, rows, columns, K, H * K, left, dlog_w)
    du = tl.sum(down * (r.to(tl.float32) * k.to(tl.float32)), 0)
    tl.store(du_ptr + columns, du, mask=columns < K)


@kernel(do_not_specialize=("H",))
def step_kernel(
    r_ptr, k_ptr, v_ptr, w_ptr, u_ptr, start, resets, y_ptr, end, H,
    K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, COLUMNS: tl.constexpr,
    RAW: tl.constexpr, START: tl.constexpr, RESETS: tl.constexpr,
):  # fmt: skip
    """One token: y and the new state, COLUMNS of V."""
    bh = tl.program_id(0).to(tl.int64)
    rows, columns = tl.arange(0, BK), tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    u_ptr += bh % H * K
    r = tl.load(r_ptr + bh * K + rows, mask=rows < K, other=0.0).to(tl.float32)[:, None]
    k = tl.load(k_ptr + bh * K + rows, mask=rows < K, other=0.0).to(tl.float32)[:, None]
    u = tl.load(u_ptr + rows, mask=rows < K, other=0.0).to(tl.float32)[:, None]
    w = tl.load(w_ptr + bh * K + rows, mask=rows < K, other=0.0)[:, None]
    v = _vector(v_ptr + bh * V, columns, V)
    at = bh * (K * V) + rows[:, None] * V + columns[None, :]
    mask = (rows < K)[:, None] & (columns < V)[None, :]
    state = tl.zeros((BK, COLUMNS), tl.float32)
    if START:
        state = tl.load(start + at, mask=mask, other=0.0)
        if RESETS:
            state = tl.where(tl.load(resets + bh // H) != 0, 0.0, state)
    new = k * v
    y = tl.sum(r * (state + u * new), 0)
    tl.store(y_ptr + bh * V + columns, y.to(y_ptr.dtype.element_ty), mask=columns < V)
    tl.store(end + at, state * tl.exp2(_log2_decay(w, RAW)) + new, mask=mask)
