"""Consecutive chunks of WKV6, of all sequences and heads at once, forward and back.

Rows are [G, L, .] with G = chunks * B * H. With S the state that enters a chunk,

    y = read S + (lower + bonus on the diagonal) v;   S' = outer (inner S + write^T v)

where `intra` makes read, write, lower, inner and outer of r, k and log w. A reset masks what it
separates and decays nothing, so the cut is exact.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from groundthink.ops.wkv6.intra import Scheme, matmul_nt, scheme


class Rows(NamedTuple):
    """Inputs [G, L, .]."""

    r: Tensor
    k: Tensor
    v: Tensor
    log_w: Tensor


class Cuts(NamedTuple):
    """What the resets of each chunk separate."""

    before: Tensor
    """[G, L, 1] tokens that still see the state that entered the chunk."""
    after: Tensor
    """[G, L, 1] tokens whose writes reach the end of the chunk."""
    whole: Tensor
    """[G, 1] chunks without a reset, which the state passes."""
    apart: Tensor
    """[G, L, L] pairs of tokens with a reset between them."""

    @classmethod
    def at(cls, reset: Tensor) -> Cuts:
        """From the resets [G, L] of the chunks."""
        count = reset.cumsum(1)
        return cls(
            before=(count == 0)[..., None],
            after=(count == count[:, -1:])[..., None],
            whole=count[:, -1:] == 0,
            apart=count[:, :, None] != count[:, None, :],
        )


def forward(rows: Rows, u: Tensor, cuts: Cuts | None, state: Tensor, states: Tensor) -> Tensor:
    """Rows of y; fills `states` [chunks+1, B, H, K, V] around the chunks."""
    r, k, v, log_w = rows
    chunks = len(states) - 1
    s = scheme(r, k, log_w, chunks)
    _complete(s, _by_head(r * k, u), u, cuts)
    inner, outer = _decays(s, cuts, state)
    torch.bmm(s.write.mT, v if cuts is None else v * cuts.after, out=_matrices(states[1:]))
    states[0] = state if outer is None else state * outer[0]
    for c in range(chunks):
        _pass(states[c], states[c + 1], inner, c)
        if outer is not None:
            states[c + 1].mul_(outer[c + 1])
    y = torch.bmm(s.read, _matrices(states[:-1]))
    if cuts is not None:
        y.mul_(cuts.before)
    return y.baddbmm_(s.lower, v)


def backward(
    rows: Rows, u: Tensor, cuts: Cuts | None, states: Tensor, dy: Tensor, dstate: Tensor
) -> tuple[Tensor, ...]:
    """Gradients of r, k, v, log_w, u and the state before, from those of y and the state after."""
    r, k, v, log_w = rows
    s = scheme(r, k, log_w, len(states) - 1)
    product = _by_head(r * k, u)
    _complete(s, product, u, cuts)
    dlower = matmul_nt(dy, v)
    dbonus = dlower.diagonal(0, 1, 2).clone().view(*product.shape[:3], 1)
    dlower.tril_(-1)
    dy_in, v_out = dy, v
    if cuts is not None:
        dlower.masked_fill_(cuts.apart, 0)
        dy_in, v_out = dy * cuts.before, v * cuts.after

    dstates = torch.empty_like(states)
    torch.bmm(s.read.mT, dy_in, out=_matrices(dstates[:-1]))
    dstates[-1] = dstate
    flux = _carry_back(states, dstates, *_decays(s, cuts, dstate))
    entered, written = _matrices(states[:-1]), _matrices(dstates[1:])

    dv = torch.bmm(s.write, written)
    if cuts is not None:
        dv.mul_(cuts.after)
    dv.baddbmm_(s.lower.mT, dy)
    dr, dk, dlog_w = s.pullback(dlower, matmul_nt(dy_in, entered), matmul_nt(v_out, written), flux)
    du = torch.matmul(dbonus.mT, product).sum((0, 2))
    pair = (dbonus * u[:, None]).flatten(0, 1)
    return dr.addcmul_(pair, k), dk.addcmul_(pair, r), dv, dlog_w, du, dstates[0]


def _complete(s: Scheme, product: Tensor, u: Tensor, cuts: Cuts | None) -> None:
    """Put cuts and bonus into what tokens read of one another."""
    if cuts is not None:
        s.lower.masked_fill_(cuts.apart, 0)
    bonus = torch.matmul(product, u[:, :, None])
    s.lower.diagonal(0, 1, 2).copy_(bonus.view(s.lower.shape[:2]))


def _decays(s: Scheme, cuts: Cuts | None, state: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """inner and outer [chunks or chunks+1, B, H, K or 1, 1] for states like `state`."""
    inner, outer = s.inner, s.outer
    if cuts is not None:
        inner = cuts.whole.to(state.dtype) if inner is None else inner * cuts.whole
    if inner is not None:
        inner = inner.view(-1, *state.shape[:2], inner.shape[-1], 1)
    if outer is not None:
        outer = outer.view(-1, *state.shape[:3], 1)
    return inner, outer


def _pass(source: Tensor, target: Tensor, inner: Tensor | None, c: int) -> None:
    """Add what chunk c lets through of a state, or of its gradient."""
    if inner is None:
        target.add_(source)
    else:
        target.addcmul_(source, inner[c])


def _carry_back(
    states: Tensor, dstates: Tensor, inner: Tensor | None, outer: Tensor | None
) -> Tensor:
    """Turn gradients of what was read of the states into those of what was written, in place.

    Returns the gradient of log outer, or where there is none of log inner.
    """
    chunks, flux = len(states) - 1, []
    for c in range(chunks, -1, -1):
        if c < chunks:
            _pass(dstates[c + 1], dstates[c], inner, c)
        if outer is not None:
            flux.append((states[c] * dstates[c]).sum(-1))
            dstates[c].mul_(outer[c])
    if outer is not None:
        return torch.stack(flux[::-1])
    assert inner is not None
    return (states[:-1] * dstates[1:]).sum(-1) * inner.squeeze(-1)


def _by_head(x: Tensor, u: Tensor) -> Tensor:
    """[G, L, K] to [G / H, H, L, K]."""
    return x.view(-1, len(u), *x.shape[1:])


def _matrices(states: Tensor) -> Tensor:
    """[chunks, B, H, K, V] to [G, K, V]."""
    return states.view(-1, *states.shape[-2:])
