"""SSD on a GPU: Triton kernels that keep the state in registers, and their gradient.

The mathematics is that of `chunked`: matrix products inside a chunk, a recurrence from chunk to
chunk. Forward is one pass (`_forward`). Backward carries the gradient of the state back through
the chunks (`_scan`); then every chunk is on its own, and one program takes it through all heads
that share B and C, so that no share of a head in their gradients is ever stored: once for what
passes between chunks (`_between`), once for what stays within (`_within`).
Where batch and heads are too few to fill the machine the sequence is cut into segments, and
`_scan` first sums up what each of them adds to the state and keeps of it.

States between chunks are stored in the dtype of x, to which the products that read them would
round them anyway. The recurrence itself is in fp32.
"""

from __future__ import annotations

import triton
import triton.language as tl

from groundthink.ops.launching import kernel

LOG2E = tl.constexpr(1.4426950408889634)
FORGOTTEN = tl.constexpr(-152.0)


@triton.jit
def _decay(
    dt_ptr, dt_t, A, reset_ptr, skipped, l, left, RESETS: tl.constexpr, EXACT: tl.constexpr
):  # fmt: skip
    """Of a chunk and a head: dt, and how the state decays from token to token.

    Returns dt; the sums of log2 of the decay up to each token, as whole numbers and as rests (a
    small decay would drown in the sum of larger ones, but whole numbers add exactly, and the sums
    of rests stay small); the documents, counted by resets; the decay from the start of the chunk
    to each token, from each token to the end, and from start to end.
    """
    dt = tl.load(dt_ptr + l * dt_t, mask=l < left, other=0.0).to(tl.float32)
    log = dt * (A * LOG2E)
    log = tl.where(log < FORGOTTEN, FORGOTTEN, log)  # keeps NaN
    whole = log
    rest = log
    if EXACT:
        whole = tl.floor(log + 0.5)
        rest = log - whole
        wholes, rests = tl.sum(whole, 0), tl.sum(rest, 0)
        whole, rest = tl.cumsum(whole, 0), tl.cumsum(rest, 0)
        start = tl.exp2(whole + rest)
        end = tl.exp2((wholes - whole) + (rests - rest))
        through = tl.exp2(wholes + rests)
    else:
        total = tl.sum(whole, 0)
        whole = tl.cumsum(whole, 0)
        start = tl.exp2(whole)
        end = tl.exp2(total - whole)
        through = tl.exp2(total)
    document = l
    if RESETS:
        reset = tl.load(reset_ptr + skipped + l, mask=l < left, other=0).to(tl.int32)
        document, documents = tl.cumsum(reset, 0), tl.sum(reset, 0)
        start = tl.where(document == 0, start, 0.0)
        end = tl.where(document == documents, end, 0.0)
        through = tl.where(documents == 0, through, 0.0)
    return dt, whole, rest, document, start, end, through


@triton.jit
def _pairs(
    s, t, s_whole, t_whole, s_rest, t_rest, s_document, t_document,
    RESETS: tl.constexpr, EXACT: tl.constexpr, AGAIN: tl.constexpr,
):  # fmt: skip
    """The decay from token s to token t, 0 where t cannot read s.

    AGAIN writes the same in another way: the compiler then computes it again when it is needed
    again, where it would have kept a matrix in registers and others out of them.
    """
    reads = s <= t
    if RESETS:
        reads = reads & (s_document == t_document)
    log = -(s_whole - t_whole) if AGAIN else t_whole - s_whole
    if EXACT:
        log += t_rest - s_rest
    return tl.exp2(tl.where(reads, log, float("-inf")))


@triton.jit
def _carried(
    first_ptr, ends_ptr, kept_ptr, row, order, segments, n, p,
    N: tl.constexpr, P: tl.constexpr, FIRST: tl.constexpr, CUT: tl.constexpr,
):  # fmt: skip
    """The state [n, p] before segment `order`: the first, taken through the segments before."""
    ok = (n < N)[:, None] & (p < P)[None, :]
    state = tl.zeros(ok.shape, tl.float32)
    if FIRST:
        first = first_ptr + row * (N * P) + p[None, :] * N + n[:, None]
        state += tl.load(first, mask=ok, other=0.0)
    if CUT:
        kept_ptr += row * (segments - 1)
        ends_ptr += row * (segments - 1) * (N * P)
        cell = n[:, None] * P + p[None, :]
        for j in range(order):
            state *= tl.load(kept_ptr + j)
            state += tl.load(ends_ptr + j * (N * P) + cell, mask=ok, other=0.0)
    return state


@kernel(do_not_specialize=["T", "chunks", "segment"])
def _scan(
    u_ptr, v_ptr, dt_ptr, A_ptr, reset_ptr, first_ptr, ends_ptr, kept_ptr, states_ptr, last_ptr,
    u_b, u_t, u_h, v_b, v_t, v_g, dt_b, dt_t, dt_h, T, H, chunks, segment,
    R: tl.constexpr, P: tl.constexpr, N: tl.constexpr, BP: tl.constexpr, BN: tl.constexpr,
    L: tl.constexpr, BACK: tl.constexpr, SUMMARY: tl.constexpr, RESETS: tl.constexpr,
    EXACT: tl.constexpr, FIRST: tl.constexpr, CUT: tl.constexpr, LAST: tl.constexpr,
):  # fmt: skip
    """state <- decay state + sum of weighted v u^T, chunk by chunk, over one segment of a head.

    Forwards u is x and v is B; backwards, over the gradient of the state, u is dy and v is C.
    A summary starts from zero and keeps the last state and the decay of the whole; otherwise the
    state that enters each chunk is kept.
    """
    h, b, order = tl.program_id(0) % H, (tl.program_id(0) // H).to(tl.int64), tl.program_id(1)
    p = tl.program_id(2) * BP + tl.arange(0, BP)
    n, l = tl.arange(0, BN), tl.arange(0, L)
    ok = (n < N)[:, None] & (p < P)[None, :]
    cell = n[:, None] * P + p[None, :]
    u_cell, v_cell = l[:, None] * u_t + p[None, :], l[:, None] * v_t + n[None, :]
    u_ptr += b * u_b + h * u_h
    v_ptr += b * v_b + (h // R) * v_g
    dt_ptr += b * dt_b + h * dt_h
    if RESETS:
        reset_ptr += b * T
    row = b * H + h
    A = tl.load(A_ptr + h)
    segments = tl.num_programs(1) + SUMMARY
    kept = 1.0
    if SUMMARY:
        state = tl.zeros((BN, BP), tl.float32)
    else:
        state = _carried(
            first_ptr, ends_ptr, kept_ptr, row, order, segments, n, p, N, P, FIRST, CUT
        )  # fmt: skip
    last = tl.minimum((order + 1) * segment, chunks)
    for i in tl.range(order * segment, last, disable_licm=True):
        c = tl.cast(tl.minimum(chunks - 1 - i if BACK else i, chunks - 1), tl.int64)
        left = T - c * L
        dt, _, _, _, start, end, through = _decay(
            dt_ptr + c * L * dt_t, dt_t, A, reset_ptr, c * L, l, left, RESETS, EXACT
        )
        if not SUMMARY:
            here = states_ptr + ((b * chunks + c) * H + h) * (N * P) + cell
            tl.store(here, state.to(states_ptr.dtype.element_ty), mask=ok)
        inside = (l < left)[:, None]
        u = tl.load(u_ptr + c * L * u_t + u_cell, mask=inside & (p < P)[None, :], other=0.0)
        v = tl.load(v_ptr + c * L * v_t + v_cell, mask=inside & (n < N)[None, :], other=0.0)
        weight = start if BACK else dt * end
        u = (u.to(tl.float32) * weight[:, None]).to(v.dtype)
        state = tl.dot(tl.trans(v), u, state * through, input_precision="ieee")
        kept *= through
    if SUMMARY:
        row = row * (segments - 1) + order
        tl.store(ends_ptr + row * (N * P) + cell, state, mask=ok)
        tl.store(kept_ptr + row, kept)
    elif LAST:  # noqa: SIM102
        if order == segments - 1:
            here = last_ptr + row * (N * P) + p[None, :] * N + n[:, None]
            tl.store(here, state, mask=ok)


@kernel(do_not_specialize=["T", "chunks", "segment"])
def _forward(
    x_ptr, dt_ptr, A_ptr, B_ptr, C_ptr, D_ptr, reset_ptr, first_ptr, ends_ptr, kept_ptr,
    y_ptr, states_ptr, last_ptr,
    x_b, x_t, x_h, dt_b, dt_t, dt_h, B_b, B_t, B_g, C_b, C_t, C_g, T, H, chunks, segment,
    R: tl.constexpr, P: tl.constexpr, N: tl.constexpr, BP: tl.constexpr, BN: tl.constexpr,
    L: tl.constexpr, RESETS: tl.constexpr, EXACT: tl.constexpr, FIRST: tl.constexpr,
    CUT: tl.constexpr, SKIP: tl.constexpr, KEEP: tl.constexpr,
):  # fmt: skip
    """y and the states, chunk by chunk, over one segment of a head."""
    h, b, order = tl.program_id(0) % H, (tl.program_id(0) // H).to(tl.int64), tl.program_id(1)
    p = tl.program_id(2) * BP + tl.arange(0, BP)
    n, l = tl.arange(0, BN), tl.arange(0, L)
    ok = (n < N)[:, None] & (p < P)[None, :]
    cell = n[:, None] * P + p[None, :]
    x_cell, y_cell = l[:, None] * x_t + p[None, :], l[:, None] * (H * P) + p[None, :]
    B_cell, C_cell = l[:, None] * B_t + n[None, :], l[:, None] * C_t + n[None, :]
    x_ptr += b * x_b + h * x_h
    dt_ptr += b * dt_b + h * dt_h
    B_ptr += b * B_b + (h // R) * B_g
    C_ptr += b * C_b + (h // R) * C_g
    y_ptr += (b * T * H + h) * P
    if RESETS:
        reset_ptr += b * T
    row, segments = b * H + h, tl.num_programs(1)
    A = tl.load(A_ptr + h)
    state = _carried(first_ptr, ends_ptr, kept_ptr, row, order, segments, n, p, N, P, FIRST, CUT)
    last = tl.minimum((order + 1) * segment, chunks)
    for i in tl.range(order * segment, last, disable_licm=True):
        c = tl.cast(tl.minimum(i, chunks - 1), tl.int64)
        left = T - c * L
        inside = (l < left)[:, None]
        x_in, n_in = inside & (p < P)[None, :], inside & (n < N)[None, :]
        B = tl.load(B_ptr + c * L * B_t + B_cell, mask=n_in, other=0.0)
        C = tl.load(C_ptr + c * L * C_t + C_cell, mask=n_in, other=0.0)
        x = tl.load(x_ptr + c * L * x_t + x_cell, mask=x_in, other=0.0)
        dt, whole, rest, document, start, end, through = _decay(
            dt_ptr + c * L * dt_t, dt_t, A, reset_ptr, c * L, l, left, RESETS, EXACT
        )
        pairs = tl.dot(C, tl.trans(B), input_precision="ieee") * _pairs(
            l[None, :], l[:, None], whole[None, :], whole[:, None], rest[None, :], rest[:, None],
            document[None, :], document[:, None], RESETS, EXACT, False,
        )  # fmt: skip
        x_full = x.to(tl.float32)
        x_dt = x_full * dt[:, None]
        rounded = state.to(x.dtype)
        if KEEP:
            here = states_ptr + ((b * chunks + c) * H + h) * (N * P) + cell
            tl.store(here, rounded, mask=ok)
        y = tl.dot(C, rounded, input_precision="ieee") * start[:, None]
        y = tl.dot(pairs.to(x.dtype), x_dt.to(x.dtype), y, input_precision="ieee")
        if SKIP:
            y += tl.load(D_ptr + h) * x_full
        tl.store(y_ptr + c * L * (H * P) + y_cell, y.to(x.dtype), mask=x_in)
        x_end = (x_dt * end[:, None]).to(x.dtype)
        state = tl.dot(tl.trans(B), x_end, state * through, input_precision="ieee")
    if order == segments - 1:
        here = last_ptr + row * (N * P) + p[None, :] * N + n[:, None]
        tl.store(here, state, mask=ok)


@kernel(do_not_specialize=["T", "chunks"])
def _between(
    x_ptr, dt_ptr, A_ptr, B_ptr, C_ptr, reset_ptr, states_ptr, dstates_ptr, dy_ptr,
    ddt_ptr, dB_ptr, dC_ptr, sums_ptr,
    x_b, x_t, x_h, dt_b, dt_t, dt_h, B_b, B_t, B_g, C_b, C_t, C_g, T, H, chunks,
    R: tl.constexpr, P: tl.constexpr, N: tl.constexpr, BP: tl.constexpr, BN: tl.constexpr,
    L: tl.constexpr, RESETS: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """What the states between chunks give to the gradients of dt, A, B and C.

    For one chunk and the heads of a group.
    """
    c, b = (tl.program_id(0) % chunks).to(tl.int64), (tl.program_id(0) // chunks).to(tl.int64)
    g, G = tl.program_id(1), tl.num_programs(1)
    p, n, l = tl.arange(0, BP), tl.arange(0, BN), tl.arange(0, L)
    left = T - c * L
    inside = (l < left)[:, None]
    x_in, n_in = inside & (p < P)[None, :], inside & (n < N)[None, :]
    ok = (n < N)[:, None] & (p < P)[None, :]
    cell = n[:, None] * P + p[None, :]
    x_cell, y_cell = l[:, None] * x_t + p[None, :], l[:, None] * (H * P) + p[None, :]
    first = b * T + c * L
    x_ptr += b * x_b + c * L * x_t
    dt_ptr += b * dt_b + c * L * dt_t
    if RESETS:
        reset_ptr += first
    B_ptr += b * B_b + c * L * B_t + g * B_g
    C_ptr += b * C_b + c * L * C_t + g * C_g
    B = tl.load(B_ptr + l[:, None] * B_t + n[None, :], mask=n_in, other=0.0)
    C = tl.load(C_ptr + l[:, None] * C_t + n[None, :], mask=n_in, other=0.0)
    dB = tl.zeros((L, BN), tl.float32)
    dC = tl.zeros((L, BN), tl.float32)
    for r in tl.range(0, R, disable_licm=True):
        h = tl.minimum(g * R + r, H - 1)  # hides from the compiler that pointers move evenly
        A = tl.load(A_ptr + h)
        x = tl.load(x_ptr + h * x_h + x_cell, mask=x_in, other=0.0)
        dy = tl.load(dy_ptr + (first * H + h) * P + y_cell, mask=x_in, other=0.0)
        here = ((b * chunks + c) * H + h) * (N * P)
        state = tl.load(states_ptr + here + cell, mask=ok, other=0.0)
        dstate = tl.load(dstates_ptr + here + cell, mask=ok, other=0.0)
        dt, _, _, _, start, end, through = _decay(
            dt_ptr + h * dt_h, dt_t, A, reset_ptr, 0, l, left, RESETS, EXACT
        )
        kept = tl.sum(state.to(tl.float32) * dstate.to(tl.float32)) * through
        x_full, dy_full = x.to(tl.float32), dy.to(tl.float32)
        writes = tl.dot(B, dstate, input_precision="ieee")
        writes = tl.sum(writes * x_full, 1) * end
        x_end = (x_full * (dt * end)[:, None]).to(x.dtype)
        dB = tl.dot(x_end, tl.trans(dstate), dB, input_precision="ieee")
        reads = tl.dot(C, state, input_precision="ieee")
        reads = tl.sum(reads * dy_full, 1) * start
        dy_start = (dy_full * start[:, None]).to(x.dtype)
        dC = tl.dot(dy_start, tl.trans(state), dC, input_precision="ieee")

        # What decays across a token: the state before the chunk, read from it on; what earlier
        # tokens left in the state after; and what is kept of the state before.
        behind = writes * dt
        dlog = tl.cumsum(reads, 0, reverse=True) + (tl.cumsum(behind, 0) - behind) + kept
        tl.store(ddt_ptr + first * H + h + l * H, writes + dlog * A, mask=l < left)
        tl.store(sums_ptr + (b * chunks + c) * (2 * H) + h, tl.sum(dlog * dt))
    n_here = (first * G + g) * N + l[:, None] * (G * N) + n[None, :]
    tl.store(dB_ptr + n_here, dB, mask=n_in)
    tl.store(dC_ptr + n_here, dC, mask=n_in)


@kernel(do_not_specialize=["T", "chunks"])
def _within(
    x_ptr, dt_ptr, A_ptr, B_ptr, C_ptr, D_ptr, reset_ptr, dstates_ptr, dy_ptr,
    ddt_between_ptr, dB_between_ptr, dC_between_ptr, dx_ptr, ddt_ptr, dB_ptr, dC_ptr, sums_ptr,
    x_b, x_t, x_h, dt_b, dt_t, dt_h, B_b, B_t, B_g, C_b, C_t, C_g, T, H, chunks,
    R: tl.constexpr, P: tl.constexpr, N: tl.constexpr, BP: tl.constexpr, BN: tl.constexpr,
    L: tl.constexpr, RESETS: tl.constexpr, EXACT: tl.constexpr, SKIP: tl.constexpr,
    SUMS: tl.constexpr,
):  # fmt: skip
    """The gradient of x, and what tokens of a chunk give to one another, added to `_between`.

    For one chunk and the heads of a group. Matrices over pairs of tokens are [s, t]: t reads s.
    """
    c, b = (tl.program_id(0) % chunks).to(tl.int64), (tl.program_id(0) // chunks).to(tl.int64)
    g, G = tl.program_id(1), tl.num_programs(1)
    p, n, l = tl.arange(0, BP), tl.arange(0, BN), tl.arange(0, L)
    left = T - c * L
    inside = (l < left)[:, None]
    x_in, n_in = inside & (p < P)[None, :], inside & (n < N)[None, :]
    ok = (n < N)[:, None] & (p < P)[None, :]
    cell = n[:, None] * P + p[None, :]
    x_cell, y_cell = l[:, None] * x_t + p[None, :], l[:, None] * (H * P) + p[None, :]
    first = b * T + c * L
    x_ptr += b * x_b + c * L * x_t
    dt_ptr += b * dt_b + c * L * dt_t
    if RESETS:
        reset_ptr += first
    B_ptr += b * B_b + c * L * B_t + g * B_g
    C_ptr += b * C_b + c * L * C_t + g * C_g
    B = tl.load(B_ptr + l[:, None] * B_t + n[None, :], mask=n_in, other=0.0)
    C = tl.load(C_ptr + l[:, None] * C_t + n[None, :], mask=n_in, other=0.0)
    BC = tl.dot(B, tl.trans(C), input_precision="ieee")
    wide: tl.constexpr = tl.bfloat16 if B.dtype == tl.bfloat16 else tl.float32  # for sums
    across = (l[:, None] <= l[None, :]).to(wide)  # of a decay and a later token
    dBC = tl.zeros((L, L), tl.float32)
    for r in tl.range(0, R, disable_licm=True):
        h = tl.minimum(g * R + r, H - 1)  # hides from the compiler that pointers move evenly
        A = tl.load(A_ptr + h)
        x = tl.load(x_ptr + h * x_h + x_cell, mask=x_in, other=0.0)
        dy = tl.load(dy_ptr + (first * H + h) * P + y_cell, mask=x_in, other=0.0)
        here = ((b * chunks + c) * H + h) * (N * P)
        dstate = tl.load(dstates_ptr + here + cell, mask=ok, other=0.0)
        dt, whole, rest, document, _, end, _ = _decay(
            dt_ptr + h * dt_h, dt_t, A, reset_ptr, 0, l, left, RESETS, EXACT
        )
        sums = sums_ptr + (b * chunks + c) * (2 * H) + h
        pairs = BC * _pairs(
            l[:, None], l[None, :], whole[:, None], whole[None, :], rest[:, None], rest[None, :],
            document[:, None], document[None, :], RESETS, EXACT, False,
        )  # fmt: skip
        dx = tl.dot(B, dstate, input_precision="ieee") * end[:, None]
        dx = tl.dot(pairs.to(x.dtype), dy, dx, input_precision="ieee") * dt[:, None]
        if SKIP:
            dx += tl.load(D_ptr + h) * dy.to(tl.float32)
        tl.store(dx_ptr + (first * H + h) * P + y_cell, dx.to(dx_ptr.dtype.element_ty), mask=x_in)

        dpairs = tl.dot(x, tl.trans(dy), input_precision="ieee")
        if SKIP:
            tl.store(sums + H, tl.sum(tl.where(l[:, None] == l[None, :], dpairs, 0.0)))
        dpairs *= _pairs(
            l[:, None], l[None, :], whole[:, None], whole[None, :], rest[:, None], rest[None, :],
            document[:, None], document[None, :], RESETS, EXACT, True,
        )  # fmt: skip
        dBC += dpairs * dt[:, None]
        dpairs *= BC
        ddt = tl.sum(dpairs, 1)
        # What decays across a token: what earlier tokens gave to it and to later ones.
        dpairs = (dpairs * dt[:, None]).to(across.dtype)
        crossings = tl.dot(across, tl.trans(dpairs), input_precision=SUMS)
        dlog = tl.sum(tl.where(l[None, :] < l[:, None], crossings, 0.0), 1)
        ddt_here = first * H + h + l * H
        ddt += dlog * A + tl.load(ddt_between_ptr + ddt_here, mask=l < left, other=0.0)
        tl.store(ddt_ptr + ddt_here, ddt.to(ddt_ptr.dtype.element_ty), mask=l < left)
        tl.store(sums, tl.load(sums) + tl.sum(dlog * dt))
    n_here = (first * G + g) * N + l[:, None] * (G * N) + n[None, :]
    dBC = dBC.to(B.dtype)
    dB = tl.dot(dBC, C, input_precision="ieee")
    dB += tl.load(dB_between_ptr + n_here, mask=n_in, other=0.0)
    tl.store(dB_ptr + n_here, dB.to(dB_ptr.dtype.element_ty), mask=n_in)
    dC = tl.dot(tl.trans(dBC), B, input_precision="ieee")
    dC += tl.load(dC_between_ptr + n_here, mask=n_in, other=0.0)
    tl.store(dC_ptr + n_here, dC.to(dC_ptr.dtype.element_ty), mask=n_in)


@kernel
def _step(
    x_ptr, dt_ptr, A_ptr, B_ptr, C_ptr, D_ptr, reset_ptr, first_ptr, y_ptr, last_ptr,
    x_b, x_h, dt_b, dt_h, B_b, B_g, C_b, C_g, H,
    R: tl.constexpr, P: tl.constexpr, N: tl.constexpr, ROWS: tl.constexpr, BN: tl.constexpr,
    RESETS: tl.constexpr, FIRST: tl.constexpr, SKIP: tl.constexpr,
):  # fmt: skip
    """One token of a head, for some rows of its state."""
    h, b = tl.program_id(0) % H, (tl.program_id(0) // H).to(tl.int64)
    p, n = tl.program_id(1) * ROWS + tl.arange(0, ROWS), tl.arange(0, BN)
    x = tl.load(x_ptr + b * x_b + h * x_h + p, mask=p < P, other=0.0).to(tl.float32)
    B = tl.load(B_ptr + b * B_b + h // R * B_g + n, mask=n < N, other=0.0).to(tl.float32)
    C = tl.load(C_ptr + b * C_b + h // R * C_g + n, mask=n < N, other=0.0).to(tl.float32)
    dt = tl.load(dt_ptr + b * dt_b + h * dt_h).to(tl.float32)
    ok = (p < P)[:, None] & (n < N)[None, :]
    row = b * H + h
    cell = row * (P * N) + p[:, None] * N + n[None, :]
    state = (dt * x)[:, None] * B[None, :]
    if FIRST:
        first = tl.load(first_ptr + cell, mask=ok, other=0.0)
        kept = tl.exp2(dt * (tl.load(A_ptr + h) * LOG2E))
        if RESETS:
            kept = tl.where(tl.load(reset_ptr + b) != 0, 0.0, kept)
        state += first * kept
    tl.store(last_ptr + cell, state, mask=ok)
    y = tl.sum(state * C[None, :], 1)
    if SKIP:
        y += tl.load(D_ptr + h) * x
    tl.store(y_ptr + row * P + p, y.to(y_ptr.dtype.element_ty), mask=p < P)
