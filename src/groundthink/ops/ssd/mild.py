"""SSD in chunks whose decay is mild: factors relative to the middle of the chunk, no pairs.

With a_t the sum of dt A over the tokens from the middle of the chunk up to t (less that over those
between where t comes before it), every decay between two tokens is a product of two factors,

    y_t = e^(a_t) (sum_{s < t} (C_t . B_s) z_s + S C_t) + (C_t . B_t) dt_t x_t,
    z_s = e^(-a_s) dt_s x_s

where S is the state carried to the middle. So all heads of a group share one matrix of C . B, and
the recurrence is products of whole chunks. Letters as in `layout`, and G = b c g.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from groundthink.ops.cuts import Cuts, clear, once
from groundthink.ops.spans import spans
from groundthink.ops.ssd.layout import by_group, chunks, states_shape, tokens

LIMIT = 43.0
"""Largest exponent: between the middles of two chunks lie two of them, and e^-86 is still a normal
number of fp32."""


def exponents(dt: Tensor, A: Tensor, groups: int, longest: int) -> Tensor:
    """Log decay from the middle of a chunk to before its first token, and to each [b c g r l+1]."""
    log = chunks((dt * A)[..., None], groups, longest)[..., 0].mT
    sums = log.flatten(0, -2) @ spans(log, log.shape[-1]).mT
    return sums.view(*log.shape[:-1], -1)


def forward(a, x, dt, A, B, C, D, state, reset) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """y, the state after, and for the gradient the states in the middles and y less its skip.

    The states have room for the shortest chunks, whatever the length of these is.
    """
    q = _prepare(a, x, dt, B, C, reset)
    writes = torch.bmm(q.z.mT, q.B)
    if q.cuts is not None:
        q.cuts.sum_again(writes, q.z, q.B, q.cuts.lost)
    writes = writes.view(*a.shape[:3], *writes.shape[1:]).mul_(q.outer[:, 1:])
    kept = x.new_empty(states_shape(x, B))
    states = _used(kept, a)
    final = torch.empty_like(by_group(state, B.shape[2]))
    steps = (t.unbind(1) for t in (writes, states, q.passed))
    torch.mul(by_group(state, B.shape[2]), q.outer[:, 0], out=states[:, 0])
    for write, now, passed, then in zip(*steps, [*states.unbind(1)[1:], final], strict=True):
        torch.addcmul(write, now, passed, out=then)
    y = torch.bmm(q.C, states.flatten(0, 2).mT)
    if q.cuts is not None:
        clear(y, q.cuts.unseen)
    y = y.baddbmm_(q.CB, q.z).view(*q.scale.shape[:-1], -1)
    core = tokens(y.mul_(q.factor), x.shape[1]).contiguous()
    y = torch.addcmul(core, x, _skip(q.own, dt, D)[..., None])
    return y, final.view(state.shape), kept, core


def gradients(a, x, dt, A, B, C, D, reset, final, states, core, dy, dfinal) -> tuple[Tensor, ...]:
    """Of x, dt, A, B, C, D and the first state."""
    q, states = _prepare(a, x, dt, B, C, reset), _used(states, a)
    groups, steps, length = B.shape[2], x.shape[1], a.shape[-1] - 1
    work = torch.empty_like(core)
    dy_core, dy_x = _dots(dy, core, work), _dots(dy, x, work)
    dyc = (chunks(dy, groups, length) * q.factor).flatten(0, 2).flatten(2)
    dstates = torch.bmm(dyc.mT, q.C)
    if q.cuts is not None:
        q.cuts.sum_again(dstates, dyc, q.C, q.cuts.unseen)
    dstates = dstates.view_as(states)
    dfirst, dwrites, flux = _carry_back(
        q, states, dstates, *(by_group(t, groups) for t in (final, dfinal))
    )

    dCB = torch.bmm(dyc, q.z.mT).tril_(-1)
    dB, dC = torch.bmm(q.z, dwrites), torch.bmm(dyc, states.flatten(0, 2))
    dz = torch.bmm(q.B, dwrites.mT)
    if q.cuts is not None:
        clear(dCB, q.cuts.apart)
        clear(dB, q.cuts.lost)
        clear(dC, q.cuts.unseen)
        clear(dz, q.cuts.lost)
    dB.baddbmm_(dCB.mT, q.C)
    dC.baddbmm_(dCB, q.B)
    dz = dz.baddbmm_(q.CB.mT, dyc).view(*q.scale.shape[:-1], -1)

    ddt = _dots(chunks(x, groups, length), dz, torch.empty_like(dz))
    ddt = ddt.unsqueeze(-1).div_(q.factor)  # [b c g l r 1]
    dy_core, by_chunk = (chunks(t[..., None], groups, length) for t in (dy_core, dt))
    da = dy_core - ddt * by_chunk
    da = F.pad(da[..., 0].mT, (1, 0))
    da[..., 0] -= flux[:, :-1]
    da[..., -1] += flux[:, 1:]
    dlog = da.flatten(0, -2) @ spans(da, da.shape[-1] - 1)
    dlog = tokens(dlog.view(*a.shape[:-1], -1).mT[..., None], steps)[..., 0]
    own = q.own.repeat_interleave(dt.shape[2] // groups, dim=2)
    ddt = tokens(ddt, steps)[..., 0].addcmul(dlog, A).addcmul_(dy_x, own)
    down = (dy_x * dt).unflatten(-1, (groups, -1)).sum(-1, keepdim=True)
    dB, dC = (tokens(g.view(*a.shape[:3], -1, 1, g.shape[-1]), steps) for g in (dB, dC))
    dx = tokens(dz.mul_(q.scale), steps)
    into = _side_by_side(x, B)
    dx = torch.addcmul(dx, dy, _skip(q.own, dt, D)[..., None], out=into[0])
    dB, dC = torch.addcmul(dB, down, C, out=into[1]), torch.addcmul(dC, down, B, out=into[2])
    dA, dD = (dlog * dt).sum((0, 1)), dy_x.sum((0, 1))
    return dx, ddt, dA, dB, dC, dD, dfirst.view(dfinal.shape)


def _side_by_side(x: Tensor, B: Tensor) -> list[Tensor]:
    """Room for the gradients of x, B and C in the same rows: most often these were one tensor."""
    parts = x, B, B
    widths = [t.shape[2] * t.shape[3] for t in parts]
    room = x.new_empty(*x.shape[:2], sum(widths)).split(widths, -1)
    return [own.unflatten(-1, t.shape[2:]) for own, t in zip(room, parts, strict=True)]


def _dots(a: Tensor, b: Tensor, work: Tensor) -> Tensor:
    """a . b over the last dimension; `work` is room for their product."""
    return torch.mul(a, b, out=work).sum(-1)


def _skip(own: Tensor, dt: Tensor, D: Tensor | None) -> Tensor:
    """What y_t has of x_t [B, T, H]: D, and the part of the recurrence that nothing decays.

    It stays out of the products, where its share in the gradient of the decays would cancel and
    leave only its rounding error.
    """
    own = own.repeat_interleave(dt.shape[2] // own.shape[2], dim=2)
    return own * dt if D is None else torch.addcmul(D, own, dt)


class _Chunks(NamedTuple):
    """What forward and gradient share."""

    z: Tensor  # [G l rp]
    B: Tensor  # [G l n]
    C: Tensor
    CB: Tensor  # C_t . B_s for s < t of one document, else 0 [G t s]
    own: Tensor  # C_t . B_t [B, T, G]
    factor: Tensor  # e^(a_t) [b c g l r 1]
    scale: Tensor  # e^(-a_s) dt_s [b c g l r 1]
    outer: Tensor  # decays start - middle - ... - middle - end [b c+1 g rp 1]
    passed: Tensor  # those of the states from each middle on, 0 where a reset lies between
    cuts: Cuts | None


def _prepare(a, x, dt, B, C, reset) -> _Chunks:
    groups, steps, length = B.shape[2], x.shape[1], a.shape[-1] - 1
    x, dt, B, C = (chunks(t, groups, length) for t in (x, dt[..., None], B, C))
    B, C = (t.flatten(0, 2).squeeze(2) for t in (B, C))
    factor = a[..., 1:].exp().mT[..., None]
    scale = dt / factor
    z = (x * scale).flatten(0, 2).flatten(2)
    CB = torch.bmm(C, B.mT)
    own = tokens(CB.diagonal(0, 1, 2).reshape(*a.shape[:3], -1, 1, 1), steps)[..., 0].contiguous()
    outer = F.pad(a[..., -1], (0, 0, 0, 0, 1, 0)).sub_(F.pad(a[..., 0], (0, 0, 0, 0, 0, 1)))
    outer = outer.exp_().repeat_interleave(x.shape[-1], -1)[..., None]
    passed, cuts = outer[:, 1:], None
    if reset is not None:
        cuts = once(reset, ("ssd", groups, length), lambda: _cuts(reset, groups, length))
    if cuts is not None:
        passed = passed * cuts.whole
    CB.tril_(-1)
    if cuts is not None:
        clear(CB, cuts.apart)
    return _Chunks(z, B, C, CB, own, factor, scale, outer, passed, cuts)


def _cuts(reset: Tensor, groups: int, length: int) -> Cuts | None:
    if not reset.any():
        return None
    return Cuts.of(chunks(reset[..., None, None], 1, length)[:, :, 0, :, 0, 0], groups)


def _used(states: Tensor, a: Tensor) -> Tensor:
    """The part of the room for states that chunks of this length need [b c g rp n]."""
    shape = *a.shape[:3], *states.shape[3:]
    return states.flatten()[: math.prod(shape)].view(shape)


def _carry_back(
    q: _Chunks, states: Tensor, dstates: Tensor, final: Tensor, dfinal: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """From gradients of what was read of the states, in place, to those of the states.

    Returns the gradients of the first state, of what was written [G rp n], and of the logs of
    `outer` [b c+1 g r].
    """
    then = dfinal
    for now, kept in zip(reversed(dstates.unbind(1)), reversed(q.passed.unbind(1)), strict=True):
        then = now.addcmul_(then, kept)
    heads = q.scale.shape[4]
    pairs = (states * dstates, (final * dfinal)[:, None])
    flux = torch.cat([p.unflatten(3, (heads, -1)).sum((-2, -1)) for p in pairs], 1)
    dwrites = torch.empty_like(dstates)
    torch.mul(dstates[:, 1:], q.outer[:, 1:-1], out=dwrites[:, :-1])
    torch.mul(dfinal, q.outer[:, -1], out=dwrites[:, -1])
    return then * q.outer[:, 0], dwrites.flatten(0, 2), flux
