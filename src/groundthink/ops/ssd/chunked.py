"""SSD in chunks: matrix products inside a chunk, the recurrence only from chunk to chunk.

Dao and Gu 2024, section 6. Decays that are mild over a chunk, a long one or a short one, take the
fast form (`mild`), any others the one with a decay for every pair of tokens (`pairs`). The gradient
is written by hand. Both are registered operators, opaque to `torch.compile`: compiled code computes
what eager code does.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from groundthink.ops.fused import Operator, differentiable, full_precision, room, traced
from groundthink.ops.ssd import mild, pairs
from groundthink.ops.ssd.layout import CHUNK, LONG, states_shape


def ssd_chunked(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    state: Tensor,
    reset: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The contract of `ssd_reference`; safe for any decay, exact for resets at any token."""
    if x.shape[1] == 1:
        with full_precision(x):
            return _step(x, dt, A, B, C, D, state, reset)
    y, state, _, _ = _scan(x, dt, A, B, C, D, state, reset)
    return y, state


def _step(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    state: Tensor,
    reset: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """One token: the heads of a group read one B and C."""
    if reset is not None:
        state = state.masked_fill(reset[..., None, None], 0)
    b, _, g, n = B.shape
    decay = (dt.squeeze(1) * A).exp()[..., None, None]
    write = (dt[..., None] * x).reshape(b, g, -1, 1) * B.reshape(b, g, 1, n)  # [b g rp n]
    state = torch.addcmul(write.reshape(state.shape), decay, state)
    y = torch.matmul(state.reshape(write.shape), C.reshape(b, g, n, 1)).view(x.shape)
    return (y if D is None else torch.addcmul(y, D[:, None], x)), state


def _mild_exponents(dt: Tensor, A: Tensor, groups: int) -> Tensor | None:
    """What `mild` needs of the decays, for the longest chunks in which they are mild, or None."""
    for longest in (LONG, CHUNK):
        a = mild.exponents(dt, A, groups, longest)
        if a.abs().max() <= mild.LIMIT:  # false for NaN
            return a
    return None


def _forward(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    state: Tensor,
    reset: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """y, the state after, and for the gradient the states at the chunks and y less its skip."""
    with torch.autocast(x.device.type, enabled=False):
        a = _mild_exponents(dt, A, B.shape[2])
        if a is None:
            return pairs.forward(x, dt, A, B, C, D, state, reset)
        return mild.forward(a, x, dt, A, B, C, D, state, reset)


def _gradients(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    reset: Tensor | None,
    final: Tensor,
    states: Tensor,
    core: Tensor,
    dy: Tensor,
    dfinal: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, dt, A, B, C, D and the state before; that of D also where there is none."""
    with torch.autocast(x.device.type, enabled=False):
        a = _mild_exponents(dt, A, B.shape[2])
        if a is None:
            grads = pairs.gradients(x, dt, A, B, C, D, reset, states, dy, dfinal)
        else:
            grads = mild.gradients(a, x, dt, A, B, C, D, reset, final, states, core, dy, dfinal)
    return grads  # pyright: ignore


@functools.wraps(_gradients)
def _backward(*args):
    """`_gradients`, each in memory of its own, as a registered operator has to give them."""
    return tuple(grad.contiguous() for grad in _gradients(*args))


def _forward_fake(x, dt, A, B, C, D, state, reset):
    return room(x), room(state), x.new_empty(states_shape(x, B)), room(x)


def _backward_fake(x, dt, A, B, C, D, reset, final, states, core, dy, dfinal):
    return *(room(t) for t in (x, dt, A, B, C)), room(A), room(final)


def _save(ctx, inputs, output):
    x, dt, A, B, C, D, _, reset = inputs
    _, final, states, core = output
    ctx.save_for_backward(x, dt, A, B, C, D, reset, final, states, core)


def _pull_back(ctx, dy, dfinal, *_):
    saved = ctx.saved_tensors  # once: a checkpoint makes them anew each time
    x, _, _, _, _, D, _, final, _, _ = saved
    dy = torch.zeros_like(x) if dy is None else dy
    dfinal = torch.zeros_like(final) if dfinal is None else dfinal
    run: Callable = _backward_op if traced(saved) else _gradients
    dx, ddt, dA, dB, dC, dD, dstate = run(*saved, dy, dfinal)
    return dx, ddt, dA, dB, dC, None if D is None else dD, dstate, None


_backward_op = Operator("ssd_chunked_backward", _backward, _backward_fake)
_scan = differentiable(Operator("ssd_chunked", _forward, _forward_fake), _save, _pull_back)
