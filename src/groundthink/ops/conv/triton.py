"""The short convolution as Triton kernels: each program walks along time with its taps at hand.

A program takes some channels of a stretch of tokens, four tokens at a time so that their loads
overlap, and keeps the last inputs (and backward the gradients still due to the last tokens) in
registers: every value is read once. Up to four taps; those a narrower convolution lacks are zero.
The step sizes of SSD, softplus(dt + dt_bias), are done by one more program a stretch.
"""

from __future__ import annotations

import triton
import triton.language as tl

from groundthink.ops.launching import kernel


@triton.jit
def _tap(weight_ptr, channel, real, back: tl.constexpr, WIDTH: tl.constexpr):
    """The weight of the input `back` tokens ago."""
    weight = tl.zeros(channel.shape, tl.float32)
    if back < WIDTH:
        weight += tl.load(weight_ptr + channel * WIDTH + (WIDTH - 1 - back), real, 0)
    return weight


@triton.jit
def _among(real, t, low, high):
    """`real` if low <= t < high, else nowhere."""
    t = tl.broadcast_to(t, real.shape)
    return real & (t >= low) & (t < high)


@triton.jit
def _reset(reset_ptr, t, steps):
    return tl.load(reset_ptr + t, (t >= 0) & (t < steps), 0) != 0


@triton.jit
def _input(x_ptr, window_ptr, t, x_step, channel, real, WIDTH: tl.constexpr):
    """The input of token t, which the window holds for t < 0."""
    at = x_ptr + t.to(tl.int64) * x_step + channel
    inside = tl.load(at, _among(real, t, 0, t + 1), 0)
    at = window_ptr + channel * (WIDTH - 1) + (WIDTH - 1 + t)
    before = tl.load(at, _among(real, t, 1 - WIDTH, 0), 0)
    return tl.where(t >= 0, inside.to(tl.float32), before.to(tl.float32))


@triton.jit
def _taps_before(
    x_ptr, window_ptr, reset_ptr, t, steps, x_step, channel, real, WIDTH: tl.constexpr
):
    """The three inputs before token t, nearest first, and which of them no reset hides."""
    x1 = _input(x_ptr, window_ptr, t - 1, x_step, channel, real, WIDTH)
    x2 = _input(x_ptr, window_ptr, t - 2, x_step, channel, real, WIDTH)
    x3 = _input(x_ptr, window_ptr, t - 3, x_step, channel, real, WIDTH)
    if reset_ptr is not None:
        seen2 = ~_reset(reset_ptr, t - 1, steps)
        seen3 = seen2 & ~_reset(reset_ptr, t - 2, steps)
        x2 = tl.where(seen2, x2, 0.0)
        x3 = tl.where(seen3, x3, 0.0)
    return x1, x2, x3


@triton.jit
def _softplus(x):
    """log(1 + exp(x)), for any x."""
    small = tl.exp(-tl.abs(x))
    # 1 + small loses the low digits of small: log1p by its relative rounding
    wide = 1 + small
    rest = tl.where(wide == 1, small, tl.log(wide) * (small / tl.where(wide == 1, 1, wide - 1)))
    return tl.maximum(x, 0) + rest


@triton.jit
def _forward_step(x0, x1, x2, x3, w0, w1, w2, w3, bias, reset_ptr, t, steps):
    x0 = x0.to(tl.float32)
    if reset_ptr is not None:
        cut = _reset(reset_ptr, t, steps)
        x1 = tl.where(cut, 0.0, x1)
        x2 = tl.where(cut, 0.0, x2)
        x3 = tl.where(cut, 0.0, x3)
    y = bias + w0 * x0 + w1 * x1 + w2 * x2 + w3 * x3
    return y * tl.sigmoid(y), x0, x1, x2


@triton.jit
def _store(ptr, value, t, width, channel, inside):
    at = t.to(tl.int64) * width + channel
    tl.store(ptr + at, value.to(ptr.dtype.element_ty), inside)


@triton.jit
def _resets(reset_ptr, start, end, steps):
    """Whether a reset is near enough to the stretch to matter; few are, and the others walk on."""
    found = False
    if reset_ptr is not None:
        near = start - 2 + tl.arange(0, 256)  # a stretch has 128 tokens at most
        inside = (near >= 0) & (near < tl.minimum(end + 3, steps))
        found = tl.max(tl.load(reset_ptr + near, inside, 0).to(tl.int32)) > 0
    return found


@triton.jit
def _walk(
    x_ptr, window_ptr, reset_ptr, y_ptr, start, end, steps, x_step, channel, real,
    w0, w1, w2, w3, bias, SIZE: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    x1, x2, x3 = _taps_before(
        x_ptr, window_ptr, reset_ptr, start, steps, x_step, channel, real, WIDTH
    )
    for i in range(0, tl.cdiv(end - start, 4)):
        t = start + 4 * i
        at = x_ptr + t.to(tl.int64) * x_step + channel
        inputs = (
            tl.load(at, real, 0),
            tl.load(at + x_step, _among(real, t + 1, 0, end), 0),
            tl.load(at + 2 * x_step, _among(real, t + 2, 0, end), 0),
            tl.load(at + 3 * x_step, _among(real, t + 3, 0, end), 0),
        )
        for k in tl.static_range(4):
            y, x1, x2, x3 = _forward_step(
                inputs[k], x1, x2, x3, w0, w1, w2, w3, bias, reset_ptr, t + k, steps
            )
            _store(y_ptr, y, t + k, SIZE, channel, _among(real, t + k, 0, end))


@kernel
def _forward(
    x_ptr,
    dt_ptr,
    weight_ptr,
    bias_ptr,
    dt_bias_ptr,
    window_ptr,
    reset_ptr,
    y_ptr,
    step_ptr,
    final_ptr,
    steps,
    stretch,
    x_step,
    dt_step,
    SIZE: tl.constexpr,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    X_UNIT: tl.constexpr,
    DT_UNIT: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    stretches = tl.cdiv(steps, stretch)
    b = tl.program_id(0) // stretches
    start = (tl.program_id(0) % stretches) * stretch
    end = tl.minimum(start + stretch, steps)
    first = (b * steps).to(tl.int64)
    x_step = x_step * X_UNIT
    x_ptr += first * x_step
    y_ptr += first * SIZE
    if reset_ptr is not None:
        reset_ptr += first
    if tl.program_id(1) < BLOCKS:
        channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        real = channel < SIZE
        window_ptr += b.to(tl.int64) * (SIZE * (WIDTH - 1))
        w0 = _tap(weight_ptr, channel, real, 0, WIDTH)
        w1 = _tap(weight_ptr, channel, real, 1, WIDTH)
        w2 = _tap(weight_ptr, channel, real, 2, WIDTH)
        w3 = _tap(weight_ptr, channel, real, 3, WIDTH)
        bias = tl.load(bias_ptr + channel, real, 0).to(tl.float32)
        if _resets(reset_ptr, start, end, steps):
            _walk(
                x_ptr, window_ptr, reset_ptr, y_ptr, start, end, steps, x_step, channel, real,
                w0, w1, w2, w3, bias, SIZE, WIDTH,
            )  # fmt: skip
        else:
            _walk(
                x_ptr, window_ptr, None, y_ptr, start, end, steps, x_step, channel, real,
                w0, w1, w2, w3, bias, SIZE, WIDTH,
            )  # fmt: skip
        if end == steps:
            x1, x2, x3 = _taps_before(
                x_ptr, window_ptr, reset_ptr, end, steps, x_step, channel, real, WIDTH
            )
            final = final_ptr + b.to(tl.int64) * (SIZE * (WIDTH - 1)) + channel * (WIDTH - 1)
            final += WIDTH - 2
            if WIDTH > 1:
                tl.store(final, x1.to(final_ptr.dtype.element_ty), real)
            if WIDTH > 2:
                tl.store(final - 1, x2.to(final_ptr.dtype.element_ty), real)
            if WIDTH > 3:
                tl.store(final - 2, x3.to(final_ptr.dtype.element_ty), real)
    else:
        head = (tl.program_id(1) - BLOCKS) * 32 + tl.arange(0, 32)[None, :]
        head_bias = tl.load(dt_bias_ptr + head, head < HEADS, 0).to(tl.float32)
        for i in range(0, tl.cdiv(end - start, 4)):
            t = start + 4 * i
            row = t + tl.arange(0, 4)[:, None]
            inside = (row < end) & (head < HEADS)
            row += first
            dt = tl.load(dt_ptr + row * (dt_step * DT_UNIT) + head, inside, 0).to(tl.float32)
            tl.store(step_ptr + row * HEADS + head, _softplus(dt + head_bias), inside)


@triton.jit
def _deliver(
    dx_ptr, dwindow_ptr, value, t, seen, start, end, channel, real,
    STEP: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Write the gradient of the input of token t, if it is of this stretch or of the window.

    Tokens before `seen` lie behind a reset, and have theirs already.
    """
    _store(dx_ptr, value, t, STEP, channel, _among(real, t, tl.maximum(start, seen), end))
    if (start == 0) & (t < 0):
        at = dwindow_ptr + channel * (WIDTH - 1) + (WIDTH - 1 + t)
        inside = _among(real, t, tl.maximum(1 - WIDTH, seen), 0)
        tl.store(at, value.to(dwindow_ptr.dtype.element_ty), inside)


@triton.jit
def _cut(
    reset_ptr, dx_ptr, dwindow_ptr, x1, x2, x3, p1, p2, p3, t, steps, seen, start, end,
    channel, real, STEP: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """At a reset the inputs before it are hidden, and their gradients are complete."""
    if reset_ptr is not None:  # noqa: SIM102 (known when compiled, unlike the next)
        if _reset(reset_ptr, t, steps):
            _deliver(dx_ptr, dwindow_ptr, p3, t - 3, seen, start, end, channel, real, STEP, WIDTH)
            _deliver(dx_ptr, dwindow_ptr, p2, t - 2, seen, start, end, channel, real, STEP, WIDTH)
            _deliver(dx_ptr, dwindow_ptr, p1, t - 1, seen, start, end, channel, real, STEP, WIDTH)
            x1 = tl.zeros_like(x1)
            x2 = tl.zeros_like(x2)
            x3 = tl.zeros_like(x3)
            seen = t
    return x1, x2, x3, seen


@triton.jit
def _due(dfinal_ptr, p1, p2, p3, t, steps, channel, real, WIDTH: tl.constexpr):
    """The gradient of the final window, due after the last token."""
    if dfinal_ptr is not None:
        at = dfinal_ptr + channel * (WIDTH - 1) + WIDTH - 2
        real = _among(real, t, steps, steps + 1)
        if WIDTH > 1:
            p1 += tl.load(at, real, 0).to(tl.float32)
        if WIDTH > 2:
            p2 += tl.load(at - 1, real, 0).to(tl.float32)
        if WIDTH > 3:
            p3 += tl.load(at - 2, real, 0).to(tl.float32)
    return p1, p2, p3


@triton.jit
def _backward_step(
    x0, x1, x2, x3, g, own, w0, w1, w2, w3, bias, p1, p2, p3, dw0, dw1, dw2, dw3, dbias
):
    """One token forward in time.

    p1, p2, p3: gradients gathered so far for the inputs one, two and three tokens ago; the last
    is complete after this token and comes first in the result.
    """
    x0, g = x0.to(tl.float32), g.to(tl.float32)
    y = bias + w0 * x0 + w1 * x1 + w2 * x2 + w3 * x3
    s = tl.sigmoid(y)
    g = g * s * (1 + y * (1 - s))
    share = tl.where(own, g, 0.0)
    return (
        p3 + w3 * g, w0 * g, p1 + w1 * g, p2 + w2 * g, x0, x1, x2,
        dw0 + share * x0, dw1 + share * x1, dw2 + share * x2, dw3 + share * x3, dbias + share,
    )  # fmt: skip


@triton.jit
def _walk_backward(
    x_ptr, window_ptr, reset_ptr, dy_ptr, dfinal_ptr, dx_ptr, dwindow_ptr,
    start, end, steps, x_step, dy_step, channel, real, w0, w1, w2, w3, bias,
    STEP: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    x1, x2, x3 = _taps_before(
        x_ptr, window_ptr, reset_ptr, start, steps, x_step, channel, real, WIDTH
    )
    p1 = tl.zeros((BLOCK,), tl.float32)
    p2, p3, dw0, dw1, dw2, dw3, dbias = p1, p1, p1, p1, p1, p1, p1
    seen = start - 4
    for i in range(0, tl.cdiv(end + 3 - start, 4)):
        t = start + 4 * i
        at = x_ptr + t.to(tl.int64) * x_step + channel
        dy = dy_ptr + t.to(tl.int64) * dy_step + channel
        in0, in1 = _among(real, t, 0, steps), _among(real, t + 1, 0, steps)
        in2, in3 = _among(real, t + 2, 0, steps), _among(real, t + 3, 0, steps)
        inputs = (
            tl.load(at, in0, 0),
            tl.load(at + x_step, in1, 0),
            tl.load(at + 2 * x_step, in2, 0),
            tl.load(at + 3 * x_step, in3, 0),
        )
        grads = (
            tl.load(dy, in0, 0),
            tl.load(dy + dy_step, in1, 0),
            tl.load(dy + 2 * dy_step, in2, 0),
            tl.load(dy + 3 * dy_step, in3, 0),
        )
        for k in tl.static_range(4):
            p1, p2, p3 = _due(dfinal_ptr, p1, p2, p3, t + k, steps, channel, real, WIDTH)
            x1, x2, x3, seen = _cut(
                reset_ptr, dx_ptr, dwindow_ptr, x1, x2, x3, p1, p2, p3, t + k, steps, seen,
                start, end, channel, real, STEP, WIDTH,
            )  # fmt: skip
            done, p1, p2, p3, x1, x2, x3, dw0, dw1, dw2, dw3, dbias = _backward_step(
                inputs[k], x1, x2, x3, grads[k], t + k < end, w0, w1, w2, w3, bias,
                p1, p2, p3, dw0, dw1, dw2, dw3, dbias,
            )  # fmt: skip
            _deliver(
                dx_ptr, dwindow_ptr, done, t + k - 3, seen, start, end, channel, real,
                STEP, WIDTH,
            )  # fmt: skip
    return dw0, dw1, dw2, dw3, dbias


@kernel
def _backward(
    x_ptr,
    dt_ptr,
    weight_ptr,
    bias_ptr,
    dt_bias_ptr,
    window_ptr,
    reset_ptr,
    dy_ptr,
    dstep_ptr,
    dfinal_ptr,
    dx_ptr,
    ddt_ptr,
    dwindow_ptr,
    shares_ptr,
    steps,
    stretch,
    x_step,
    dt_step,
    dy_step,
    SIZE: tl.constexpr,
    HEADS: tl.constexpr,
    ROOM: tl.constexpr,
    WIDTH: tl.constexpr,
    X_UNIT: tl.constexpr,
    DT_UNIT: tl.constexpr,
    DY_UNIT: tl.constexpr,
    STEP: tl.constexpr,
    DT_STEP: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    stretches = tl.cdiv(steps, stretch)
    b = tl.program_id(0) // stretches
    start = (tl.program_id(0) % stretches) * stretch
    end = tl.minimum(start + stretch, steps)
    first = (b * steps).to(tl.int64)
    x_step = x_step * X_UNIT
    dy_step = dy_step * DY_UNIT
    x_ptr += first * x_step
    dy_ptr += first * dy_step
    dx_ptr += first * STEP
    if reset_ptr is not None:
        reset_ptr += first
    shares_ptr += tl.program_id(0).to(tl.int64) * (SIZE * (WIDTH + 1) + HEADS)
    if tl.program_id(1) < BLOCKS:
        channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        real = channel < SIZE
        window_ptr += b.to(tl.int64) * (SIZE * (WIDTH - 1))
        dwindow_ptr += b.to(tl.int64) * (SIZE * (WIDTH - 1))
        if dfinal_ptr is not None:
            dfinal_ptr += b.to(tl.int64) * (SIZE * (WIDTH - 1))
        w0 = _tap(weight_ptr, channel, real, 0, WIDTH)
        w1 = _tap(weight_ptr, channel, real, 1, WIDTH)
        w2 = _tap(weight_ptr, channel, real, 2, WIDTH)
        w3 = _tap(weight_ptr, channel, real, 3, WIDTH)
        bias = tl.load(bias_ptr + channel, real, 0).to(tl.float32)
        if _resets(reset_ptr, start, end, steps):
            dw0, dw1, dw2, dw3, dbias = _walk_backward(
                x_ptr, window_ptr, reset_ptr, dy_ptr, dfinal_ptr, dx_ptr, dwindow_ptr,
                start, end, steps, x_step, dy_step, channel, real, w0, w1, w2, w3, bias,
                STEP, WIDTH, BLOCK,
            )  # fmt: skip
        else:
            dw0, dw1, dw2, dw3, dbias = _walk_backward(
                x_ptr, window_ptr, None, dy_ptr, dfinal_ptr, dx_ptr, dwindow_ptr,
                start, end, steps, x_step, dy_step, channel, real, w0, w1, w2, w3, bias,
                STEP, WIDTH, BLOCK,
            )  # fmt: skip
        taps = shares_ptr + channel * WIDTH + (WIDTH - 1)
        tl.store(taps, dw0, real)
        if WIDTH > 1:
            tl.store(taps - 1, dw1, real)
        if WIDTH > 2:
            tl.store(taps - 2, dw2, real)
        if WIDTH > 3:
            tl.store(taps - 3, dw3, real)
        tl.store(shares_ptr + SIZE * WIDTH + channel, dbias, real)
    else:
        head = (tl.program_id(1) - BLOCKS) * 32 + tl.arange(0, 32)[None, :]
        head_bias = tl.load(dt_bias_ptr + head, head < HEADS, 0).to(tl.float32)
        total = tl.zeros((4, 32), tl.float32)
        for i in range(0, tl.cdiv(end - start, 4)):
            t = start + 4 * i
            row = t + tl.arange(0, 4)[:, None]
            inside = (row < end) & (head < HEADS)
            written = (row < end) & (head < ROOM)
            row += first
            dt = tl.load(dt_ptr + row * (dt_step * DT_UNIT) + head, inside, 0).to(tl.float32)
            ddt = tl.load(dstep_ptr + row * HEADS + head, inside, 0) * tl.sigmoid(dt + head_bias)
            tl.store(ddt_ptr + row * DT_STEP + head, ddt.to(ddt_ptr.dtype.element_ty), written)
            total += ddt
        share = shares_ptr + SIZE * (WIDTH + 1) + head
        tl.store(share, tl.sum(total, axis=0)[None], head < HEADS)
