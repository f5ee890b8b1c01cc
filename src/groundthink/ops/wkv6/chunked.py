"""WKV6 in chunks: plain PyTorch for any device, hand-written gradient, a loop over chunks only.

Inside a chunk tokens read one another through matrix products (`intra`); from chunk to chunk
only the state is carried (`segment`). Forward and gradient are registered operators, opaque to
`torch.compile`: compiled code computes what eager code does.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from groundthink.ops.cuts import Cuts, once
from groundthink.ops.fused import Operator, differentiable, full_precision, room
from groundthink.ops.wkv6 import segment
from groundthink.ops.wkv6.segment import Cells

LENGTH = 32
"""Tokens in a chunk, a power of two; fewer for shorter sequences."""
SEGMENT = 1 << 18
"""Elements of r worked on together: bounds the scratch memory of long sequences."""


def wkv6_chunked(
    r: Tensor, k: Tensor, v: Tensor, log_w: Tensor, u: Tensor, state: Tensor, reset: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Chunked form of `wkv6_reference`, same arguments: fp32 or fp64, any T >= 1, any decay."""
    if r.shape[1] == 1:
        return _step(r, k, v, log_w, u, state, reset)
    y, state, *_ = _scan(r, k, v, log_w, u, state, reset)
    return y, state


def _step(
    r: Tensor, k: Tensor, v: Tensor, log_w: Tensor, u: Tensor, state: Tensor, reset: Tensor | None
) -> tuple[Tensor, Tensor]:
    if reset is not None:
        state = state.masked_fill(reset[..., None, None], 0)
    r, k, v, w = (x.transpose(1, 2) for x in (r, k, v, log_w.exp()))  # [B, H, 1, D]
    kv = k.mT * v
    with full_precision(r):
        y = torch.matmul(r, torch.addcmul(state, u[..., None], kv))
    return y.transpose(1, 2), torch.addcmul(kv, w.mT, state)


def _forward(
    r: Tensor,
    k: Tensor,
    v: Tensor,
    log_w: Tensor,
    u: Tensor,
    state: Tensor,
    reset: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """y, the state after; for the gradient the states around the chunks and the reads in them."""
    layout = _Layout.of(r)
    cells = layout.cells(r, k, v, log_w)
    y, states, lower = room(cells.v), layout.states(state), layout.lower(r)
    with full_precision(r):
        for part, slots in layout.segments():
            cuts = layout.cuts(reset, part)
            kept = states[slots], lower[part]
            segment.forward(_of(cells, part), u, cuts, state, *kept, y[:, part])
            state = states[slots][-1]
    return layout.tokens(y), state.clone(), states, lower


def _backward(
    r: Tensor,
    k: Tensor,
    v: Tensor,
    log_w: Tensor,
    u: Tensor,
    reset: Tensor | None,
    states: Tensor,
    lower: Tensor,
    dy: Tensor,
    dstate: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of r, k, v, log_w, u and the state before, from those of y and the state after."""
    layout = _Layout.of(r)
    cells = layout.cells(r, k, v, log_w)
    (dy,), grads, du = layout.split(dy), Cells(*map(room, cells)), torch.zeros_like(u)
    with full_precision(r):
        for part, slots in reversed(list(layout.segments())):
            cuts, kept = layout.cuts(reset, part), (states[slots], lower[part])
            given, into = _of(cells, part), _of(grads, part)
            more, dstate = segment.backward(given, u, cuts, *kept, dy[:, part], dstate, into)
            du += more
    dr, dk, dv, dlog_w = map(layout.tokens, grads)
    if reset is not None:
        dlog_w[once(reset, "at", lambda: reset.nonzero(as_tuple=True))] = 0
    return dr, dk, dv, dlog_w, du, dstate.clone()


def _of(cells: Cells, part: slice) -> Cells:
    """Some of the chunks."""
    return Cells(*(x[:, part] for x in cells))


def _forward_fake(r, k, v, log_w, u, state, reset):
    layout = _Layout.of(r)
    return room(v), torch.empty_like(state), layout.states(state), layout.lower(r)


def _backward_fake(r, k, v, log_w, u, reset, states, lower, dy, dstate):
    return room(r), room(k), room(v), room(log_w), torch.empty_like(u), room(dstate)


def _save(ctx, inputs, output):
    r, k, v, log_w, u, _, reset = inputs
    ctx.save_for_backward(r, k, v, log_w, u, reset, *output[2:])


def _pull_back(ctx, dy, dfinal, *_):
    r, k, v, log_w, u, reset, states, lower = ctx.saved_tensors
    dy = torch.zeros_like(v) if dy is None else dy
    dfinal = torch.zeros_like(states[0]) if dfinal is None else dfinal
    return (*_backward_op(r, k, v, log_w, u, reset, states, lower, dy, dfinal), None)


_backward_op = Operator("wkv6_chunked_backward", _backward, _backward_fake)
_scan = differentiable(Operator("wkv6_chunked", _forward, _forward_fake), _save, _pull_back)


class _Layout(NamedTuple):
    """How tokens fall into chunks, and chunks into the segments that are worked on together."""

    steps: int
    """Tokens in all."""
    heads: int
    length: int
    """Tokens in a chunk."""
    chunks: int
    """Chunks in all."""
    together: int
    """Chunks in a segment."""

    @classmethod
    def of(cls, r: Tensor) -> _Layout:
        b, t, h, k = r.shape
        length = LENGTH
        while length >= 2 * t:
            length //= 2
        together = max(1, SEGMENT // max(1, b * length * h * k))
        return cls(t, h, length, -(-t // length), together)

    def states(self, state: Tensor) -> Tensor:
        """Room for the states around the chunks of every segment [slots, B, H, K, V]."""
        segments = -(-self.chunks // self.together)
        return state.new_empty(self.chunks + segments, *state.shape)

    def lower(self, r: Tensor) -> Tensor:
        """Room for what tokens read of one another [chunks, B H, length, length]."""
        return r.new_empty(self.chunks, len(r) * self.heads, self.length, self.length)

    def segments(self) -> Iterator[tuple[slice, slice]]:
        """The chunks of each segment, and its slots in `states`."""
        n, slots = self.together, self.together + 1
        for i in range(-(-self.chunks // n)):
            yield slice(i * n, (i + 1) * n), slice(i * slots, (i + 1) * slots)

    def split(self, *tensors: Tensor) -> Iterator[Tensor]:
        """[B, T, ...] to [B, chunks, length, ...], views unless T needs zeros after the end."""
        rest = -self.steps % self.length
        for x in tensors:
            x = F.pad(x, (0, 0) * (x.dim() - 2) + (0, rest)) if rest else x
            yield x.unflatten(1, (-1, self.length))

    def tokens(self, cells: Tensor) -> Tensor:
        """The inverse of `split`."""
        return cells.flatten(1, 2)[:, : self.steps].contiguous()

    def cells(self, r: Tensor, k: Tensor, v: Tensor, log_w: Tensor) -> Cells:
        """The inputs by chunk."""
        return Cells(*self.split(r, k, v, log_w))

    def cuts(self, reset: Tensor | None, part: slice) -> Cuts | None:
        """What the resets of a segment separate; None if it has none."""
        if reset is None:
            return None
        return once(reset, ("wkv6", *self, part.start), lambda: self._cuts(reset, part))

    def _cuts(self, reset: Tensor, part: slice) -> Cuts | None:
        (cells,) = self.split(reset)
        cells = cells[:, part].transpose(0, 1)  # [chunks, B, length]
        return Cuts.of(cells, self.heads) if cells.any() else None
