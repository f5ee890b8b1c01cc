"""SSD in chunks for any decay: a factor for every pair of tokens of a chunk.

With a_t the sum of dt A over the tokens of a chunk up to t, and h the state before the chunk,

    y_t = sum_{s <= t} exp(a_t - a_s) (C_t . B_s) dt_s x_s + exp(a_t) h C_t
    h'  = exp(a_L) h + sum_s exp(a_L - a_s) dt_s x_s B_s^T

(Dao and Gu 2024, section 6); two tokens with a reset between them have weight zero. Letters as in
`layout`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from groundthink.ops.ssd.layout import by_group, chunks, documents, tokens

FORGOTTEN = -1024.0
"""Log decay below which nothing is left in fp64 either; sums of it stay exact in fp32."""


def forward(x, dt, A, B, C, D, state, reset) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """y, the state after, and for the gradient the states before the chunks and y less its skip."""
    q = _prepare(x, dt, A, B, C, reset)
    states = q.x_end.flatten(-2).mT @ q.B  # [b c g rp n]
    final = _carry(by_group(state, B.shape[2]), states.unbind(1), q.whole.unbind(1))
    y = (q.C @ states.mT).view_as(q.x_end).mul_(q.start)
    y.add_((q.pair.mul_(q.CB[:, :, :, None]) @ q.x_dt).transpose(3, 4))
    core = tokens(y, x.shape[1]).contiguous()
    y = core.clone() if D is None else torch.addcmul(core, x, D[:, None])
    return y, final.reshape(state.shape), states, core


def gradients(x, dt, A, B, C, D, reset, states, dy, dfinal) -> tuple[Tensor, ...]:
    """Of x, dt, A, B, C, D and the first state."""
    q = _prepare(x, dt, A, B, C, reset)
    dyc = chunks(dy, B.shape[2])
    dy_start, x_end = (dyc * q.start).flatten(-2), q.x_end.flatten(-2)
    dstates = dy_start.mT @ q.C
    dstate = _carry(by_group(dfinal, B.shape[2]), dstates.unbind(1)[::-1], q.whole.unbind(1)[::-1])

    dyc = dyc.transpose(3, 4).contiguous()
    dpair = (dyc @ q.x_dt.mT).mul_(q.pair)
    dCB = dpair.sum(3).mul_(q.mask)
    pairs = dpair.mul_(q.CB[:, :, :, None])
    dB = (dCB.mT @ q.C).add_(x_end @ dstates)
    dC = (dCB @ q.B).add_(dy_start @ states)

    heads = q.x_end.shape[-2:]
    dx_end = q.B @ dstates.mT
    reads = (q.C @ states.mT).mul_(dy_start).unflatten(-1, heads).sum(-1)
    writes = x_end.mul_(dx_end).unflatten(-1, heads).sum(-1)
    through = dstates.mul_(states).unflatten(-2, heads).sum((-2, -1)) * q.start[..., -1, :, 0]
    dlog = _across(pairs, reads.mT, writes.mT, through).mT  # [b c g l r]
    dx_dt = dx_end.unflatten(-1, heads).mul_(q.end)
    dx_dt.add_((q.pair.mul_(q.CB[:, :, :, None]).mT @ dyc).transpose(3, 4))

    by_token = (dlog[..., None], dx_dt, dB[..., None, :], dC[..., None, :])
    dlog, dx_dt, dB, dC = (tokens(t, x.shape[1]) for t in by_token)
    dlog = dlog[..., 0]
    ddt = torch.linalg.vecdot(x, dx_dt).addcmul_(dlog, A)
    dA, dD = (dlog * dt).sum((0, 1)), torch.linalg.vecdot(dy, x).sum((0, 1))
    dx = dx_dt.mul_(dt[..., None])
    if D is not None:
        dx.addcmul_(dy, D[:, None])
    return dx, ddt, dA, dB, dC, dD, dstate.reshape(dfinal.shape)


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
    whole: Tensor  # exp(a_L) [b c g rp 1]


def _prepare(x, dt, A, B, C, reset) -> _Prepared:
    groups = B.shape[2]
    x, dt, B, C = (chunks(t, groups) for t in (x, dt[..., None], B, C))
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
        document = documents(reset)
        mask = mask & (document == document.mT)
        start.mul_(document == 0)
        end.mul_(document == document[..., -1:, :])
    CB = (C @ B.mT).mul_(mask)
    whole = start[..., -1, :, None].expand_as(x[..., -1, :, :]).flatten(-2)[..., None]
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
