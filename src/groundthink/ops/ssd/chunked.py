"""SSD in chunks: matrix products inside a chunk, the recurrence only from chunk to chunk.

With a_t the sum of dt A over the tokens of a chunk up to t, and h the state before the chunk,

    y_t = sum_{s <= t} exp(a_t - a_s) (C_t . B_s) dt_s x_s + exp(a_t) h C_t
    h'  = exp(a_L) h + sum_s exp(a_L - a_s) dt_s x_s B_s^T

(Dao and Gu 2024, section 6); two tokens with a reset between them have weight zero. Tensors are
laid out [c b g r l ...]: chunk, batch, group, head within the group, token within the chunk.
"""

from __future__ import annotations

from collections.abc import Iterable
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
        p = _prepare(x, dt, A, B, C, reset)
        states = p.x_dt.mT @ p.B_end
        state = state.unflatten(1, (B.shape[2], -1))
        final = _carry(state, states, p.whole, range(len(states)))
        y = p.pair.mul_(p.CB) @ p.x_dt
        _add_product(y, p.C_start, states.mT)
        ctx.save_for_backward(x, dt, A, B, C, reset, states)
        return _tokens(y, x.shape[1]), final.flatten(1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy, dfinal):
        with _full_precision(dy):
            return *_gradients(dy, dfinal, *ctx.saved_tensors), None


def _gradients(dy, dfinal, x, dt, A, B, C, reset, states) -> tuple[Tensor, ...]:
    """Of x, dt, A, B, C and the first state."""
    groups = B.shape[2]
    p = _prepare(x, dt, A, B, C, reset)
    dy = _chunks(dy, groups).contiguous()
    dstates = dy.mT @ p.C_start
    dfinal = dfinal.unflatten(1, (groups, -1))
    dstate = _carry(dfinal, dstates, p.whole, reversed(range(len(states))))
    dpair = (dy @ p.x_dt.mT).mul_(p.pair)
    dCB = dpair.sum(3, keepdim=True).mul_(p.mask)
    dx_dt = p.pair.mul_(p.CB).mT @ dy
    _add_product(dx_dt, p.B_end, dstates.mT)
    dC_start, dB_end = dy @ states, p.x_dt @ dstates
    dlog = _across(
        dpair.mul_(p.CB),
        torch.linalg.vecdot(dC_start, p.C_start),
        torch.linalg.vecdot(dB_end, p.B_end),
        torch.linalg.vecdot(states.flatten(-2), dstates.flatten(-2)) * p.whole,
    )
    dC = (dCB @ p.B).add_(dC_start.mul_(p.start).sum(3, keepdim=True))
    dB = (dCB.mT @ p.C).add_(dB_end.mul_(p.end).sum(3, keepdim=True))
    dlog, dx_dt, dB, dC = (_tokens(t, x.shape[1]) for t in (dlog[..., None], dx_dt, dB, dC))
    dlog = dlog[..., 0]  # of dt A
    ddt = torch.linalg.vecdot(x, dx_dt).addcmul_(dlog, A)
    dA = (dlog * dt).sum((0, 1))
    return dx_dt.mul_(dt[..., None]), ddt, dA, dB, dC, dstate.flatten(1, 2)


class _Prepared(NamedTuple):
    x_dt: Tensor  # [c b g r l p]
    B: Tensor  # [c b g 1 l n]
    C: Tensor
    mask: Tensor  # bool [l l] or [c b 1 1 l l]: s <= t without a reset between
    CB: Tensor  # C_t . B_s where the mask allows, [c b g 1 l l]
    pair: Tensor  # exp(a_t - a_s) [c b g r l l]
    start: Tensor  # exp(a_t) [c b g r l 1]
    end: Tensor  # exp(a_L - a_s) [c b g r l 1]
    whole: Tensor  # exp(a_L) [c b g r]
    C_start: Tensor
    B_end: Tensor


def _prepare(x, dt, A, B, C, reset) -> _Prepared:
    groups = B.shape[2]
    dt = _chunks(dt[..., None], groups).contiguous()
    B, C = _chunks(B, groups).contiguous(), _chunks(C, groups).contiguous()
    log = (dt[..., 0] * A.reshape(groups, -1, 1)).clamp_(min=FORGOTTEN)
    # A small decay would drown in the sum of larger ones before it. Whole numbers add exactly in
    # floating point, and the sums of what remains stay small.
    whole = log.round()
    rest = log.sub_(whole).cumsum(-1)
    whole = whole.cumsum(-1)
    pair = whole[..., :, None] - whole[..., None, :]
    pair.add_(rest[..., :, None]).sub_(rest[..., None, :]).clamp_(max=0).exp_()
    start, end = (whole + rest).exp_()[..., None], pair[..., -1, :, None].clone()
    mask = torch.ones(pair.shape[-2:], dtype=torch.bool, device=x.device).tril_()
    if reset is not None:
        document = _chunks(reset[..., None, None], 1)[..., 0].cumsum(-1)
        mask = mask & (document[..., :, None] == document[..., None, :])
        start.mul_(document[..., None] == 0)
        end.mul_((document == document[..., -1:])[..., None])
    CB = (C @ B.mT).mul_(mask)
    x_dt = dt * _chunks(x, groups)
    return _Prepared(x_dt, B, C, mask, CB, pair, start, end, start[..., -1, 0], C * start, B * end)


def _across(pairs: Tensor, reads: Tensor, writes: Tensor, through: Tensor) -> Tensor:
    """Gradient of the log decay dt A of every token: the sum of all that decays across it.

    The usual difference of the sums of `pairs` over s and over t would cancel badly.

    Args:
        pairs: gradient times value of what token t reads of token s [c b g r t s].
        reads: the same of what token t reads of the state before the chunk [c b g r t].
        writes: the same of what token s leaves in the state after the chunk [c b g r s].
        through: the same of what the chunk passes from state to state [c b g r].
    """
    later = reads.flip(-1).cumsum(-1).flip(-1)
    earlier = pairs.cumsum(-1).tril_(-1).sum(-2) + writes.cumsum(-1)
    return F.pad(earlier[..., :-1], (1, 0)) + later + through[..., None]


def _carry(first: Tensor, steps: Tensor, decay: Tensor, order: Iterable[int]) -> Tensor:
    """Put in steps[c] what is carried into chunk c; return what the last one hands on."""
    decay = decay[..., None, None]
    for c in order:
        following = torch.addcmul(steps[c], decay[c], first)
        steps[c] = first
        first = following
    return first


def _add_product(out: Tensor, a: Tensor, b: Tensor) -> None:
    out.flatten(0, 3).baddbmm_(a.flatten(0, 3), b.flatten(0, 3))


def _chunks(tensor: Tensor, groups: int) -> Tensor:
    """[B, T, X, D] -> [c b g r l d], a view unless T needs padding with zeros."""
    steps = tensor.shape[1]
    count = -(-steps // CHUNK)
    length = -(-steps // count)
    if count * length > steps:
        tensor = F.pad(tensor, (0, 0, 0, 0, 0, count * length - steps))
    return tensor.unflatten(1, (count, length)).unflatten(3, (groups, -1)).permute(1, 0, 3, 4, 2, 5)


def _tokens(tensor: Tensor, steps: int) -> Tensor:
    """The inverse of `_chunks`."""
    return tensor.permute(1, 0, 4, 2, 3, 5).flatten(1, 2).flatten(2, 3)[:, :steps]
