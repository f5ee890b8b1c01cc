"""Inside the chunks of WKV6: decays become factors of r and k, and every sum a matrix product.

A scheme takes the cells of r, k and log w, [B, N, L, H, K] for N chunks of L tokens, and offers
for G = N * B * H rows

    read  [G, L, K]   r with the decay since the state was last scaled
    write [G, L, K]   k with the decay until the state is next scaled
    inner, outer      decays of the state: h' = outer (inner h + write^T v), one of them None for 1

`read_into`, which fills lower [G, L, L]: what token i reads of token j < i, that is
r_i . (decay between them) k_j; and `pullback`, which turns the gradients of all these into those
of the cells.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from groundthink.ops.spans import spans

LIMIT = 43.0
"""Largest exponent of a single reference: two such factors multiply to a normal fp32 number."""


def by_chunk(cells: Tensor) -> Tensor:
    """[B, N, L, H, D] seen as [N, B, H, L, D]."""
    return cells.permute(1, 0, 3, 2, 4)


def rows(cells: Tensor) -> Tensor:
    """[B, N, L, H, D] copied to [G, L, D]."""
    return by_chunk(cells).contiguous().view(-1, cells.shape[2], cells.shape[4])


def reference_exponents(log_w: Tensor) -> Tensor:
    """Log decay from the middle of the chunk to before each token and its end [B, N, L+1, H, K].

    It is positive before the middle.
    """
    b, n, length, h, k = log_w.shape
    sums = torch.matmul(spans(log_w, length), log_w.flatten(3))
    return sums.view(b, n, length + 1, h, k)


def scheme(r: Tensor, k: Tensor, log_w: Tensor) -> Scheme:
    """The fastest scheme that is safe for these decays; the same decays get the same one."""
    exponents = reference_exponents(log_w)
    mild = torch.maximum(exponents[:, :, 0], -exponents[:, :, -1]) <= LIMIT  # false for NaN
    return OneReference(r, k, exponents.exp_()) if mild.all() else Dyadic(r, k, log_w)


class OneReference:
    """Decays relative to the middle of the chunk: two factors per token, for mild decays only.

    The state is carried from middle to middle, so the same factors serve it.
    """

    inner = None

    def __init__(self, r: Tensor, k: Tensor, factor: Tensor):
        self.r, self.k = r, k
        factor = by_chunk(factor)  # [N, B, H, L+1, K]
        self.before, self.after = factor[..., :-1, :], factor[..., 1:, :]
        out = by_chunk(r).shape
        self.read = torch.mul(by_chunk(r), self.before, out=r.new_empty(out)).flatten(0, 2)
        self.write = torch.div(by_chunk(k), self.after, out=r.new_empty(out)).flatten(0, 2)
        outer = factor.new_ones(len(factor) + 1, *factor.shape[1:3], factor.shape[4])
        outer[1:] *= factor[..., -1, :]
        outer[:-1] /= factor[..., 0, :]
        self.outer = outer.unsqueeze(-1)  # [N+1, B, H, K, 1]

    def read_into(self, lower: Tensor) -> None:
        matmul_nt(self.read, self.write, out=lower).tril_(-1)

    def pullback(
        self, dlower: Tensor, dread: Tensor, dwrite: Tensor, flux: Tensor, grads: Gradients
    ) -> None:
        """Fill the gradients of r, k and log w.

        Args:
            flux: gradient of log `outer` [N+1, B, H, K].
        """
        dr, dk, dlog_w = grads
        dread.baddbmm_(dlower, self.write)
        dwrite.baddbmm_(dlower.mT, self.read)
        torch.mul(dread.view(self.before.shape), self.before, out=by_chunk(dr))
        torch.div(dwrite.view(self.after.shape), self.after, out=by_chunk(dk))
        b, n, length, h, k = dr.shape
        dexponents = dr.new_empty(b, n, length + 1, h, k)
        torch.mul(self.r, dr, out=dexponents[:, :, :-1])
        dexponents[:, :, -1] = flux[1:].transpose(0, 1)
        dexponents[:, :, 1:].addcmul_(self.k, dk, value=-1)
        dexponents[:, :, 0] -= flux[:-1].transpose(0, 1)
        onto_log_w = spans(dr, length).mT
        dlog_w.copy_(torch.matmul(onto_log_w, dexponents.flatten(3)).view(dr.shape))


class Dyadic:
    """Decays relative to the middle of every aligned block of 2, 4, ... L tokens: safe for any.

    Tokens of a block's later half read those of its earlier half across its middle, so each
    factor is a product of decays, at most 1. Factors below sqrt(tiny) count as 0: beside the
    rounding of the sums they are nothing, and subnormal products would be slow.
    """

    outer = None

    def __init__(self, r: Tensor, k: Tensor, log_w: Tensor):
        heads = by_chunk(r).shape[:3]
        r, k, log_w = rows(r), rows(k), rows(log_w)
        self.r, self.k = r, k
        least = torch.finfo(r.dtype).tiny ** 0.5
        w = torch.threshold_(log_w.exp(), least, 0.0)
        self.since, self.until = torch.ones_like(w), torch.ones_like(w)  # within the block
        self.levels = []
        for half in _halves(w.shape[1]):
            since, until = _half(self.since, half, 1), _half(self.until, half, 0)
            reads, writes = since * _half(r, half, 1), until * _half(k, half, 0)
            self.levels.append((half, since.clone(), until.clone(), reads, writes))
            earlier = until[:, :1] * _half(w, half, 0)[:, :1]
            later = since[:, -1:] * _half(w, half, 1)[:, -1:]
            torch.threshold_(since.mul_(earlier), least, 0.0)
            torch.threshold_(until.mul_(later), least, 0.0)
        self.read, self.write = r * self.since, k * self.until
        inner = torch.threshold_(self.since[:, -1] * w[:, -1], least, 0.0)
        self.inner = inner.view(*heads, -1, 1)  # [N, B, H, K, 1]

    def read_into(self, lower: Tensor) -> None:
        lower.zero_()
        for half, _, _, reads, writes in self.levels:
            _across(lower, half).copy_(matmul_nt(reads, writes).view(len(lower), -1, half, half))

    def pullback(
        self, dlower: Tensor, dread: Tensor, dwrite: Tensor, flux: Tensor, grads: Gradients
    ) -> None:
        """Fill the gradients of r, k and log w.

        A token reads its neighbour through no decay at all. These terms stay out of the sums
        for log w, where they would cancel and leave only their rounding errors.

        Args:
            flux: gradient of log `inner` [N, B, H, K].
        """
        neighbours = dlower.diagonal(-1, 1, 2)
        near = neighbours.unsqueeze(-1).clone()
        neighbours.zero_()
        dr, dk = dread.mul_(self.since), torch.zeros_like(dread)
        for half, since, until, reads, writes in self.levels[1:]:
            d = _across(dlower, half).reshape(-1, half, half)
            _half(dr, half, 1).addcmul_(since, _apply(d, writes))
            _half(dk, half, 0).addcmul_(until, _apply(d.mT, reads))
        ones = dr.new_ones(dr.shape[1], dr.shape[1])
        after, onward, before = (
            x.expand(len(dr), -1, -1) for x in (ones.triu(1), ones.triu(), ones.tril(-1))
        )
        dlog_w = torch.baddbmm(flux.flatten(0, 2)[:, None], after, self.r * dr)
        dlog_w.baddbmm_(onward, self.k * dk, alpha=-1).baddbmm_(before, self.write * dwrite)
        dk.addcmul_(dwrite, self.until)
        dr[:, 1:].addcmul_(near, self.k[:, :-1])
        dk[:, :-1].addcmul_(near, self.r[:, 1:])
        for grad, found in zip(grads, (dr, dk, dlog_w), strict=True):
            by_chunk(grad).copy_(found.view(by_chunk(grad).shape))


def matmul_nt(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """a @ b^T. For small b the product is slow on CPU, more so than a transposed copy of b."""
    return torch.bmm(a, b.mT.contiguous() if b.shape[1] <= 32 else b.mT, out=out)


def _halves(length: int) -> Iterator[int]:
    half = 1
    while half < length:
        yield half
        half *= 2


def _half(x: Tensor, half: int, side: int) -> Tensor:
    """The earlier (0) or later (1) halves of the blocks of 2 * half tokens [blocks, half, K]."""
    return x.view(-1, 2, half, x.shape[-1])[:, side]


def _across(lower: Tensor, half: int) -> Tensor:
    """What later halves read of earlier ones in the blocks of 2 * half [G, blocks, half, half]."""
    blocks = lower.shape[1] // (2 * half)
    tiles = lower.view(-1, blocks, 2, half, blocks, 2, half)[:, :, 1, :, :, 0]
    return tiles.diagonal(dim1=1, dim2=3).movedim(-1, 1)


def _apply(a: Tensor, x: Tensor) -> Tensor:
    """a @ x; matrices of two rows are too small for bmm to be fast."""
    if a.shape[-1] > 2:
        return torch.bmm(a, x)
    return (a[:, :, :1] * x[:, :1]).addcmul_(a[:, :, 1:], x[:, 1:])


Scheme = OneReference | Dyadic
Gradients = tuple[Tensor, Tensor, Tensor]
"""Cells of r, k and log w to fill."""
