"""Inside the chunks of WKV6: decays become factors of r and k, and every sum a matrix product.

A scheme takes r, k and log w of G chunks of L tokens, [G, L, K], and offers

    lower [G, L, L]   what token i reads of token j < i: r_i . (decay between them) k_j
    read  [G, L, K]   r with the decay since the state was last scaled
    write [G, L, K]   k with the decay until the state is next scaled
    inner, outer      decays of the state: h' = outer (inner h + write^T v), None where they are 1

and `pullback`, which turns the gradients of these into those of r, k and log w.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from groundthink.ops.spans import spans

LIMIT = 43.0
"""Largest exponent of a single reference: two such factors multiply to a normal fp32 number."""


def reference_exponents(log_w: Tensor) -> Tensor:
    """Log decay from the middle of the chunk to before each of its tokens and its end [G, L+1, K].

    It is positive before the middle.
    """
    return torch.bmm(spans(log_w, log_w.shape[1]).expand(len(log_w), -1, -1), log_w)


def scheme(r: Tensor, k: Tensor, log_w: Tensor, chunks: int) -> Scheme:
    """The fastest scheme that is safe for these decays; the same decays get the same one."""
    exponents = reference_exponents(log_w)
    mild = torch.maximum(exponents[:, 0], -exponents[:, -1]) <= LIMIT  # false for NaN
    return OneReference(r, k, exponents, chunks) if mild.all() else Dyadic(r, k, log_w)


class OneReference:
    """Decays relative to the middle of the chunk: two factors per token, for mild decays only.

    The state is carried from middle to middle, so the same factors serve it.
    """

    inner = None

    def __init__(self, r: Tensor, k: Tensor, exponents: Tensor, chunks: int):
        self.factor = exponents.exp()
        self.read = r * self.factor[:, :-1]
        self.write = k / self.factor[:, 1:]
        self.lower = matmul_nt(self.read, self.write).tril_(-1)
        factor = self.factor.view(chunks, -1, *self.factor.shape[1:])
        self.outer = factor.new_ones(chunks + 1, factor.shape[1], factor.shape[3])
        self.outer[1:] *= factor[:, :, -1]
        self.outer[:-1] /= factor[:, :, 0]

    def pullback(self, dlower: Tensor, dread: Tensor, dwrite: Tensor, flux: Tensor):
        """Gradients of r, k and log w.

        Args:
            flux: gradient of log `outer` [chunks+1, B, H, K].
        """
        dread.baddbmm_(dlower, self.write)
        dwrite.baddbmm_(dlower.mT, self.read)
        dexponents = torch.empty_like(self.factor)
        torch.mul(self.read, dread, out=dexponents[:, :-1])
        dexponents[:, -1] = flux[1:].flatten(0, 2)
        dexponents[:, 1:].addcmul_(self.write, dwrite, value=-1)
        dexponents[:, 0] -= flux[:-1].flatten(0, 2)
        onto_log_w = spans(dread, dread.shape[1]).mT.expand(len(dread), -1, -1)
        return (
            dread.mul_(self.factor[:, :-1]),
            dwrite.div_(self.factor[:, 1:]),
            torch.bmm(onto_log_w, dexponents),
        )


class Dyadic:
    """Decays relative to the middle of every aligned block of 2, 4, ... L tokens: safe for any.

    Tokens of a block's later half read those of its earlier half across its middle, so each
    factor is a product of decays, at most 1. Factors below sqrt(tiny) count as 0: beside the
    rounding of the sums they are nothing, and subnormal products would be slow.
    """

    outer = None

    def __init__(self, r: Tensor, k: Tensor, log_w: Tensor):
        self.r, self.k = r, k
        least = torch.finfo(r.dtype).tiny ** 0.5
        w = torch.threshold_(log_w.exp(), least, 0.0)
        self.since, self.until = torch.ones_like(w), torch.ones_like(w)  # within the block
        self.lower = w.new_zeros(len(w), w.shape[1], w.shape[1])
        self.levels = []
        for half in _halves(w.shape[1]):
            since, until = _half(self.since, half, 1), _half(self.until, half, 0)
            reads, writes = since * _half(r, half, 1), until * _half(k, half, 0)
            block = matmul_nt(reads, writes).view(len(w), -1, half, half)
            _across(self.lower, half).copy_(block)
            self.levels.append((half, since.clone(), until.clone(), reads, writes))
            earlier = until[:, :1] * _half(w, half, 0)[:, :1]
            later = since[:, -1:] * _half(w, half, 1)[:, -1:]
            torch.threshold_(since.mul_(earlier), least, 0.0)
            torch.threshold_(until.mul_(later), least, 0.0)
        self.read, self.write = r * self.since, k * self.until
        self.inner = torch.threshold_(self.since[:, -1] * w[:, -1], least, 0.0)

    def pullback(self, dlower: Tensor, dread: Tensor, dwrite: Tensor, flux: Tensor):
        """Gradients of r, k and log w.

        A token reads its neighbour through no decay at all. These terms stay out of the sums
        for log w, where they would cancel and leave only their rounding errors.

        Args:
            flux: gradient of log `inner` [chunks, B, H, K].
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
        return dr, dk, dlog_w


def matmul_nt(a: Tensor, b: Tensor) -> Tensor:
    """a @ b^T. For small b the product is slow on CPU, more so than a transposed copy of b."""
    return torch.bmm(a, b.mT.contiguous() if b.shape[1] <= 32 else b.mT)


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
