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

from groundthink.ops.fused import Operator, differentiable, full_precision, room
from groundthink.ops.wkv6 import segment
from groundthink.ops.wkv6.segment import Cuts, Rows

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
    y, state, _ = _scan(r, k, v, log_w, u, state, reset)
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
) -> tuple[Tensor, Tensor, Tensor]:
    """y, the state after, and for the gradient the states around the chunks."""
    layout = _Layout.of(r)
    y, states = room(v), layout.states(state)
    with torch.autocast(r.device.type, enabled=False):
        for part, slots in layout.segments():
            rows, cuts = layout.rows(r, k, v, log_w, part), layout.cuts(r, reset, part)
            out = segment.forward(rows, u, cuts, state, states[slots])
            layout.unfold(out, y[:, part])
            state = states[slots][-1]
    return y, state.clone(), states


def _backward(
    r: Tensor,
    k: Tensor,
    v: Tensor,
    log_w: Tensor,
    u: Tensor,
    reset: Tensor | None,
    states: Tensor,
    dy: Tensor,
    dstate: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of r, k, v, log_w, u and the state before, from those of y and the state after."""
    layout = _Layout.of(r)
    inputs = (r, k, v, log_w)
    grads, du = [room(x) for x in inputs], torch.zeros_like(u)
    with torch.autocast(r.device.type, enabled=False):
        for part, slots in reversed(list(layout.segments())):
            rows, cuts = layout.rows(r, k, v, log_w, part), layout.cuts(r, reset, part)
            dout = layout.fold(dy[:, part])
            *drows, du_part, dstate = segment.backward(rows, u, cuts, states[slots], dout, dstate)
            du += du_part
            for drow, grad in zip(drows, grads, strict=True):
                layout.unfold(drow, grad[:, part])
    if reset is not None:
        grads[3].masked_fill_(reset[..., None, None], 0)
    dr, dk, dv, dlog_w = grads
    return dr, dk, dv, dlog_w, du, dstate.clone()


def _forward_fake(r, k, v, log_w, u, state, reset):
    return room(v), torch.empty_like(state), _Layout.of(r).states(state)


def _backward_fake(r, k, v, log_w, u, reset, states, dy, dstate):
    return room(r), room(k), room(v), room(log_w), torch.empty_like(u), room(dstate)


def _save(ctx, inputs, output):
    r, k, v, log_w, u, _, reset = inputs
    ctx.save_for_backward(r, k, v, log_w, u, reset, output[-1])


def _pull_back(ctx, dy, dfinal, _):
    r, k, v, log_w, u, reset, states = ctx.saved_tensors
    dy = torch.zeros_like(v) if dy is None else dy
    dfinal = torch.zeros_like(states[0]) if dfinal is None else dfinal
    return (*_backward_op(r, k, v, log_w, u, reset, states, dy, dfinal), None)


_backward_op = Operator("wkv6_chunked_backward", _backward, _backward_fake)
_scan = differentiable(Operator("wkv6_chunked", _forward, _forward_fake), _save, _pull_back)


class _Layout(NamedTuple):
    """How tokens fall into chunks, and chunks into the segments that are worked on together."""

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
        return cls(length, -(-t // length), max(1, SEGMENT // (b * length * h * k)))

    def states(self, state: Tensor) -> Tensor:
        """Room for the states around the chunks of every segment [slots, B, H, K, V]."""
        segments = -(-self.chunks // self.together)
        return state.new_empty(self.chunks + segments, *state.shape)

    def segments(self) -> Iterator[tuple[slice, slice]]:
        """The tokens of each segment, and its slots in `states`."""
        tokens, slots = self.together * self.length, self.together + 1
        for i in range(-(-self.chunks // self.together)):
            yield slice(i * tokens, (i + 1) * tokens), slice(i * slots, (i + 1) * slots)

    def fold(self, x: Tensor) -> Tensor:
        """[B, T, H, D] to rows [chunks * B * H, length, D], zeros after the end."""
        rest = -x.shape[1] % self.length
        x = F.pad(x, (0, 0, 0, 0, 0, rest)) if rest else x
        x = x.unflatten(1, (-1, self.length)).permute(1, 0, 3, 2, 4)
        return x.reshape(-1, self.length, x.shape[-1]).contiguous()

    def unfold(self, rows: Tensor, out: Tensor) -> None:
        """Undo `fold` into `out` [B, T, H, D]."""
        b, t, h, d = out.shape
        x = rows.view(-1, b, h, self.length, d).permute(1, 0, 3, 2, 4)
        if t % self.length:
            out.copy_(x.flatten(1, 2)[:, :t])
        else:
            out.unflatten(1, (-1, self.length)).copy_(x)

    def rows(self, r: Tensor, k: Tensor, v: Tensor, log_w: Tensor, part: slice) -> Rows:
        """The inputs of a segment, folded."""
        return Rows(*(self.fold(x[:, part]) for x in (r, k, v, log_w)))

    def cuts(self, r: Tensor, reset: Tensor | None, part: slice) -> Cuts | None:
        """What the resets of a segment separate; None if it has none."""
        if reset is None or not reset[:, part].any():
            return None
        each = reset[:, part, None, None].expand(-1, -1, r.shape[2], -1)
        return Cuts.at(self.fold(each).squeeze(-1))
