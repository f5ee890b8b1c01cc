"""The GELU MLP of narrow models as Triton kernels: a tile of tokens stays on the chip.

Some hidden units at a time go through both products. Backward they are computed again, and left in
memory with their gradients for the sums over tokens that are the gradients of the weights.
"""

from __future__ import annotations

import triton
import triton.language as tl

from groundthink.ops.launching import kernel


@triton.jit
def _gelu(u):
    """The normal distribution function at u, and its density.

    erf after Abramowitz and Stegun 1964, 7.1.26: off by 1.5e-7 at most.
    """
    t = 1 / (1 + 0.3275911 * 0.7071067811865476 * tl.abs(u))
    series = 1.061405429 * t - 1.453152027
    series = series * t + 1.421413741
    series = series * t - 0.284496736
    series = (series * t + 0.254829592) * t
    bell = tl.exp(-0.5 * u * u)
    tail = 0.5 * series * bell
    return tl.where(u < 0, tail, 1 - tail), 0.3989422804014327 * bell


@triton.jit
def _rows(ptr, row, n, column, SIZE: tl.constexpr):
    at = row.to(tl.int64) * SIZE + column
    return tl.load(ptr + at, (row < n) & (column < SIZE), 0)


@triton.jit
def _normed(x, SIZE: tl.constexpr, eps):
    scale = tl.rsqrt(tl.sum(x * x, axis=1) / SIZE + eps)[:, None]
    return x * scale, scale


@kernel
def _forward(
    x_ptr,
    norm_ptr,
    up_ptr,
    down_ptr,
    out_ptr,
    n,
    eps,
    SIZE: tl.constexpr,
    HIDDEN: tl.constexpr,
    PAD: tl.constexpr,
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,
    STAGES: tl.constexpr,
):
    kind = up_ptr.dtype.element_ty
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    channel = tl.arange(0, PAD)
    x = _rows(x_ptr, row, n, channel[None, :], SIZE).to(tl.float32)
    weight = tl.load(norm_ptr + channel, channel < SIZE, 0).to(tl.float32)
    normed = _normed(x, SIZE, eps)[0]
    h = (normed * weight[None, :]).to(kind)
    out = tl.zeros((ROWS, PAD), tl.float32)
    for first in tl.range(0, HIDDEN, UNITS, num_stages=STAGES):
        unit = first + tl.arange(0, UNITS)
        up = _rows(up_ptr, unit[:, None], HIDDEN, channel[None, :], SIZE)
        down = _rows(down_ptr, channel[:, None], SIZE, unit[None, :], HIDDEN)
        u = tl.dot(h, tl.trans(up))
        share, _ = _gelu(u)
        out = tl.dot((u * share).to(kind), tl.trans(down), out)
    out += _rows(x_ptr, row, n, channel[None, :], SIZE).to(tl.float32)
    at = out_ptr + row.to(tl.int64) * SIZE + channel[None, :]
    tl.store(at, out.to(out_ptr.dtype.element_ty), (row < n) & (channel < SIZE)[None, :])


@kernel
def _backward(
    x_ptr,
    norm_ptr,
    up_ptr,
    down_ptr,
    dout_ptr,
    dx_ptr,
    h_ptr,
    dy_ptr,
    hidden_ptr,
    dhidden_ptr,
    shares_ptr,
    n,
    eps,
    SIZE: tl.constexpr,
    HIDDEN: tl.constexpr,
    PAD: tl.constexpr,
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,
    STAGES: tl.constexpr,
):
    kind = up_ptr.dtype.element_ty
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    channel = tl.arange(0, PAD)
    inside = (row < n) & (channel < SIZE)[None, :]
    at = row.to(tl.int64) * SIZE + channel[None, :]
    x = _rows(x_ptr, row, n, channel[None, :], SIZE).to(tl.float32)
    weight = tl.load(norm_ptr + channel, channel < SIZE, 0).to(tl.float32)[None, :]
    normed, _ = _normed(x, SIZE, eps)
    h = (normed * weight).to(kind)
    dy = tl.load(dout_ptr + at, inside, 0).to(kind)
    tl.store(h_ptr + at, h, inside)
    tl.store(dy_ptr + at, dy, inside)
    dh = tl.zeros((ROWS, PAD), tl.float32)
    for first in tl.range(0, HIDDEN, UNITS, num_stages=STAGES):
        unit = first + tl.arange(0, UNITS)
        up = _rows(up_ptr, unit[:, None], HIDDEN, channel[None, :], SIZE)
        down = _rows(down_ptr, channel[:, None], SIZE, unit[None, :], HIDDEN)
        u = tl.dot(h, tl.trans(up))
        dhidden = tl.dot(dy, down)
        share, density = _gelu(u)
        dhidden = (dhidden * (share + u * density)).to(kind)
        dh = tl.dot(dhidden, up, dh)
        place = row.to(tl.int64) * HIDDEN + unit[None, :]
        among = (row < n) & (unit < HIDDEN)[None, :]
        tl.store(hidden_ptr + place, (u * share).to(kind), among)
        tl.store(dhidden_ptr + place, dhidden, among)
    x = _rows(x_ptr, row, n, channel[None, :], SIZE).to(tl.float32)
    normed, scale = _normed(x, SIZE, eps)
    share = tl.sum(dh * normed, axis=0)[None, :]
    tl.store(
        shares_ptr + tl.program_id(0) * SIZE + channel[None, :], share, (channel < SIZE)[None, :]
    )
    dh *= weight
    mean = tl.sum(dh * normed, axis=1)[:, None] / SIZE
    dx = (dh - normed * mean) * scale
    dx += tl.load(dout_ptr + at, inside, 0).to(tl.float32)
    tl.store(dx_ptr + at, dx.to(dx_ptr.dtype.element_ty), inside)
