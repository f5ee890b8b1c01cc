"""Consecutive chunks of WKV6, of all sequences and heads at once, forward and back.

Tensors come as cells, [B, N, L, H, .] for N chunks of L tokens: the layout of the inputs, without
a copy. Products run on rows, [G, L, .] with G = N * B * H. With S the state that enters a chunk,

    y = read S + (lower + bonus on the diagonal) v;   S' = outer (inner S + write^T v)

where `intra` makes read, write, lower, inner and outer of r, k and log w. Few chunks hold a reset:
those are corrected row by row. A reset separates and decays nothing, so the cut is exact.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from groundthink.ops.cuts import Cuts, clear
from groundthink.ops.wkv6.intra import Scheme, by_chunk, matmul_nt, rows, scheme


class Cells(NamedTuple):
    """Inputs or their gradients [B, N, L, H, .]."""

    r: Tensor
    k: Tensor
    v: Tensor
    log_w: Tensor


def forward(
    cells: Cells,
    u: Tensor,
    cuts: Cuts | None,
    state: Tensor,
    states: Tensor,
    lower: Tensor,
    y: Tensor,
) -> None:
    """Fill the cells of y, and what the gradient needs.

    Args:
        states: room for the states around the chunks [N+1, B, H, K, V].
        lower: room for what tokens read of one another and themselves [N, B H, L, L].
    """
    r, k, v, log_w = cells
    s, v, lower = scheme(r, k, log_w), rows(v), lower.flatten(0, 1)
    s.read_into(lower)
    if cuts is not None:
        clear(lower, cuts.apart)
    bonus = torch.matmul((r * k).flatten(3), _by_head(u))
    _diagonal(lower, r).copy_(bonus.permute(1, 0, 3, 2))

    written = _matrices(states[1:])
    torch.bmm(s.write.mT, v, out=written)
    if cuts is not None:
        cuts.sum_again(written, s.write, v, cuts.lost)
    states[0] = state
    if s.outer is not None:
        states *= s.outer
    around, passed = states.unbind(0), _passed(s, cuts).unbind(0)
    for c, kept in enumerate(passed):
        around[c + 1].addcmul_(around[c], kept)
    out = torch.bmm(s.read, _matrices(states[:-1]))
    if cuts is not None:
        clear(out, cuts.unseen)
    out.baddbmm_(lower, v)
    by_chunk(y).copy_(out.view(by_chunk(y).shape))


def backward(
    cells: Cells,
    u: Tensor,
    cuts: Cuts | None,
    states: Tensor,
    lower: Tensor,
    dy: Tensor,
    dstate: Tensor,
    grads: Cells,
) -> tuple[Tensor, Tensor]:
    """Fill the gradients of the inputs from those of y and the state after; give du and dstate."""
    r, k, v, log_w = cells
    s, v, dy, lower = scheme(r, k, log_w), rows(v), rows(dy), lower.flatten(0, 1)
    dlower = matmul_nt(dy, v)
    dbonus = _diagonal(dlower, r).permute(1, 0, 3, 2).contiguous()  # [B, N, L, H]
    dlower.tril_(-1)

    dstates = torch.empty_like(states)
    read = _matrices(dstates[:-1])
    torch.bmm(s.read.mT, dy, out=read)
    if cuts is not None:
        clear(dlower, cuts.apart)
        cuts.sum_again(read, s.read, dy, cuts.unseen)
    dstates[-1] = dstate
    around, passed = dstates.unbind(0), _passed(s, cuts).unbind(0)
    for c in reversed(range(len(passed))):
        around[c].addcmul_(around[c + 1], passed[c])
    if s.outer is None:
        flux = (states[:-1] * dstates[1:]).mul_(_passed(s, cuts)).sum(-1)
    else:
        flux = (states * dstates).sum(-1)
        dstates *= s.outer

    entered, written = _matrices(states[:-1]), _matrices(dstates[1:])
    dv, dread, dwrite = torch.bmm(s.write, written), matmul_nt(dy, entered), matmul_nt(v, written)
    if cuts is not None:
        clear(dread, cuts.unseen)
        clear(dwrite, cuts.lost)
        clear(dv, cuts.lost)
    dv.baddbmm_(lower.mT, dy)
    by_chunk(grads.v).copy_(dv.view(by_chunk(grads.v).shape))
    s.pullback(dlower, dread, dwrite, flux, (grads.r, grads.k, grads.log_w))

    pair = torch.matmul(dbonus, _by_head(u).mT).view(r.shape)
    grads.r.addcmul_(pair, k)
    grads.k.addcmul_(pair, r)
    du = (r * k).flatten(0, 2).flatten(1).mT @ dbonus.flatten(0, 2)
    return du.view(len(u), -1, len(u)).diagonal(0, 0, 2).mT, dstates[0]


def _by_head(u: Tensor) -> Tensor:
    """u as what weighs and sums the channels of every head [H K, H]."""
    return torch.diag_embed(u.mT).transpose(0, 1).flatten(0, 1)


def _diagonal(lower: Tensor, cells: Tensor) -> Tensor:
    """[G, L, L] to what tokens read of themselves [N, B, H, L], a view."""
    b, n, _, h, _ = cells.shape
    return lower.diagonal(0, 1, 2).unflatten(0, (n, b, h))


def _passed(s: Scheme, cuts: Cuts | None) -> Tensor:
    """What a chunk passes of the state that enters it [N, B, H, K, 1]."""
    passed = s.inner if s.outer is None else s.outer[1:]
    assert passed is not None
    return passed if cuts is None else passed * cuts.whole


def _matrices(states: Tensor) -> Tensor:
    """[N, B, H, K, V] to [G, K, V]."""
    return states.view(-1, *states.shape[-2:])
