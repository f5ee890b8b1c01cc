"""SSD on a GPU: Triton kernels for the recurrence over chunks and for what is inside of them.

The mathematics is that of `chunked`: matrix products inside a chunk, a recurrence from chunk to
chunk. A light pass carries the state through the chunks (`_scan`); then every chunk is on its own,
and a program takes it through heads that share B and C (`_output`), so that their product is
formed once. Backward carries the gradient of the state back through the chunks in the same way; a
program then takes a chunk through all heads of a group, so that no share of a head in the gradients
of B and C is ever stored: once for what passes between chunks (`_between`), once for what stays
within (`_within`).
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
def _kept(
    s_whole, t_whole, s_rest, t_rest, s_document, t_document,
    RESETS: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """What the decay from token s to token t keeps; of no meaning, but at most 1, for t before s.

    So products with it are taken with a matrix that is 0 there, and no mask is needed per head.
    """
    log = t_whole - s_whole
    if EXACT:
        log += t_rest - s_rest
    kept = tl.exp2(tl.minimum(log, 0.0))
    if RESETS:
        kept = tl.where(s_document == t_document, kept, 0.0)
    return kept


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


@triton.jit
def _chunk(
    x_ptr, dt_ptr, B_ptr, C_ptr, x_b, x_t, dt_b, dt_t, B_b, B_t, B_g, C_b, C_t, C_g,
    T, H, chunks, g,
    P: tl.constexpr, N: tl.constexpr, BP: tl.constexpr, BN: tl.constexpr, L: tl.constexpr,
):  # fmt: skip
    """What the programs of a chunk of group g start from.

    Returns the pointers to x and dt at the chunk; B and C; where in x, in tensors like y and in a
    state the elements of a tile lie, and which of them there are; its tokens, how many there are,
    the first of them and the chunk as rows of [B T] and [B chunks].
    """
    c, b = (tl.program_id(0) % chunks).to(tl.int64), (tl.program_id(0) // chunks).to(tl.int64)
    p, n, l = tl.arange(0, BP), tl.arange(0, BN), tl.arange(0, L)
    left = T - c * L
    token, chunk = b * T + c * L, b * chunks + c
    x_ptr += b * x_b + c * L * x_t
    dt_ptr += b * dt_b + c * L * dt_t
    x_in, n_in = (l < left)[:, None] & (p < P)[None, :], (l < left)[:, None] & (n < N)[None, :]
    B_ptr += b * B_b + c * L * B_t + g * B_g
    C_ptr += b * C_b + c * L * C_t + g * C_g
    B = tl.load(B_ptr + l[:, None] * B_t + n[None, :], mask=n_in, other=0.0)
    C = tl.load(C_ptr + l[:, None] * C_t + n[None, :], mask=n_in, other=0.0)
    x_cell, y_cell = l[:, None] * x_t + p[None, :], l[:, None] * (H * P) + p[None, :]
    cell, ok = n[:, None] * P + p[None, :], (n < N)[:, None] & (p < P)[None, :]
    return x_ptr, dt_ptr, B, C, x_cell, y_cell, cell, x_in, n_in, ok, l, left, token, chunk


@kernel(do_not_specialize=["T", "chunks", "share"])
def _output(
    x_ptr, dt_ptr, A_ptr, B_ptr, C_ptr, D_ptr, reset_ptr, states_ptr, y_ptr,
    x_b, x_t, x_h, dt_b, dt_t, dt_h, B_b, B_t, B_g, C_b, C_t, C_g, T, H, chunks, share,
    R: tl.constexpr, P: tl.constexpr, N: tl.constexpr, BP: tl.constexpr, BN: tl.constexpr,
    L: tl.constexpr, RESETS: tl.constexpr, EXACT: tl.constexpr, SKIP: tl.constexpr,
):  # fmt: skip
    """y of one chunk, for `share` of the heads of a group."""
    (
        x_ptr, dt_ptr, B, C, x_cell, y_cell, cell, x_in, n_in, ok, l, left, token, chunk,
    ) = _chunk(
        x_ptr, dt_ptr, B_ptr, C_ptr, x_b, x_t, dt_b, dt_t, B_b, B_t, B_g, C_b, C_t, C_g,
        T, H, chunks, tl.program_id(1) * share // R, P, N, BP, BN, L,
    )  # fmt: skip
    CB = tl.dot(C, tl.trans(B), input_precision="ieee")
    CB = tl.where(l[None, :] <= l[:, None], CB, 0.0)
    for r in tl.range(0, share, disable_licm=True):
        h = tl.minimum(tl.program_id(1) * share + r, H - 1)  # see _between
        A = tl.load(A_ptr + h)
        x = tl.load(x_ptr + h * x_h + x_cell, mask=x_in, other=0.0)
        state = tl.load(states_ptr + (chunk * H + h) * (N * P) + cell, mask=ok, other=0.0)
        dt, whole, rest, document, start, _, _ = _decay(
            dt_ptr + h * dt_h, dt_t, A, reset_ptr, token, l, left, RESETS, EXACT
        )
        y = tl.dot(C, state, input_precision="ieee") * start[:, None]
        pairs = CB * _kept(
            whole[None, :], whole[:, None], rest[None, :], rest[:, None],
            document[None, :], document[:, None], RESETS, EXACT,
        )  # fmt: skip
        y = tl.dot((pairs * dt[None, :]).to(x.dtype), x, y, input_precision="ieee")
        if SKIP:
            y += tl.load(D_ptr + h) * x.to(tl.float32)
        tl.store(y_ptr + (token * H + h) * P + y_cell, y.to(y_ptr.dtype.element_ty), mask=x_in)


@kernel(do_not_specialize=["T", "chunks"])
def _between(
    x_ptr, dt_ptr, A_ptr, B_ptr, C_ptr, reset_ptr, states_ptr, dstates_ptr, dy_ptr,
    ddt_ptr, dB_ptr, dC_ptr, sums_ptr,
    x_b, x_t, x_h, dt_b, dt_t, dt_h, B_b, B_t, B_g, C_b, C_t, C_g, T, H, chunks,
    R: tl.constexpr, P: tl.constexpr, N: tl.constexpr, BP: tl.constexpr, BN: tl.constexpr,
    L: tl.constexpr, RESETS: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """What the states around a chunk give to the gradients of dt, A, B and C.

    For one chunk and the heads of a group.
    """
    (
        x_ptr, dt_ptr, B, C, x_cell, y_cell, cell, x_in, n_in, ok, l, left, token, chunk,
    ) = _chunk(
        x_ptr, dt_ptr, B_ptr, C_ptr, x_b, x_t, dt_b, dt_t, B_b, B_t, B_g, C_b, C_t, C_g,
        T, H, chunks, tl.program_id(1), P, N, BP, BN, L,
    )  # fmt: skip
    g, G = tl.program_id(1), tl.num_programs(1)
    dB = tl.zeros((L, BN), tl.float32)
    dC = tl.zeros((L, BN), tl.float32)
    for r in tl.range(0, R, disable_licm=True):
        h = tl.minimum(g * R + r, H - 1)  # hides from the compiler that pointers move evenly
        A = tl.load(A_ptr + h)
        x = tl.load(x_ptr + h * x_h + x_cell, mask=x_in, other=0.0)
        dy = tl.load(dy_ptr + (token * H + h) * P + y_cell, mask=x_in, other=0.0)
        here = (chunk * H + h) * (N * P)
        state = tl.load(states_ptr + here + cell, mask=ok, other=0.0)
        dstate = tl.load(dstates_ptr + here + cell, mask=ok, other=0.0)
        dt, _, _, _, start, end, through = _decay(
            dt_ptr + h * dt_h, dt_t, A, reset_ptr, token, l, left, RESETS, EXACT
        )
        # The sum of x dy, for D, is left to `_within`: it would make the compiler lay x and dy out
        # here so that reads of shared memory conflict, half as slow again.
        x_full, dy_full = x.to(tl.float32), dy.to(tl.float32)
        writes = tl.dot(B, dstate, input_precision="ieee")
        writes = tl.sum(writes * x_full, 1) * end
        x_end = (x_full * (dt * end)[:, None]).to(x.dtype)
        dB = tl.dot(x_end, tl.trans(dstate), dB, input_precision="ieee")
        reads = tl.dot(C, state, input_precision="ieee")
        reads = tl.sum(reads * dy_full, 1) * start
        dy_start = (dy_full * start[:, None]).to(x.dtype)
        dC = tl.dot(dy_start, tl.trans(state), dC, input_precision="ieee")
        kept = tl.sum(state.to(tl.float32) * dstate.to(tl.float32)) * through

        # What decays across a token: the state before the chunk, read from it on; what earlier
        # tokens left in the state after; and what is kept of the state before.
        behind = writes * dt
        dlog = tl.cumsum(reads, 0, reverse=True) + (tl.cumsum(behind, 0) - behind) + kept
        tl.store(ddt_ptr + (token + l) * H + h, writes + dlog * A, mask=l < left)
        tl.store(sums_ptr + chunk * 2 * H + h, tl.sum(dlog * dt))
    n_here = (token * G + g) * N + l[:, None] * (G * N) + tl.arange(0, BN)[None, :]
    tl.store(dB_ptr + n_here, dB, mask=n_in)
    tl.store(dC_ptr + n_here, dC, mask=n_in)


@kernel(do_not_specialize=["T", "chunks"])
def _within(
    x_ptr, dt_ptr, A_ptr, B_ptr, C_ptr, D_ptr, reset_ptr, dstates_ptr, dy_ptr,
    ddt_between_ptr, dB_between_ptr, dC_between_ptr, dx_ptr, ddt_ptr, dB_ptr, dC_ptr, sums_ptr,
    x_b, x_t, x_h, dt_b, dt_t, dt_h, B_b, B_t, B_g, C_b, C_t, C_g, T, H, chunks,
    dx_t, dB_t,
    R: tl.constexpr, P: tl.constexpr, N: tl.constexpr, BP: tl.constexpr, BN: tl.constexpr,
    L: tl.constexpr, RESETS: tl.constexpr, EXACT: tl.constexpr, SKIP: tl.constexpr,
):  # fmt: skip
    """The gradient of x, and what tokens of a chunk give to one another, added to `_between`.

    For one chunk and the heads of a group. Matrices over pairs of tokens are [s, t]: t reads s.
    """
    (
        x_ptr, dt_ptr, B, C, x_cell, y_cell, cell, x_in, n_in, ok, l, left, token, chunk,
    ) = _chunk(
        x_ptr, dt_ptr, B_ptr, C_ptr, x_b, x_t, dt_b, dt_t, B_b, B_t, B_g, C_b, C_t, C_g,
        T, H, chunks, tl.program_id(1), P, N, BP, BN, L,
    )  # fmt: skip
    g, G = tl.program_id(1), tl.num_programs(1)
    across = l[:, None] <= l[None, :]  # of a decay and a later token
    BC = tl.where(across, tl.dot(B, tl.trans(C), input_precision="ieee"), 0.0)
    dBC = tl.zeros((L, L), tl.float32)
    for r in tl.range(0, R, disable_licm=True):
        h = tl.minimum(g * R + r, H - 1)  # see _between
        A = tl.load(A_ptr + h)
        x = tl.load(x_ptr + h * x_h + x_cell, mask=x_in, other=0.0)
        dy = tl.load(dy_ptr + (token * H + h) * P + y_cell, mask=x_in, other=0.0)
        dstate = tl.load(dstates_ptr + (chunk * H + h) * (N * P) + cell, mask=ok, other=0.0)
        here = (token + l) * H + h
        dt, whole, rest, document, _, end, _ = _decay(
            dt_ptr + h * dt_h, dt_t, A, reset_ptr, token, l, left, RESETS, EXACT
        )
        dpairs = tl.dot(x, tl.trans(dy), input_precision="ieee")
        kept = _kept(
            whole[:, None], whole[None, :], rest[:, None], rest[None, :],
            document[:, None], document[None, :], RESETS, EXACT,
        )  # fmt: skip
        pairs = (BC * kept).to(x.dtype)
        dpairs *= kept
        sums = sums_ptr + chunk * 2 * H + h
        if SKIP:  # nothing decays from a token to itself
            to_itself = tl.where(l[:, None] == l[None, :], dpairs, 0.0)
            tl.store(sums + H, tl.sum(to_itself))
        dBC += dpairs * dt[:, None]
        passed = dpairs * BC
        given = tl.sum(passed, 1)
        # What decays across a token: what earlier tokens gave to it and to later ones. As what they
        # gave less what was taken up before it this is off by the last digits of fp32, which is
        # too much for fp32 alone where decays are strong.
        passed *= dt[:, None]
        if EXACT:
            crossings = tl.dot(across.to(tl.float32), tl.trans(passed), input_precision="ieee")
            crossings = tl.sum(tl.where(l[None, :] < l[:, None], crossings, 0.0), 1)
        else:
            change = given * dt - tl.sum(passed, 0)
            crossings = tl.cumsum(change, 0) - change
        dx = tl.dot(B, dstate, input_precision="ieee") * end[:, None]
        dx = tl.dot(pairs, dy, dx, input_precision="ieee") * dt[:, None]
        if SKIP:
            dx += tl.load(D_ptr + h) * dy.to(tl.float32)
        at = dx_ptr + token * dx_t + h * P + l[:, None] * dx_t + tl.arange(0, BP)[None, :]
        tl.store(at, dx.to(dx_ptr.dtype.element_ty), mask=x_in)
        given += tl.load(ddt_between_ptr + here, mask=l < left, other=0.0)
        ddt = given + crossings * A
        tl.store(ddt_ptr + here, ddt.to(ddt_ptr.dtype.element_ty), mask=l < left)
        tl.store(sums, tl.load(sums) + tl.sum(crossings * dt))
    n_here = (token * G + g) * N + l[:, None] * (G * N) + tl.arange(0, BN)[None, :]
    dBC = tl.where(across, dBC, 0.0).to(B.dtype)
    dB = tl.dot(dBC, C, input_precision="ieee")
    dB += tl.load(dB_between_ptr + n_here, mask=n_in, other=0.0)
    at = token * dB_t + g * N + (l[:, None] * dB_t + tl.arange(0, BN)[None, :])
    tl.store(dB_ptr + at, dB.to(dB_ptr.dtype.element_ty), mask=n_in)
    dC = tl.dot(tl.trans(dBC), B, input_precision="ieee")
    dC += tl.load(dC_between_ptr + n_here, mask=n_in, other=0.0)
    tl.store(dC_ptr + at, dC.to(dC_ptr.dtype.element_ty), mask=n_in)


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
