"""The norms as Triton kernels: a row is read once, and nothing but its inputs is kept.

Each program of a gradient goes through every so many rows and sums its share of the parameters'
gradients; one more launch adds the shares, always in the same order.
"""

from __future__ import annotations

import triton
import triton.language as tl

from groundthink.ops.launching import kernel


@triton.jit
def silu_and_slope(z):
    s = tl.sigmoid(z)
    return z * s, s * (1 + z * (1 - s))


@kernel
def _rms_forward(
    x_ptr,
    z_ptr,
    weight_ptr,
    out_ptr,
    n,
    x_step,
    z_step,
    eps,
    WIDTH: tl.constexpr,
    SIZE: tl.constexpr,
    X_UNIT: tl.constexpr,
    Z_UNIT: tl.constexpr,
    PAD: tl.constexpr,
    ROWS: tl.constexpr,
):
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    column = tl.arange(0, PAD)[None, :]
    inside = (row < n) & (column < SIZE)
    channel = tl.program_id(1) * SIZE + column
    at = row * WIDTH + channel
    x = tl.load(x_ptr + row * (x_step * X_UNIT) + channel, inside, 0).to(tl.float32)
    if z_ptr is not None:
        z = tl.load(z_ptr + row * (z_step * Z_UNIT) + channel, inside, 0).to(tl.float32)
        x *= z * tl.sigmoid(z)
    weight = tl.load(weight_ptr + channel, column < SIZE, 0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(x * x, axis=1) / SIZE + eps)
    out = x * scale[:, None] * weight
    tl.store(out_ptr + at, out.to(out_ptr.dtype.element_ty), inside)


@kernel
def _rms_backward(
    x_ptr,
    z_ptr,
    weight_ptr,
    dout_ptr,
    dmore_ptr,
    dthrough_ptr,
    dx_ptr,
    dz_ptr,
    dweight_ptr,
    n,
    x_step,
    z_step,
    dout_step,
    dmore_step,
    dthrough_step,
    eps,
    WIDTH: tl.constexpr,
    SIZE: tl.constexpr,
    X_UNIT: tl.constexpr,
    Z_UNIT: tl.constexpr,
    DOUT_UNIT: tl.constexpr,
    DMORE_UNIT: tl.constexpr,
    DTHROUGH_UNIT: tl.constexpr,
    PAD: tl.constexpr,
    ROWS: tl.constexpr,
):
    column = tl.arange(0, PAD)[None, :]
    channel = tl.program_id(1) * SIZE + column
    weight = tl.load(weight_ptr + channel, column < SIZE, 0).to(tl.float32)
    dweight = tl.zeros((ROWS, PAD), tl.float32)
    for tile in range(tl.program_id(0), tl.cdiv(n, ROWS), tl.num_programs(0)):
        row = (tile * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
        inside = (row < n) & (column < SIZE)
        at = row * WIDTH + channel
        x = tl.load(x_ptr + row * (x_step * X_UNIT) + channel, inside, 0).to(tl.float32)
        dout = tl.load(dout_ptr + row * (dout_step * DOUT_UNIT) + channel, inside, 0)
        dout = dout.to(tl.float32)
        if dmore_ptr is not None:
            dmore = tl.load(dmore_ptr + row * (dmore_step * DMORE_UNIT) + channel, inside, 0)
            dout += dmore.to(tl.float32)
        if z_ptr is not None:
            z = tl.load(z_ptr + row * (z_step * Z_UNIT) + channel, inside, 0).to(tl.float32)
            gate, slope = silu_and_slope(z)
            gated = x * gate
        else:
            gated = x
        scale = tl.rsqrt(tl.sum(gated * gated, axis=1) / SIZE + eps)[:, None]
        normed = gated * scale
        dweight += dout * normed
        dout *= weight
        mean = tl.sum(dout * normed, axis=1)[:, None] / SIZE
        dgated = (dout - normed * mean) * scale
        if dthrough_ptr is not None:
            dthrough = tl.load(
                dthrough_ptr + row * (dthrough_step * DTHROUGH_UNIT) + channel, inside, 0
            )
            dgated += dthrough.to(tl.float32)
        if z_ptr is not None:
            dz = dgated * x * slope
            dgated *= gate
        else:
            dz = dgated
        tl.store(dx_ptr + at, dgated.to(dx_ptr.dtype.element_ty), inside)
        if dz_ptr is not None:
            tl.store(dz_ptr + at, dz.to(dz_ptr.dtype.element_ty), inside)
    share = tl.sum(dweight, axis=0)[None, :]
    tl.store(dweight_ptr + tl.program_id(0) * WIDTH + channel, share, column < SIZE)


@triton.jit
def _head_norm(y, SIZE: tl.constexpr, inside, eps):
    """y [ROWS, HEADS, PAD] normalised over its last axis, and 1 / its standard deviation."""
    centred = tl.where(inside, y - tl.sum(y, axis=2, keep_dims=True) / SIZE, 0)
    scale = tl.rsqrt(tl.sum(centred * centred, axis=2, keep_dims=True) / SIZE + eps)
    return centred * scale, scale


@kernel
def _head_forward(
    y_ptr,
    g_ptr,
    weight_ptr,
    bias_ptr,
    out_ptr,
    n,
    y_step,
    g_step,
    eps,
    COUNT: tl.constexpr,
    SIZE: tl.constexpr,
    Y_UNIT: tl.constexpr,
    G_UNIT: tl.constexpr,
    PAD: tl.constexpr,
    HEADS: tl.constexpr,
    ROWS: tl.constexpr,
):
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None, None]
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)[None, :, None]
    column = tl.arange(0, PAD)[None, None, :]
    real = (head < COUNT) & (column < SIZE)
    inside = (row < n) & real
    channel = head * SIZE + column
    y = tl.load(y_ptr + row * (y_step * Y_UNIT) + channel, inside, 0).to(tl.float32)
    g = tl.load(g_ptr + row * (g_step * G_UNIT) + channel, inside, 0).to(tl.float32)
    weight = tl.load(weight_ptr + channel, real, 0).to(tl.float32)
    bias = tl.load(bias_ptr + channel, real, 0).to(tl.float32)
    normed, _ = _head_norm(y, SIZE, inside, eps)
    out = (normed * weight + bias) * (g * tl.sigmoid(g))
    at = row * (COUNT * SIZE) + channel
    tl.store(out_ptr + at, out.to(out_ptr.dtype.element_ty), inside)


@kernel
def _head_backward(
    y_ptr,
    g_ptr,
    weight_ptr,
    bias_ptr,
    dout_ptr,
    dy_ptr,
    dg_ptr,
    shares_ptr,
    n,
    y_step,
    g_step,
    dout_step,
    eps,
    COUNT: tl.constexpr,
    SIZE: tl.constexpr,
    Y_UNIT: tl.constexpr,
    G_UNIT: tl.constexpr,
    DOUT_UNIT: tl.constexpr,
    PAD: tl.constexpr,
    HEADS: tl.constexpr,
    ROWS: tl.constexpr,
):
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)[None, :, None]
    column = tl.arange(0, PAD)[None, None, :]
    real = (head < COUNT) & (column < SIZE)
    channel = head * SIZE + column
    weight = tl.load(weight_ptr + channel, real, 0).to(tl.float32)
    bias = tl.load(bias_ptr + channel, real, 0).to(tl.float32)
    dweight = tl.zeros((ROWS, HEADS, PAD), tl.float32)
    dbias = tl.zeros((ROWS, HEADS, PAD), tl.float32)
    for tile in range(tl.program_id(0), tl.cdiv(n, ROWS), tl.num_programs(0)):
        row = (tile * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None, None]
        inside = (row < n) & real
        at = row * (COUNT * SIZE) + channel
        y = tl.load(y_ptr + row * (y_step * Y_UNIT) + channel, inside, 0).to(tl.float32)
        g = tl.load(g_ptr + row * (g_step * G_UNIT) + channel, inside, 0).to(tl.float32)
        dout = tl.load(dout_ptr + row * (dout_step * DOUT_UNIT) + channel, inside, 0)
        dout = dout.to(tl.float32)
        gate, slope = silu_and_slope(g)
        normed, scale = _head_norm(y, SIZE, inside, eps)
        dg = dout * (normed * weight + bias) * slope
        tl.store(dg_ptr + at, dg.to(dg_ptr.dtype.element_ty), inside)
        dout *= gate
        dweight += dout * normed
        dbias += dout
        dout *= weight
        mean = tl.sum(dout, axis=2, keep_dims=True) / SIZE
        along = tl.sum(dout * normed, axis=2, keep_dims=True) / SIZE
        dy = (dout - mean - normed * along) * scale
        tl.store(dy_ptr + at, dy.to(dy_ptr.dtype.element_ty), inside)
    at = tl.program_id(0) * (2 * COUNT * SIZE) + channel
    tl.store(shares_ptr + at, tl.sum(dweight, axis=0)[None], real)
    tl.store(shares_ptr + at + COUNT * SIZE, tl.sum(dbias, axis=0)[None], real)
