"""What RWKV-6 does before WKV6, with a hand-written gradient, for eager code on any device.

Only the input and the hidden units of the blends are kept. Backward a block of tokens at a time
passes all blends, so that its tensors stay in the cache.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from groundthink.ops.cuts import once
from groundthink.ops.shift import reference
from groundthink.ops.shift.reference import previous

BLOCK = 512
"""Tokens of a block: enough work for a few threads, and in the cache of one for usual widths."""


def project(
    x: Tensor,
    last: Tensor,
    maa_x: Tensor,
    w1: Tensor,
    w2: Tensor,
    maa: Tensor,
    weights: tuple[Tensor, ...],
    reset: Tensor | None,
) -> tuple[Tensor, ...]:
    """The blend of each projection times its weight.

    Compiled code takes the reference: it cannot ask where the resets are, and fuses the blends.
    """
    if torch.compiler.is_compiling():
        return reference.project(x, last, maa_x, w1, w2, maa, weights, reset)
    full = torch.promote_types(x.dtype, torch.float32)
    given = (t.to(full) for t in (x, last, maa_x, w1, w2, maa))
    weights = tuple(weight.to(full) for weight in weights)
    outputs = _Project.apply(*given, reset, *weights)  # pyright: ignore
    return *(y.to(x.dtype) for y in outputs), x[:, -1].to(last.dtype, copy=True)


class _Project(torch.autograd.Function):
    """One more hidden unit a blend is always 1 and carries maa: no product needs a bias."""

    @staticmethod
    def forward(ctx, x, last, maa_x, w1, w2, maa, reset, *weights):
        flat = x.reshape(-1, x.shape[-1])
        back = previous(x, last, None).sub_(x)
        ctx.cut = None
        if reset is not None:
            ctx.cut = once(reset, "at", lambda: reset.nonzero(as_tuple=True))
            back[ctx.cut] = -x[ctx.cut]
        back = back.view(flat.shape)
        blends, rank, _ = w2.shape
        w1 = F.pad(w1.unflatten(1, (blends, rank)), (0, 1)).flatten(1)
        w2 = torch.cat((w2, maa[:, None]), 1)  # [5, R+1, C]
        hidden = torch.addcmul(flat, back, maa_x).mm(w1).tanh_()
        hidden.view(-1, blends, rank + 1)[..., -1] = 1
        ctx.save_for_backward(x, back, hidden, maa_x, w1, w2, *weights)
        outputs = []
        for q, units in enumerate(hidden.chunk(blends, 1)):
            blend = units.mm(w2[q])
            blend = torch.addcmul(flat, back, blend, out=blend)
            outputs.append(blend if q == 0 else blend.mm(weights[q - 1].t()))
        return tuple(y.view(*x.shape[:-1], -1) for y in outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads: Tensor):
        x, back, hidden, maa_x, w1, w2, *weights = ctx.saved_tensors
        flat = x.reshape(-1, x.shape[-1])
        rows = flat, back, hidden, *(grad.reshape(len(flat), -1) for grad in grads)
        dx, dback, dmaa_x = torch.empty_like(flat), torch.empty_like(flat), torch.zeros_like(maa_x)
        sums = [torch.zeros_like(t) for t in (w1, w2, *weights)]
        for found, block in zip(_blocks(dx, dback), _blocks(*rows), strict=True):
            dmaa_x += _backward_of_block(found, block, ctx.saved_tensors[3:], sums)
        dw1, dw2, *dweights = sums
        dw1 = dw1.unflatten(1, (len(w2), -1))[..., :-1].flatten(1)
        dx, dback = dx.view_as(x), dback.view_as(x)
        if ctx.cut is not None:
            dback[ctx.cut] = 0
        dx[:, :-1] += dback[:, 1:]
        return dx, dback[:, 0], dmaa_x, dw1, dw2[:, :-1], dw2[:, -1], None, *dweights


def _backward_of_block(
    found: tuple[Tensor, ...],
    block: tuple[Tensor, ...],
    given: tuple[Tensor, ...],
    sums: list[Tensor],
) -> Tensor:
    """The part of a block of tokens in the gradient.

    Args:
        found: gradients of the tokens, but for what the next ones add, and of `back`, to be filled.
        block: the tokens [n, C], `back`: the ones before less themselves, the units of the blends
            [n, 5 (R + 1)], and the gradients of the outputs [n, .].
        given: maa_x, w1, w2 and the weights of the projections.
        sums: gradients of the last three, to be added to.

    Returns:
        The gradient of maa_x.
    """
    (dx, dback), (flat, back, hidden, *grads) = found, block
    (maa_x, w1, w2, *weights), (dw1, dw2, *dweights) = given, sums
    share, blend, dhidden = torch.empty_like(flat), torch.empty_like(flat), torch.empty_like(hidden)
    units, dunits = (t.chunk(len(w2), 1) for t in (hidden, dhidden))
    for q, (grad, w, dw) in enumerate(zip(grads, w2.unbind(0), dw2.unbind(0), strict=True)):
        torch.mm(units[q], w, out=share)
        if q == 0:
            dx.copy_(grad)
            torch.mul(grad, share, out=dback)
        else:
            dweights[q - 1].addmm_(grad.t(), torch.addcmul(flat, back, share, out=blend))
            grad = torch.mm(grad, weights[q - 1], out=blend)
            dx.add_(grad)
            dback.addcmul_(grad, share)
        dshare = torch.mul(grad, back, out=share)
        torch.mm(dshare, w.t(), out=dunits[q])
        dw.addmm_(units[q].t(), dshare)
    dhidden = torch.ops.aten.tanh_backward(dhidden, hidden)  # 0 where the unit is 1
    dw1.addmm_(torch.addcmul(flat, back, maa_x, out=share).t(), dhidden)
    dmixed = torch.mm(dhidden, w1.t(), out=share)
    dback.addcmul_(dmixed, maa_x)
    dx.add_(dmixed).sub_(dback)
    return dmixed.mul_(back).sum(0)


def _blocks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The same rows of all tensors, a block at a time."""
    return zip(*(t.split(BLOCK) for t in tensors), strict=True)
