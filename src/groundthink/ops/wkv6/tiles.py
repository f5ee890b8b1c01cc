"""What the WKV6 kernels share: tiles of tokens, decays, levels of a chunk, and states.

Shape legend: a chunk has L tokens, K and V are the head's sizes, padded to BK and BV.
"""

# The types of kernels are those of the compiler: values, not annotations.
# pyright: reportIndexIssue=false, reportOperatorIssue=false

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
LOWEST = tl.constexpr(-150.0)
"""A decay of 2^-150 is 0 in fp32, so a stronger one is the same."""


@triton.jit
def _tile(pointer, rows, columns, width, stride, left):
    """Rows of `width` elements that lie `stride` apart, `left` of them; zeros outside."""
    at = pointer + rows[:, None] * stride + columns[None, :]
    return tl.load(at, mask=(rows < left)[:, None] & (columns < width)[None, :], other=0.0)


@triton.jit
def _put(pointer, rows, columns, width, stride, left, value):
    """Write what `_tile` reads."""
    at = pointer + rows[:, None] * stride + columns[None, :]
    mask = (rows < left)[:, None] & (columns < width)[None, :]
    tl.store(at, value.to(pointer.dtype.element_ty), mask=mask)


@triton.jit
def _vector(pointer, columns, width):
    """A row [1, width] in fp32; zeros outside."""
    return tl.load(pointer + columns, mask=columns < width, other=0.0).to(tl.float32)[None, :]


@triton.jit
def _log2_decay(w, RAW: tl.constexpr):
    """log2 of the decay from its natural log, or RAW: from what log w = -exp(raw) makes of it."""
    w = w.to(tl.float32)
    if RAW:
        w = -tl.exp(w)
    w = w * LOG2E
    return tl.where(w < LOWEST, LOWEST, w)  # keeps NaN


@triton.jit
def _decays(pointer, rows, columns, width, stride, left, RAW: tl.constexpr):
    """log2 of the decays [L, BK], 0 outside."""
    at = pointer + rows[:, None] * stride + columns[None, :]
    mask = (rows < left)[:, None] & (columns < width)[None, :]
    return _log2_decay(tl.load(at, mask=mask, other=float("-inf") if RAW else 0.0), RAW)


@triton.jit
def _dot(a, b):
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def _times(x, factor):
    return (x.to(tl.float32) * factor).to(x.dtype)


@triton.jit
def _split(x, like):
    """x as a sum of two numbers in the dtype of `like` (fp32: the second is 0)."""
    if like.dtype == tl.bfloat16:  # cut off, not rounded: cheaper
        first = (x.to(tl.int32, bitcast=True) & -65536).to(tl.float32, bitcast=True)
    else:
        first = x.to(like.dtype).to(tl.float32)
    return first.to(like.dtype), (x - first).to(like.dtype)


@triton.jit
def _sums(weights, first, rest):
    """Weighted sums of the rows of a split [L, K]."""
    weights = weights.to(first.dtype)
    if first.dtype == tl.float32:
        return _dot(weights, first + rest)
    sums = _dot(weights, first)
    return sums + _dot(weights, rest)


@triton.jit
def _before(L: tl.constexpr):
    """Of each row (first index) the rows before it."""
    i = tl.arange(0, L)
    return i[:, None] > i[None, :]


@triton.jit
def _write_table(pointer, L: tl.constexpr):
    """`_before`, and the same less 1/2: loaded from memory they take no registers."""
    i = tl.arange(0, L)
    at = pointer + i[:, None] * L + i[None, :]
    before = _before(L).to(tl.float32)
    tl.store(at, before.to(pointer.dtype.element_ty))
    tl.store(at + L * L, (before - 0.5).to(pointer.dtype.element_ty))


@triton.jit
def _table(pointer, n: tl.constexpr, L: tl.constexpr):
    """`_before` (n = 0) or the same less 1/2 (n = 1)."""
    i = tl.arange(0, L)
    return tl.load(pointer + n * L * L + i[:, None] * L + i[None, :])


@triton.jit
def _to_middle(i, j, half):
    """Whether row j lies between row i and the middle of the block of 2 half that holds i."""
    middle = (i & -(2 * half)) + half
    is_later = (i & half) != 0
    return (j >= tl.where(is_later, middle, i + 1)) & (j < tl.where(is_later, i, middle))


@triton.jit
def _level(r, k, first, rest, half, L: tl.constexpr):
    """The level of blocks of 2 half tokens.

    Returns the pairs of tokens that lie in different halves of a block [L, L]; r in later and k in
    earlier halves, with the decay to the middle of the block; this decay; which halves are later.
    """
    i, j = tl.arange(0, L)[:, None], tl.arange(0, L)[None, :]
    is_later = (i & half) != 0
    factor = tl.exp2(_sums(_to_middle(i, j, half), first, rest))
    x = _times(tl.where(is_later, r, k), factor)
    return ((i ^ j) & -half) == half, x, factor, is_later


@triton.jit
def _levels(r, k, first, rest, L: tl.constexpr, LEVELS: tl.constexpr):
    """What tokens read of one another, in both orders: only one is meant [L, L]."""
    within = tl.zeros((L, L), tl.float32)
    for n in range(LEVELS):
        pairs, x, _, _ = _level(r, k, first, rest, 1 << n, L)
        within = tl.where(pairs, _dot(x, tl.trans(x)), within)
    return within


@triton.jit
def _bonus(r, k, u):
    """What each token reads of itself [L, 1]."""
    return tl.sum(r.to(tl.float32) * k.to(tl.float32) * u, 1)[:, None]


@triton.jit
def _documents(pointer, token, left, L: tl.constexpr):
    """Resets up to each of the `left` tokens [L] of a chunk that begins at `token`, and all."""
    i = tl.arange(0, L)
    cuts = tl.load(pointer + token + i, mask=i < left, other=0).to(tl.int32)
    return tl.cumsum(cuts, 0), tl.sum(cuts, 0)


@triton.jit
def _lower(within, own, resets, token, left, L: tl.constexpr, RESETS: tl.constexpr):
    """Earlier tokens (second index) of the same document, and `own` on the diagonal."""
    i, j = tl.arange(0, L)[:, None], tl.arange(0, L)[None, :]
    within = tl.where(i > j, within, tl.where(i == j, own, 0.0))
    if RESETS:
        document, _ = _documents(resets, token, left, L)
        within = tl.where(document[:, None] == document[None, :], within, 0.0)
    return within


@triton.jit
def _upper(within, own, resets, token, left, L: tl.constexpr, RESETS: tl.constexpr):
    """Later tokens (second index) of the same document, and `own` on the diagonal."""
    i, j = tl.arange(0, L)[:, None], tl.arange(0, L)[None, :]
    within = tl.where(i < j, within, tl.where(i == j, own, 0.0))
    if RESETS:
        document, _ = _documents(resets, token, left, L)
        within = tl.where(document[:, None] == document[None, :], within, 0.0)
    return within


@triton.jit
def _state(pointer, BK: tl.constexpr, BV: tl.constexpr):
    """A saved state [BV, BK]."""
    return tl.load(pointer + tl.arange(0, BV)[:, None] * BK + tl.arange(0, BK)[None, :])


@triton.jit
def _take(pointer, bh, v, k, K: tl.constexpr, V: tl.constexpr, GIVEN: tl.constexpr):
    """Rows v and columns k of the caller's state [K, V] as [V, K]; zeros unless GIVEN."""
    state = tl.zeros((v.shape[0], k.shape[0]), tl.float32)
    if GIVEN:
        v, k = v[:, None], k[None, :]
        state = tl.load(pointer + bh * (K * V) + k * V + v, mask=(k < K) & (v < V), other=0.0)
    return state


@triton.jit
def _give(pointer, bh, v, k, state, K: tl.constexpr, V: tl.constexpr):
    """Write rows v and columns k of a state [V, K] as [K, V]."""
    v, k = v[:, None], k[None, :]
    tl.store(pointer + bh * (K * V) + k * V + v, state, mask=(k < K) & (v < V))


@triton.jit
def _fold(
    state, sums, decays, bh, count, segments, BK: tl.constexpr, BV: tl.constexpr,
    BACK: tl.constexpr,
):  # fmt: skip
    """Carry a state [V, K] through the first `count` segments (BACK: the last, in reverse)."""
    v, k = tl.arange(0, BV)[:, None], tl.arange(0, BK)
    for i in range(count):
        at = bh * segments + (segments - 1 - i if BACK else i)
        state = state * tl.load(decays + at * BK + k)[None, :]
        state += tl.load(sums + at * (BV * BK) + v * BK + k[None, :])
    return state


@triton.jit
def _make_whole(
    states, sums, decays, passed, start, end, bh, chunk, chunks, together, segments,
    K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
    START: tl.constexpr, END: tl.constexpr, BACK: tl.constexpr,
):  # fmt: skip
    """Add to a chunk's state, in memory, what came from before its segment (BACK: after it).

    The first chunk's program also writes the state at the end of all segments.
    """
    v, k = tl.arange(0, BV), tl.arange(0, BK)
    carry = _take(start, bh, v, k, K, V, START)
    if END and chunk == 0:
        whole = _fold(carry, sums, decays, bh, segments, segments, BK, BV, BACK)
        _give(end, bh, v, k, whole, K, V)
    others = segments - 1 - chunk // together if BACK else chunk // together
    least: tl.constexpr = -1 if START else 0
    if others > least:
        carry = _fold(carry, sums, decays, bh, others, segments, BK, BV, BACK)
        at = bh * chunks + chunk
        carry = carry * tl.load(passed + at * BK + k)[None, :]
        at = states + at * (BV * BK) + v[:, None] * BK + k[None, :]
        state = tl.load(at)
        tl.store(at, (state.to(tl.float32) + carry).to(state.dtype))
        tl.debug_barrier()
