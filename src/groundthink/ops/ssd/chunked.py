"""SSD in chunks: matrix products inside a chunk, the recurrence only from chunk to chunk.

With a_t the sum of dt A over the tokens of a chunk up to t, and h the state before the chunk,

    y_t = sum_{s <= t} exp(a_t - a_s) (C_t . B_s) dt_s x_s + exp(a_t) h C_t
    h'  = exp(a_L) h + sum_s exp(a_L - a_s) dt_s x_s B_s^T

(Dao and Gu 2024, section 6); two tokens with a reset between them have weight zero.

Layouts: batch b, chunk c, group g, head of the group r, token of the chunk l (as a pair: t and
s), and the sizes p and n. B and C belong to a group, so products with them run over all its heads
at once, on columns rp.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from groundthink.ops.ssd.reference import ssd_reference

CHUNK = 64
"""Most tokens in a chunk; the fastest choice on a CPU for head and state sizes near 64."""

FORGOTTEN = -1024.0
"""Log decay below which nothing is left in fp64 either; sums of it stay exact in fp32."""


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
    with _full_precision(x):
        if x.shape[1] == 1:
            return ssd_reference(x, dt, A, B, C, D, state, reset)
        y, state = _Scan.apply(x, dt, A, B, C, state, reset)
        return (y if D is None else torch.addcmul(y, x, D[:, None])), state


def _full_precision(tensor: Tensor) -> torch.autocast:
    """Autocast off: it would round the operands of every matrix product to half precision."""
    return torch.autocast(tensor.device.type, enabled=False)


class _Scan(torch.autograd.Function):
    """Saves the inputs and the state before every chunk, and computes the rest again."""

    @staticmethod
    def forward(ctx, x, dt, A, B, C, state, reset):
        q = _prepare(x, dt, A, B, C, reset)
        states = q.B.mT @ q.x_end.flatten(-2)  # [b c g n rp]
        final = _carry(_columns(state, q.B), states.unbind(1), q.whole.unbind(1))
        y = (q.C @ states).view_as(q.x_end).mul_(q.start)
        y.add_((q.pair.mul_(q.CB[:, :, :, None]) @ q.x_dt).transpose(3, 4))
        ctx.save_for_backward(x, dt, A, B, C, reset, states)
        return _tokens(y, x.shape[1]), final.mT.reshape(state.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy, dfinal):
        with _full_precision(dy):
            return *_gradients(dy, dfinal, *ctx.saved_tensors), None


def _gradients(dy, dfinal, x, dt, A, B, C, reset, states) -> tuple[Tensor, ...]:
    """Of x, dt, A, B, C and the first state."""
    q = _prepare(x, dt, A, B, C, reset)
    dy = _chunks(dy, B.shape[2])
    dy_start, x_end = (dy * q.start).flatten(-2), q.x_end.flatten(-2)
    dstates = q.C.mT @ dy_start
    dstate = _carry(_columns(dfinal, q.B), dstates.unbind(1)[::-1], q.whole.unbind(1)[::-1])

    dy = dy.transpose(3, 4).contiguous()
    dpair = (dy @ q.x_dt.mT).mul_(q.pair)
    dCB = dpair.sum(3).mul_(q.mask)
    pairs = dpair.mul_(q.CB[:, :, :, None])
    dB = (dCB.mT @ q.C).add_(x_end @ dstates.mT)
    dC = (dCB @ q.B).add_(dy_start @ states.mT)

    heads = q.x_end.shape[-2:]
    dx_end = q.B @ dstates
    reads = (q.C @ states).mul_(dy_start).unflatten(-1, heads).sum(-1)
    writes = x_end.mul_(dx_end).unflatten(-1, heads).sum(-1)
    through = dstates.mul_(states).unflatten(-1, heads).sum((-3, -1)) * q.start[..., -1, :, 0]
    dlog = _across(pairs, reads.mT, writes.mT, through).mT  # [b c g l r]
    dx_dt = dx_end.unflatten(-1, heads).mul_(q.end)
    dx_dt.add_((q.pair.mul_(q.CB[:, :, :, None]).mT @ dy).transpose(3, 4))

    by_token = (dlog[..., None], dx_dt, dB[..., None, :], dC[..., None, :])
    dlog, dx_dt, dB, dC = (_tokens(t, x.shape[1]) for t in by_token)
    dlog = dlog[..., 0]
    ddt = torch.linalg.vecdot(x, dx_dt).addcmul_(dlog, A)
    dA = (dlog * dt).sum((0, 1))
    return dx_dt.mul_(dt[..., None]), ddt, dA, dB, dC, dstate.mT.reshape(dfinal.shape)


class _Prepared(NamedTuple):
    x_dt: Tensor  # dt_s x_s [b c g r l p]
    x_end: Tensor  # exp(a_L - a_s) dt_s x_s [b c g l r p]
    B: Tensor  # [b c g l n]
    C: Tensor
    mask: Tensor  # s <= t without a reset between: bool [b c 1 t s] or [t s]
    CB: Tensor  # C_t . B_s where the mask allows, [b c g t s]
    pair: Tensor  # exp(a_t - a_s) [b c g r t s]
    start: Tensor  # exp(a_t) [b c g l r 1]
    end: Tensor  # exp(a_L - a_s) [b c g l r 1]
    whole: Tensor  # exp(a_L) [b c g 1 rp]


def _prepare(x, dt, A, B, C, reset) -> _Prepared:
    groups = B.shape[2]
    x, dt, B, C = (_chunks(t, groups) for t in (x, dt[..., None], B, C))
    B, C = B.squeeze(4).contiguous(), C.squeeze(4).contiguous()
    dt_by_head = dt.transpose(3, 4).contiguous()  # [b c g r l 1]
    log = (dt_by_head[..., 0] * A.reshape(groups, -1, 1)).clamp_(min=FORGOTTEN)
    # A small decay would drown in the sum of larger ones before it. Whole numbers add exactly in
    # floating point, and the sums of what remains stay small.
    whole = log.round()
    rest = log.sub_(whole).cumsum(-1)
    whole = whole.cumsum(-1)
    pair = whole[..., :, None] - whole[..., None, :]
    pair.add_(rest[..., :, None]).sub_(rest[..., None, :]).clamp_(max=0).exp_()
    start, end = whole.add_(rest).exp_().mT, pair[..., -1, :].mT.clone()  # [b c g l r]
    mask = torch.ones(pair.shape[-2:], dtype=torch.bool, device=x.device).tril_()
    if reset is not None:
        document = _chunks(reset[..., None, None], 1)[..., 0].cumsum(3)  # [b c 1 l 1]
        mask = mask & (document == document.mT)
        start.mul_(document == 0)
        end.mul_(document == document[..., -1:, :])
    CB = (C @ B.mT).mul_(mask)
    whole = start[..., -1:, :, None].expand_as(x[..., -1:, :, :]).flatten(-2)
    start, end = start[..., None], end[..., None]
    x_dt = dt_by_head * x.transpose(3, 4)  # the first operand gives the layout
    return _Prepared(x_dt, x * (dt * end), B, C, mask, CB, pair, start, end, whole)


def _across(pairs: Tensor, reads: Tensor, writes: Tensor, through: Tensor) -> Tensor:
    """Gradient of the log decay dt A of every token: the sum of all that decays across it.

    The usual difference of the sums of `pairs` over s and over t would cancel badly.

    Args:
        pairs: gradient times value of what token t reads of token s [b c g r t s].
        reads: the same of what token t reads of the state before the chunk [b c g r t].
        writes: the same of what token s leaves in the state after the chunk [b c g r s].
        through: the same of what the chunk passes from state to state [b c g r].
    """
    later = reads.flip(-1).cumsum(-1).flip(-1)
    earlier = pairs.cumsum(-1).tril_(-1).sum(-2) + writes.cumsum(-1)
    return F.pad(earlier[..., :-1], (1, 0)) + later + through[..., None]


def _carry(first: Tensor, steps: Sequence[Tensor], decay: Sequence[Tensor]) -> Tensor:
    """Put in each step, in the order given, what is carried into it; return what the last gives."""
    for step, kept in zip(steps, decay, strict=True):
        following = torch.addcmul(step, kept, first)
        step.copy_(first)
        first = following
    return first


def _columns(state: Tensor, B: Tensor) -> Tensor:
    """[B, H, P, N] -> [b g n rp]."""
    return state.reshape(B.shape[0], B.shape[2], -1, B.shape[-1]).mT


def _chunks(tensor: Tensor, groups: int) -> Tensor:
    """[B, T, X, D] -> [b c g l r d], a view unless T needs padding with zeros."""
    batch, steps, heads, size = tensor.shape
    count = -(-steps // CHUNK)
    length = -(-steps // count)
    if count * length > steps:
        tensor = F.pad(tensor, (0, 0, 0, 0, 0, count * length - steps))
    return tensor.view(batch, count, length, groups, heads // groups, size).transpose(2, 3)


def _tokens(tensor: Tensor, steps: int) -> Tensor:
    """The inverse of `_chunks`."""
    return tensor.transpose(2, 3).flatten(1, 2).flatten(2, 3)[:, :steps]
