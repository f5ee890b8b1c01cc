"""SSD in chunks whose decay is mild: factors relative to the middle of the chunk, no pairs.

With a_t the sum of dt A over the tokens from the middle of the chunk up to t (less that over those
between where t comes before it), every decay between two tokens is a product of two factors,

    y_t = e^(a_t) (sum_{s < t} (C_t . B_s) z_s + S C_t) + (C_t . B_t) dt_t x_t,
    z_s = e^(-a_s) dt_s x_s

where S is the state carried to the middle. So all heads of a group share one matrix of C . B, and
the recurrence is products of whole chunks. Letters as in `layout`, and G = b c g.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from groundthink.ops.spans import spans
from groundthink.ops.ssd.layout import chunks, columns, documents, tokens

LIMIT = 43.0
"""Largest exponent: between the middles of two chunks lie two of them, and e^-86 is still a normal
number of fp32."""


def exponents(dt: Tensor, A: Tensor, groups: int) -> Tensor:
    """Log decay from the middle of a chunk to before its first token, and to each [b c g r l+1]."""
    log = chunks((dt * A)[..., None], groups)[..., 0].mT
    return log @ spans(log, log.shape[-1]).mT


def forward(a, x, dt, A, B, C, D, state, reset) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """y, the state after, and for the gradient the states in the middles and y less its skip."""
    q = _prepare(a, x, dt, B, C, reset)
    states = torch.bmm(q.writes.mT, q.z)
    first = columns(state, B.shape[2]) * q.outer[0]
    for c, step in enumerate(_by_chunk(states, a)):
        following = step + first if q.cuts is None else torch.addcmul(step, first, q.cuts.whole[c])
        step.copy_(first)
        first = following.mul_(q.outer[c + 1])
    y = torch.bmm(q.CB, q.z).baddbmm_(q.reads, states).view(*q.scale.shape[:-1], -1)
    core = tokens(y.mul_(q.factor), x.shape[1]).contiguous()
    y = torch.addcmul(core, x, _skip(dt, B, C, D)[..., None])
    return (
        y,
        first.mT.reshape(state.shape).contiguous(),
        states.view(*a.shape[:3], *states.shape[1:]),
        core,
    )


def gradients(a, x, dt, A, B, C, D, reset, final, states, core, dy, dfinal) -> tuple[Tensor, ...]:
    """Of x, dt, A, B, C, D and the first state."""
    states = states.flatten(0, 2)
    q = _prepare(a, x, dt, B, C, reset)
    groups, steps = B.shape[2], x.shape[1]
    dy_core, dy_x = torch.linalg.vecdot(dy, core), torch.linalg.vecdot(dy, x)
    dyc = (chunks(dy, groups) * q.factor).flatten(0, 2).flatten(2)
    dstates = torch.bmm(q.reads.mT, dyc)
    dfirst, flux = _carry_back(q, a, states, dstates, columns(final, groups), dfinal)

    dCB = torch.bmm(dyc, q.z.mT).tril_(-1)
    dB, dC = torch.bmm(q.z, dstates.mT), torch.bmm(dyc, states.mT)
    if q.cuts is not None:
        dCB.masked_fill_(q.cuts.apart, 0)
        dB.mul_(q.cuts.after)
        dC.mul_(q.cuts.before)
    dB.baddbmm_(dCB.mT, q.C)
    dC.baddbmm_(dCB, q.B)
    dz = torch.bmm(q.CB.mT, dyc).baddbmm_(q.writes, dstates).view(*q.scale.shape[:-1], -1)

    ddt = torch.linalg.vecdot(chunks(x, groups), dz).unsqueeze(-1).div_(q.factor)  # [b c g l r 1]
    da = torch.zeros_like(a)
    da[..., 1:] = chunks(dy_core[..., None], groups)[..., 0].mT
    da[..., 1:] -= (ddt * chunks(dt[..., None], groups))[..., 0].mT
    da[..., 0] -= flux[:, :-1]
    da[..., -1] += flux[:, 1:]
    dlog = tokens((da @ spans(da, da.shape[-1] - 1)).mT[..., None], steps)[..., 0]
    ddt = tokens(ddt, steps)[..., 0].addcmul(dlog, A).addcmul_(dy_x, _own(dt, B, C))
    down = (dy_x * dt).unflatten(-1, (groups, -1)).sum(-1, keepdim=True)
    dB, dC = (tokens(g.view(*a.shape[:3], -1, 1, g.shape[-1]), steps) for g in (dB, dC))
    dx = tokens(dz.mul_(q.scale), steps).addcmul_(dy, _skip(dt, B, C, D)[..., None])
    dB, dC = dB.addcmul_(down, C), dC.addcmul_(down, B)
    dA, dD = (dlog * dt).sum((0, 1)), dy_x.sum((0, 1))
    return dx, ddt, dA, dB, dC, dD, dfirst.mT.reshape(dfinal.shape)


def _own(dt: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """C_t . B_t for every head [B, T, H]."""
    return torch.linalg.vecdot(B, C).repeat_interleave(dt.shape[2] // B.shape[2], dim=2)


def _skip(dt: Tensor, B: Tensor, C: Tensor, D: Tensor | None) -> Tensor:
    """What y_t has of x_t [B, T, H]: D, and the part of the recurrence that nothing decays.

    It stays out of the products, where its share in the gradient of the decays would cancel and
    leave only its rounding error.
    """
    own = _own(dt, B, C)
    return own * dt if D is None else torch.addcmul(D, own, dt)


class _Cuts(NamedTuple):
    """What the resets of each chunk separate."""

    before: Tensor  # [G l 1] tokens that see the state before the chunk
    after: Tensor  # [G l 1] tokens whose writes reach the end of the chunk
    apart: Tensor  # [G t s] pairs with a reset between them
    whole: tuple[Tensor, ...]  # of each chunk, whether the state passes it [b 1 1 1]


class _Chunks(NamedTuple):
    """What forward and gradient share."""

    z: Tensor  # [G l rp]
    B: Tensor  # [G l n]
    C: Tensor
    writes: Tensor  # B where the write reaches the end of the chunk, else 0
    reads: Tensor  # C where the state before the chunk is seen, else 0
    CB: Tensor  # C_t . B_s for s < t of one document, else 0 [G t s]
    factor: Tensor  # e^(a_t) [b c g l r 1]
    scale: Tensor  # e^(-a_s) dt_s [b c g l r 1]
    outer: tuple[Tensor, ...]  # decays start - middle - ... - middle - end [b g 1 rp]
    cuts: _Cuts | None


def _prepare(a, x, dt, B, C, reset) -> _Chunks:
    groups = B.shape[2]
    x, dt, B, C = (chunks(t, groups) for t in (x, dt[..., None], B, C))
    B, C = (t.flatten(0, 2).squeeze(2) for t in (B, C))
    factor = a[..., 1:].exp().mT[..., None]
    scale = dt / factor
    z = (x * scale).flatten(0, 2).flatten(2)
    CB = torch.bmm(C, B.mT).tril_(-1)
    outer = a.new_zeros(a.shape[0], a.shape[1] + 1, *a.shape[2:4])
    outer[:, 1:] += a[..., -1]
    outer[:, :-1] -= a[..., 0]
    outer = outer.exp_()[..., None].expand(-1, -1, -1, -1, x.shape[-1])
    outer = outer.flatten(3).unsqueeze(3).unbind(1)
    if reset is None or not reset.any():
        return _Chunks(z, B, C, B, C, CB, factor, scale, outer, None)
    count = documents(reset)
    whole = (count[:, :, :, -1:] == 0).to(x.dtype).unbind(1)
    count = count.expand(-1, -1, groups, -1, -1).flatten(0, 2)
    before, after = (count == 0).to(x.dtype), (count == count[:, -1:]).to(x.dtype)
    cuts = _Cuts(before, after, count != count.mT, whole)
    return _Chunks(
        z, B, C, B * after, C * before, CB.masked_fill_(cuts.apart, 0), factor, scale, outer, cuts
    )


def _carry_back(q: _Chunks, a, states, dstates, final, dfinal) -> tuple[Tensor, Tensor]:
    """Turn gradients of what was read of the states into those of what was written, in place.

    Returns the gradients of the first state and of the logs of `outer` [b c+1 g r].
    """
    size = states.shape[-1] // a.shape[3]
    grad = columns(dfinal, a.shape[2])
    flux = [final * grad]
    pairs = list(zip(_by_chunk(states, a), _by_chunk(dstates, a), strict=True))
    for c, (state, dread) in reversed(list(enumerate(pairs))):
        written = grad * q.outer[c + 1]
        grad = dread + (written if q.cuts is None else written * q.cuts.whole[c])
        dread.copy_(written)
        flux.append(state * grad)
    sums = [f.unflatten(-1, (-1, size)).sum((-3, -1)) for f in reversed(flux)]
    return grad * q.outer[0], torch.stack(sums, 1)


def _by_chunk(states: Tensor, a: Tensor) -> tuple[Tensor, ...]:
    """[G n rp] -> [b g n rp] of every chunk."""
    return states.view(*a.shape[:3], *states.shape[1:]).unbind(1)
