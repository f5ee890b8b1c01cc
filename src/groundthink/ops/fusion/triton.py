"""The fusions as Triton kernels: each branch is read once forward and once backward."""

from __future__ import annotations

import triton
import triton.language as tl

from groundthink.ops.launching import kernel


@triton.jit
def _load(ptr, row, step, channel, inside):
    return tl.load(ptr + row * step + channel, inside, 0).to(tl.float32)


@triton.jit
def _weights(ptr, channel, real):
    """Per-channel weights, or 1 where there are none."""
    weight = 1.0
    if ptr is not None:
        weight = tl.load(ptr + channel, real, 0).to(tl.float32)
    return weight


@triton.jit
def _normed(x, norm_ptr, SIZE: tl.constexpr, eps):
    """x over its root mean square, and 1 / that; x itself without a norm."""
    scale = 1.0
    if norm_ptr is not None:
        scale = tl.rsqrt(tl.sum(x * x, axis=1) / SIZE + eps)[:, None]
    return x * scale, scale


@triton.jit
def _norm_gradient(dnormed, normed, scale, norm_ptr, SIZE: tl.constexpr):
    if norm_ptr is not None:
        along = tl.sum(dnormed * normed, axis=1)[:, None] / SIZE
        dnormed = (dnormed - normed * along) * scale
    return dnormed


@kernel
def _gate_forward(
    x_ptr,
    r_ptr,
    m_ptr,
    norm_r_ptr,
    norm_m_ptr,
    weight_ptr,
    bias_ptr,
    out_ptr,
    gate_ptr,
    n,
    x_step,
    r_step,
    m_step,
    eps,
    SIZE: tl.constexpr,
    X_UNIT: tl.constexpr,
    R_UNIT: tl.constexpr,
    M_UNIT: tl.constexpr,
    PAD: tl.constexpr,
    ROWS: tl.constexpr,
):
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    channel = tl.arange(0, PAD)[None, :]
    real = channel < SIZE
    inside = (row < n) & real
    r, _ = _normed(_load(r_ptr, row, r_step * R_UNIT, channel, inside), norm_r_ptr, SIZE, eps)
    m, _ = _normed(_load(m_ptr, row, m_step * M_UNIT, channel, inside), norm_m_ptr, SIZE, eps)
    r *= _weights(norm_r_ptr, channel, real)
    m *= _weights(norm_m_ptr, channel, real)
    logit = r * _weights(weight_ptr, channel, real) + m * _weights(weight_ptr, SIZE + channel, real)
    a = tl.sigmoid(tl.sum(logit, axis=1)[:, None] + tl.load(bias_ptr).to(tl.float32))
    out = _load(x_ptr, row, x_step * X_UNIT, channel, inside) + m + a * (r - m)
    tl.store(out_ptr + row * SIZE + channel, out.to(out_ptr.dtype.element_ty), inside)
    tl.store(gate_ptr + row, a, row < n)


@kernel
def _gate_backward(
    r_ptr,
    m_ptr,
    norm_r_ptr,
    norm_m_ptr,
    weight_ptr,
    gate_ptr,
    dout_ptr,
    dgate_ptr,
    dr_ptr,
    dm_ptr,
    shares_ptr,
    n,
    r_step,
    m_step,
    dout_step,
    eps,
    SIZE: tl.constexpr,
    R_UNIT: tl.constexpr,
    M_UNIT: tl.constexpr,
    DOUT_UNIT: tl.constexpr,
    PAD: tl.constexpr,
    ROWS: tl.constexpr,
):
    channel = tl.arange(0, PAD)[None, :]
    real = channel < SIZE
    norm_r = _weights(norm_r_ptr, channel, real)
    norm_m = _weights(norm_m_ptr, channel, real)
    weight_r = _weights(weight_ptr, channel, real)
    weight_m = _weights(weight_ptr, SIZE + channel, real)
    dnorm_r = tl.zeros((ROWS, PAD), tl.float32)
    dnorm_m = tl.zeros((ROWS, PAD), tl.float32)
    dweight_r = tl.zeros((ROWS, PAD), tl.float32)
    dweight_m = tl.zeros((ROWS, PAD), tl.float32)
    dbias = tl.zeros((ROWS, 1), tl.float32)
    for tile in range(tl.program_id(0), tl.cdiv(n, ROWS), tl.num_programs(0)):
        row = (tile * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
        inside = (row < n) & real
        r = _load(r_ptr, row, r_step * R_UNIT, channel, inside)
        m = _load(m_ptr, row, m_step * M_UNIT, channel, inside)
        dout = _load(dout_ptr, row, dout_step * DOUT_UNIT, channel, inside)
        a = tl.load(gate_ptr + row, row < n, 0)
        r, r_scale = _normed(r, norm_r_ptr, SIZE, eps)
        m, m_scale = _normed(m, norm_m_ptr, SIZE, eps)
        da = tl.sum(dout * (r * norm_r - m * norm_m), axis=1)[:, None]
        if dgate_ptr is not None:
            da += tl.load(dgate_ptr + row, row < n, 0)
        dlogit = da * a * (1 - a)
        dbias += dlogit
        dweight_r += dlogit * (r * norm_r)
        dweight_m += dlogit * (m * norm_m)
        dr = a * dout + dlogit * weight_r
        dm = (1 - a) * dout + dlogit * weight_m
        dnorm_r += dr * r
        dnorm_m += dm * m
        dr = _norm_gradient(dr * norm_r, r, r_scale, norm_r_ptr, SIZE)
        dm = _norm_gradient(dm * norm_m, m, m_scale, norm_m_ptr, SIZE)
        at = row * SIZE + channel
        tl.store(dr_ptr + at, dr.to(dr_ptr.dtype.element_ty), inside)
        tl.store(dm_ptr + at, dm.to(dm_ptr.dtype.element_ty), inside)
    share = shares_ptr + tl.program_id(0) * (4 * SIZE + 4) + channel
    tl.store(share, tl.sum(dweight_r, axis=0)[None], real)
    tl.store(share + SIZE, tl.sum(dweight_m, axis=0)[None], real)
    tl.store(share + 2 * SIZE, tl.sum(dnorm_r, axis=0)[None], real)
    tl.store(share + 3 * SIZE, tl.sum(dnorm_m, axis=0)[None], real)
    total = tl.where(channel == 0, tl.sum(dbias), 0)
    tl.store(share + 4 * SIZE, total, channel < 4)


@kernel
def _gains_forward(
    x_ptr,
    r_ptr,
    m_ptr,
    norm_r_ptr,
    norm_m_ptr,
    gain_r_ptr,
    gain_m_ptr,
    out_ptr,
    n,
    x_step,
    r_step,
    m_step,
    eps,
    SIZE: tl.constexpr,
    X_UNIT: tl.constexpr,
    R_UNIT: tl.constexpr,
    M_UNIT: tl.constexpr,
    PAD: tl.constexpr,
    ROWS: tl.constexpr,
):
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    channel = tl.arange(0, PAD)[None, :]
    real = channel < SIZE
    inside = (row < n) & real
    r, _ = _normed(_load(r_ptr, row, r_step * R_UNIT, channel, inside), norm_r_ptr, SIZE, eps)
    m, _ = _normed(_load(m_ptr, row, m_step * M_UNIT, channel, inside), norm_m_ptr, SIZE, eps)
    r *= _weights(norm_r_ptr, channel, real) * _weights(gain_r_ptr, channel, real)
    m *= _weights(norm_m_ptr, channel, real) * _weights(gain_m_ptr, channel, real)
    out = _load(x_ptr, row, x_step * X_UNIT, channel, inside) + r + m
    tl.store(out_ptr + row * SIZE + channel, out.to(out_ptr.dtype.element_ty), inside)


@kernel
def _gains_backward(
    r_ptr,
    m_ptr,
    norm_r_ptr,
    norm_m_ptr,
    gain_r_ptr,
    gain_m_ptr,
    dout_ptr,
    dr_ptr,
    dm_ptr,
    shares_ptr,
    n,
    r_step,
    m_step,
    dout_step,
    eps,
    SIZE: tl.constexpr,
    R_UNIT: tl.constexpr,
    M_UNIT: tl.constexpr,
    DOUT_UNIT: tl.constexpr,
    PAD: tl.constexpr,
    ROWS: tl.constexpr,
):
    channel = tl.arange(0, PAD)[None, :]
    real = channel < SIZE
    norm_r = _weights(norm_r_ptr, channel, real)
    norm_m = _weights(norm_m_ptr, channel, real)
    gain_r = _weights(gain_r_ptr, channel, real)
    gain_m = _weights(gain_m_ptr, channel, real)
    r_sum = tl.zeros((ROWS, PAD), tl.float32)
    m_sum = tl.zeros((ROWS, PAD), tl.float32)
    for tile in range(tl.program_id(0), tl.cdiv(n, ROWS), tl.num_programs(0)):
        row = (tile * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
        inside = (row < n) & real
        r = _load(r_ptr, row, r_step * R_UNIT, channel, inside)
        m = _load(m_ptr, row, m_step * M_UNIT, channel, inside)
        dout = _load(dout_ptr, row, dout_step * DOUT_UNIT, channel, inside)
        r, r_scale = _normed(r, norm_r_ptr, SIZE, eps)
        m, m_scale = _normed(m, norm_m_ptr, SIZE, eps)
        r_sum += dout * r
        m_sum += dout * m
        dr = _norm_gradient(dout * (norm_r * gain_r), r, r_scale, norm_r_ptr, SIZE)
        dm = _norm_gradient(dout * (norm_m * gain_m), m, m_scale, norm_m_ptr, SIZE)
        at = row * SIZE + channel
        tl.store(dr_ptr + at, dr.to(dr_ptr.dtype.element_ty), inside)
        tl.store(dm_ptr + at, dm.to(dm_ptr.dtype.element_ty), inside)
    share = shares_ptr + tl.program_id(0) * (4 * SIZE) + channel
    r_total, m_total = tl.sum(r_sum, axis=0)[None], tl.sum(m_sum, axis=0)[None]
    tl.store(share, r_total * norm_r, real)
    tl.store(share + SIZE, m_total * norm_m, real)
    tl.store(share + 2 * SIZE, r_total * gain_r, real)
    tl.store(share + 3 * SIZE, m_total * gain_m, real)


@kernel
def _mix_forward(x_ptr, r_ptr, m_ptr, logits_ptr, out_ptr, n, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    r = tl.load(r_ptr + at, inside, 0).to(tl.float32)
    m = tl.load(m_ptr + at, inside, 0).to(tl.float32)
    a = tl.sigmoid(tl.load(logits_ptr + at, inside, 0).to(tl.float32))
    out = tl.load(x_ptr + at, inside, 0).to(tl.float32) + m + a * (r - m)
    tl.store(out_ptr + at, out.to(out_ptr.dtype.element_ty), inside)


@kernel
def _mix_backward(
    r_ptr, m_ptr, logits_ptr, dout_ptr, dr_ptr, dm_ptr, dlogits_ptr, n, BLOCK: tl.constexpr
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    r = tl.load(r_ptr + at, inside, 0).to(tl.float32)
    m = tl.load(m_ptr + at, inside, 0).to(tl.float32)
    a = tl.sigmoid(tl.load(logits_ptr + at, inside, 0).to(tl.float32))
    dout = tl.load(dout_ptr + at, inside, 0).to(tl.float32)
    tl.store(dr_ptr + at, (a * dout).to(dr_ptr.dtype.element_ty), inside)
    tl.store(dm_ptr + at, ((1 - a) * dout).to(dm_ptr.dtype.element_ty), inside)
    dlogits = dout * (r - m) * a * (1 - a)
    tl.store(dlogits_ptr + at, dlogits.to(dlogits_ptr.dtype.element_ty), inside)
